"""Samplers step by step against diffusers, and their settings."""

import functools
import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt.models.diffusion.noise import NoiseSchedule
from lora_opt.models.diffusion.sampler import Sampler, Steps, advance
from lora_opt.models.diffusion.scheduler_file import read_scheduler
from tests.models.parity import material, samplers

SOURCES = ['golden']
if importlib.util.find_spec('diffusers') and importlib.util.find_spec('torch'):
  SOURCES.append('live')


@functools.cache
def reference(name, source):
  if source == 'golden':
    return material.read_golden(f'samplers_{name}')
  _, arrays, text = samplers.reference(samplers.CASES[name])
  return arrays, text


def states(schedule, sampler, count):
  """The times of each step, and every state from the first on."""
  steps = sampler.steps(schedule, count)
  x = samplers.start() * np.float32(sampler.start_scale(schedule, count))
  found, before = [x], jnp.zeros_like(x)
  for i in range(len(steps.timestep)):
    step = Steps(*(jnp.float32(numbers[i]) for numbers in steps))
    said = samplers.answer(np.asarray(x * step.scale), i)
    x, before = advance(
      step,
      x,
      said,
      before,
      prediction=schedule.prediction,
      clip=sampler.clip,
    )
    found.append(x)
  return steps.timestep, np.stack(found)


@pytest.mark.filterwarnings('ignore')  # of diffusers
@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('name', samplers.CASES)
def test_every_state_is_that_of_diffusers(name, source, tmp_path):
  """To 2e-5, and what diffusers loses where it takes large states apart."""
  expected, text = reference(name, source)
  file = tmp_path / 'scheduler_config.json'
  file.write_text(text)
  schedule, sampler = read_scheduler(file)
  times, found = states(schedule, sampler, samplers.CASES[name][2])
  np.testing.assert_allclose(times, expected['timesteps'], rtol=1e-4)
  largest = abs(expected['states']).max()
  np.testing.assert_allclose(
    found, expected['states'], rtol=0, atol=2e-5 + 1e-6 * largest
  )


@pytest.mark.parametrize('kind', ['ddim', 'euler', 'dpm_solver'])
@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction'])
def test_a_network_that_knows_the_image_ends_at_it(kind, prediction):
  """Whatever the sampler: the formulas of noise and of sampling agree."""
  schedule = NoiseSchedule(prediction=prediction)
  sampler = Sampler(kind, 'trailing', end_at_image=True)
  image = np.random.default_rng(0).uniform(-1, 1, (1, 2, 2, 3))
  image = image.astype(np.float32)
  steps = sampler.steps(schedule, 8)
  x = samplers.start() * np.float32(sampler.start_scale(schedule, 8))
  before = np.zeros_like(x)
  for i in range(8):
    step = Steps(*(np.float32(numbers[i]) for numbers in steps))
    noise = (x - step.signal * image) / step.noise
    signal, scale = step.signal * step.scale, step.noise * step.scale
    said = noise
    if prediction == 'v_prediction':
      said = signal * noise - scale * image
    x, before = advance(step, x, said, before, prediction=prediction, clip=None)
  # In float32, 1 / signal of the noisiest time is what a rounding grows by.
  np.testing.assert_allclose(x, image, atol=1e-4)


def test_noise_and_target_are_one_another():
  schedule = NoiseSchedule(prediction='v_prediction')
  random = np.random.default_rng(0)
  image, noise = random.standard_normal((2, 3, 2, 2, 1), np.float32)
  times = np.array([0, 500, 999])
  noisy = schedule.add(image, noise, times)
  v = schedule.target(image, noise, times)
  signal, scale = schedule.scales(times)
  np.testing.assert_allclose(signal * noisy - scale * v, image, atol=1e-6)
  np.testing.assert_allclose(scale * noisy + signal * v, noise, atol=1e-6)


def test_loss_weights_are_those_of_the_paper():
  """min(snr, 5) / snr for noise, min(snr, 5) / (snr + 1) for velocities."""
  times = np.array([0, 300, 999])
  for prediction, more in (('epsilon', 0), ('v_prediction', 1)):
    schedule = NoiseSchedule(prediction=prediction)
    squared = schedule.signal_squared[times]
    snr = squared / (1 - squared)
    found = schedule.loss_weights(times, 5.0)
    expected = np.minimum(snr, 5) / (snr + more)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
  last = NoiseSchedule(prediction='v_prediction', zero_terminal=True)
  assert last.loss_weights(np.array([999]), 5.0) == 0


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'kind': 'pndm'}, "kind='pndm' must be one of ddim, euler, dpm_solver"),
    ({'spacing': 'even'}, "spacing='even' must be one of"),
    ({'kind': 'euler', 'clip': 1.0}, r'clip=1\.0 has no meaning for kind='),
    ({'order': 3}, 'order: expected a whole number from 1 to 2, found 3'),
  ],
)
def test_other_samplers_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    Sampler(**settings)


@pytest.mark.parametrize(
  ('count', 'message'),
  [
    (0, 'steps: expected a whole number from 1 to 1000, found 0'),
    (1001, 'steps: expected a whole number from 1 to 1000, found 1001'),
    (1000, '1000 steps begin at time 1000, after the last of 1000'),
  ],
)
def test_a_bad_number_of_steps_is_refused(count, message):
  with pytest.raises(ValueError, match=message):
    Sampler().steps(NoiseSchedule(), count)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'prediction': 'sample'}, "prediction='sample' must be one of epsilon"),
    ({'beta_schedule': 'sigmoid'}, "beta_schedule='sigmoid' must be one of"),
    ({'betas': (0.1,)}, 'betas has 1 entries, must have timesteps=1000'),
    ({'zero_terminal': True}, "take prediction='v_prediction'"),
  ],
)
def test_other_noise_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    NoiseSchedule(**settings)


@pytest.mark.parametrize(
  ('kind', 'settings', 'message'),
  [
    ('LMSDiscreteScheduler', '', "_class_name='LMSDiscreteScheduler' is not"),
    ('DDIMScheduler', '"prediction_type": "sample",', "prediction='sample'"),
    ('DDIMScheduler', '"thresholding": true,', 'thresholding=True is not'),
    ('DDIMScheduler', '"eta": 1.0,', 'settings unknown here.*eta=1.0'),
    ('DDIMScheduler', '"beta_end": NaN,', 'NaN is not a number'),
    (
      'DPMSolverMultistepScheduler',
      '"algorithm_type": "sde-dpmsolver++",',
      "algorithm_type='sde-dpmsolver.*' is not supported",
    ),
    (
      'DPMSolverMultistepScheduler',
      '"solver_order": 3,',
      'solver_order: expected a whole number from 1 to 2',
    ),
    (
      'EulerDiscreteScheduler',
      '"timestep_type": "continuous",',
      "timestep_type='continuous' is not supported",
    ),
  ],
)
def test_a_file_of_another_scheduler_is_refused(
  kind, settings, message, tmp_path
):
  file = tmp_path / 'scheduler_config.json'
  file.write_text(f'{{{settings} "_class_name": "{kind}"}}')
  with pytest.raises(ValueError, match=message) as caught:
    read_scheduler(file)
  assert str(file) in str(caught.value)
