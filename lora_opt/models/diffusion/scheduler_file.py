"""Reads scheduler_config.json: how noise was added, and how to sample.

Three schedulers of diffusers are available as samplers. From the files of DDPM
and PNDM, the noise schedule and the spacing of times are used. Images are then
sampled by DDIM, with the settings that diffusers'
DDIMScheduler.from_pretrained would read from the file.
"""

import math
import pathlib
from typing import Any

from absl import logging

from lora_opt.models.diffusion.noise import NoiseSchedule
from lora_opt.models.diffusion.part_files import HARMLESS
from lora_opt.models.diffusion.sampler import Sampler
from lora_opt.models.pretrained.config_file import Settings
from lora_opt.reading import values
from lora_opt.reading.json_text import read_json

_KINDS = {
  'DDIMScheduler': 'ddim',
  'DDPMScheduler': 'ddim',
  'PNDMScheduler': 'ddim',
  'EulerDiscreteScheduler': 'euler',
  'DPMSolverMultistepScheduler': 'dpm_solver',
}
# Settings used only by thresholding, flow matching, and PNDM or DDPM sampling.
_UNREAD = (
  'dynamic_thresholding_ratio',
  'flow_shift',
  'sample_max_value',
  'skip_prk_steps',
  'time_shift_type',
)
# The default of `timestep_spacing`.
_SPACING = {'ddim': 'leading', 'euler': 'linspace', 'dpm_solver': 'linspace'}


def read_scheduler(file: pathlib.Path) -> tuple[NoiseSchedule, Sampler]:
  """Reads scheduler/scheduler_config.json.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: A setting is damaged or not supported.
  """
  # diffusers writes -Infinity for lambda_min_clipped.
  settings = Settings(str(file), read_json(file, infinity=True))
  kind = settings.choose('_class_name', _KINDS)
  name = settings.text('_class_name')
  for key in ('thresholding', 'use_exponential_sigmas', 'use_beta_sigmas'):
    settings.expect(key, False, None)
  try:
    noise = _noise(settings)
    sampler = _sampler(settings, kind, name)
    settings.check_all_asked((*HARMLESS, *_UNREAD))
  except ValueError as error:
    if str(file) in str(error):
      raise
    raise ValueError(f'{file}: {error}') from error
  if name in ('DDPMScheduler', 'PNDMScheduler'):
    logging.info('%s is of a %s; images are sampled by DDIM', file, name)
  return noise, sampler


def _noise(settings: Settings) -> NoiseSchedule:
  place = f'{settings.place}: trained_betas'
  betas = settings.items('trained_betas', [], null=True)
  return NoiseSchedule(
    timesteps=settings.integer('num_train_timesteps', 1000, least=2),
    beta_start=settings.number('beta_start', 0.0001),
    beta_end=settings.number('beta_end', 0.02),
    beta_schedule=settings.text('beta_schedule', 'linear'),
    betas=tuple(values.number(beta, place, above=0) for beta in betas),
    zero_terminal=settings.boolean('rescale_betas_zero_snr', False),
    prediction=settings.text('prediction_type', 'epsilon'),
  )


def _sampler(settings: Settings, kind: str, name: str) -> Sampler:
  common = {
    'kind': kind,
    'spacing': settings.text('timestep_spacing', _SPACING[kind]),
    'offset': settings.integer('steps_offset', 0, least=0),
  }
  if kind == 'ddim':
    return Sampler(**common, **_ddim(settings, name))
  # Older versions wrote this key, which belongs to other schedulers.
  settings.expect('clip_sample', False, None)
  shared = {
    'zero_end': settings.choose(
      'final_sigmas_type', {'zero': True, 'sigma_min': False}, 'zero'
    ),
    'karras': settings.boolean('use_karras_sigmas', False, null=True),
  }
  if kind == 'euler':
    return Sampler(**common, **shared, **_euler(settings))
  return Sampler(**common, **shared, **_dpm_solver(settings))


def _ddim(settings: Settings, name: str) -> dict[str, Any]:
  if name == 'DDPMScheduler':
    settings.expect('variance_type', 'fixed_small', 'fixed_large', None)
  clips = settings.boolean('clip_sample', True)
  bound = settings.number('clip_sample_range', 1.0)
  return {
    'clip': bound if clips else None,
    'end_at_image': settings.boolean('set_alpha_to_one', True),
  }


def _euler(settings: Settings) -> dict[str, Any]:
  settings.expect('sigma_min', None)
  settings.expect('sigma_max', None)
  settings.expect('timestep_type', 'discrete')
  # A key of another scheduler that is in Stable Diffusion's published files.
  settings.expect('set_alpha_to_one', False, None)
  return {
    'log_linear': settings.choose(
      'interpolation_type', {'linear': False, 'log_linear': True}, 'linear'
    )
  }


def _dpm_solver(settings: Settings) -> dict[str, Any]:
  settings.expect('algorithm_type', 'dpmsolver++')
  settings.expect('set_alpha_to_one', False, None)
  settings.expect('variance_type', None)
  for key in ('use_lu_lambdas', 'use_flow_sigmas', 'use_dynamic_shifting'):
    settings.expect(key, False, None)
  return {
    'order': settings.integer('solver_order', 2, least=1, most=2),
    'heun': settings.choose(
      'solver_type', {'midpoint': False, 'heun': True}, 'midpoint'
    ),
    'first_order_end': settings.boolean('lower_order_final', True),
    'euler_end': settings.boolean('euler_at_final', False),
    'least_log_snr': _least_log_snr(settings),
  }


def _least_log_snr(settings: Settings) -> float | None:
  key = 'lambda_min_clipped'
  if settings.is_exactly(key, -math.inf):
    return None
  return settings.number(key, None, above=None)
