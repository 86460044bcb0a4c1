"""Schedulers of diffusers and the states that they go through."""

import json

import numpy as np

# Name: class, settings, steps.
CASES = {
  'ddim': ('DDIMScheduler', {'steps_offset': 1, 'clip_sample': False}, 6),
  'ddim_v_clipped': (
    'DDIMScheduler',
    {
      'prediction_type': 'v_prediction',
      'clip_sample_range': 0.7,
      'set_alpha_to_one': False,
      'timestep_spacing': 'linspace',
      'beta_schedule': 'squaredcos_cap_v2',
    },
    5,
  ),
  'ddim_zero_terminal': (
    'DDIMScheduler',
    {
      'prediction_type': 'v_prediction',
      'rescale_betas_zero_snr': True,
      'timestep_spacing': 'trailing',
      'beta_schedule': 'scaled_linear',
    },
    5,
  ),
  'ddim_betas': (
    'DDIMScheduler',
    {'trained_betas': [0.1, 0.2, 0.3, 0.4, 0.5], 'num_train_timesteps': 5},
    5,
  ),
  'pndm': (
    'PNDMScheduler',
    {'skip_prk_steps': True, 'steps_offset': 1, 'set_alpha_to_one': False},
    5,
  ),
  'ddpm': ('DDPMScheduler', {'variance_type': 'fixed_small'}, 5),
  'euler': ('EulerDiscreteScheduler', {}, 5),
  'euler_leading_karras': (
    'EulerDiscreteScheduler',
    {
      'timestep_spacing': 'leading',
      'steps_offset': 1,
      'use_karras_sigmas': True,
      'final_sigmas_type': 'sigma_min',
      'prediction_type': 'v_prediction',
    },
    5,
  ),
  'euler_log_linear': (
    'EulerDiscreteScheduler',
    {'interpolation_type': 'log_linear', 'timestep_spacing': 'trailing'},
    5,
  ),
  'dpm_solver': ('DPMSolverMultistepScheduler', {}, 6),
  'dpm_solver_long': (
    'DPMSolverMultistepScheduler',
    {'final_sigmas_type': 'sigma_min', 'beta_schedule': 'scaled_linear'},
    16,
  ),
  'dpm_solver_heun_karras': (
    'DPMSolverMultistepScheduler',
    {
      'solver_type': 'heun',
      'use_karras_sigmas': True,
      'prediction_type': 'v_prediction',
      'timestep_spacing': 'leading',
      'lower_order_final': False,
    },
    6,
  ),
  'dpm_solver_first_order': (
    'DPMSolverMultistepScheduler',
    {'solver_order': 1, 'euler_at_final': True},
    5,
  ),
  'dpm_solver_clipped_times': (
    'DPMSolverMultistepScheduler',
    {'lambda_min_clipped': -3.0, 'timestep_spacing': 'trailing'},
    7,
  ),
}


def start() -> np.ndarray:
  """Standard normal noise, (1, 2, 2, 3)."""
  return np.random.default_rng(1).standard_normal((1, 2, 2, 3), np.float32)


def answer(x: np.ndarray, step: int) -> np.ndarray:
  """What stands for a network."""
  drawn = np.random.default_rng(step).standard_normal(x.shape, np.float32)
  return np.tanh(x) + 0.3 * drawn


def reference(case):
  """The scheduler, its states by name, and the text of its settings."""
  import diffusers
  import torch

  kind, settings, count = case
  scheduler = getattr(diffusers, kind)(**settings)
  text = scheduler.to_json_string()
  if kind in ('PNDMScheduler', 'DDPMScheduler'):
    # Read as the file of a DDIM's, as ours is.
    named = json.loads(text)
    scheduler = diffusers.DDIMScheduler.from_config(
      {k: v for k, v in named.items() if not k.startswith('_')}
    )
  scheduler.set_timesteps(count)
  if hasattr(scheduler, 'set_begin_index'):
    scheduler.set_begin_index(0)
  x = torch.tensor(start()) * scheduler.init_noise_sigma
  states = [x]
  for i, t in enumerate(scheduler.timesteps):
    read = scheduler.scale_model_input(x, t).numpy()
    said = torch.tensor(answer(read, i))
    x = scheduler.step(said, t, x).prev_sample
    states.append(x)
  arrays = {
    'timesteps': scheduler.timesteps.numpy().astype(np.float32),
    'states': torch.stack(states).numpy(),
  }
  return scheduler, arrays, text
