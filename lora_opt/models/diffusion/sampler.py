"""Samplers: from noise to an image, in a few steps.

All samplers use one formula. From the network's output at the state x = signal
image + noise n, the image and the noise n are estimated. The next state is

    next_signal image + next_noise n + change (image - previous image),

with the scales of the next time. DDIM (arXiv 2010.02502) has no last term.
Neither has Euler's method for the same equation (2206.00364), whose states have
a signal of 1. DPM-Solver++ 2M (2211.01095) has it. Samplers differ only in
these coefficients, which `Sampler.steps` returns for all steps at once.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lora_opt.models.diffusion.noise import NoiseSchedule
from lora_opt.models.fields import check_fields
from lora_opt.reading import values

KINDS = ('ddim', 'euler', 'dpm_solver')
SPACINGS = ('leading', 'linspace', 'trailing')
# Replaces a signal of zero, to avoid a division by zero.
_LEAST_SIGNAL_SQUARED = 2.0**-24
# The exponent of the noise scales in arXiv 2206.00364.
_RHO = 7.0
# With fewer steps than this, DPM-Solver++ ends with a step of first order.
_FEW = 15


class Steps(NamedTuple):
  """The coefficients of all steps, each (steps,) float32."""

  timestep: np.ndarray  # input of the network
  scale: np.ndarray  # multiplies the state as input of the network
  signal: np.ndarray
  noise: np.ndarray
  next_signal: np.ndarray
  next_noise: np.ndarray
  change: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sampler:
  """How to sample; the names in brackets are those in diffusers' files.

  Attributes:
    kind: 'ddim', 'euler' or 'dpm_solver' (DPM-Solver++ 2M).
    spacing: How times are spaced (timestep_spacing): 'leading' for multiples of
      a whole number, 'trailing' for equal steps down from the last time,
      'linspace' for equal steps between the ends.
    offset: Added to leading times (steps_offset).
    clip: Bound on the absolute value of the estimated image; None for no bound
      (clip_sample, clip_sample_range). Only for DDIM.
    end_at_image: Whether DDIM's last step goes to the image itself instead of
      to the first time (set_alpha_to_one).
    zero_end: The same for the other two samplers (final_sigmas_type). With it
      the last step of DPM-Solver is of first order.
    karras: Whether noise scales are spaced as in arXiv 2206.00364
      (use_karras_sigmas). Not for DDIM.
    log_linear: Whether Euler's noise scales are evenly spaced in their
      logarithm and end with the schedule's smallest (interpolation_type).
    order: Order of DPM-Solver, 1 or 2 (solver_order).
    heun: Whether DPM-Solver of order 2 uses Heun's method instead of the
      midpoint method (solver_type).
    first_order_end: Whether DPM-Solver's last step is of first order if there
      are few steps (lower_order_final).
    euler_end: Whether DPM-Solver's last step is always of first order
      (euler_at_final).
    least_log_snr: DPM-Solver starts at the last time whose log(signal / noise)
      is at least this; None for the last time of all (lambda_min_clipped).

  Raises:
    ValueError: If a setting has the wrong type or an unknown value.
  """

  kind: str = 'ddim'
  spacing: str = 'leading'
  offset: int = 1
  clip: float | None = None
  end_at_image: bool = False
  zero_end: bool = True
  karras: bool = False
  log_linear: bool = False
  order: int = 2
  heun: bool = False
  first_order_end: bool = True
  euler_end: bool = False
  least_log_snr: float | None = None

  def __post_init__(self):
    check_fields(self, offset=(0, 10**6), order=(1, 2), clip=(1e-6, 1e6))
    for name, allowed in (('kind', KINDS), ('spacing', SPACINGS)):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'{name}={getattr(self, name)!r} must be one of {", ".join(allowed)}'
        )
    if self.clip is not None and self.kind != 'ddim':
      raise ValueError(
        f'clip={self.clip} has no meaning for kind={self.kind!r}, only DDIM '
        'clips: leave it unset'
      )

  def steps(self, schedule: NoiseSchedule, count: int) -> Steps:
    """Returns the coefficients of all steps.

    Args:
      schedule: The schedule that the network was trained with.
      count: Number of steps.

    Raises:
      ValueError: `count` is not a number from 1 to the schedule's times.
    """
    values.integer(count, 'steps', 1, schedule.timesteps)
    made = {'ddim': _ddim, 'euler': _euler, 'dpm_solver': _dpm_solver}
    found = made[self.kind](self, schedule, count)
    return Steps(*(np.asarray(x, np.float32) for x in found))

  def start_scale(self, schedule: NoiseSchedule, count: int) -> float:
    """The factor that turns standard normal noise into the first state."""
    if self.kind != 'euler':
      return 1.0
    largest = float(self.steps(schedule, count).noise.max())
    if self.spacing == 'leading':
      return (largest**2 + 1) ** 0.5
    return largest


def advance(
  step: Steps,
  x: jax.Array,
  answer: jax.Array,
  before: jax.Array,
  *,
  prediction: str,
  clip: float | None,
) -> tuple[jax.Array, jax.Array]:
  """Takes one step.

  Args:
    step: The coefficients of the step, scalars.
    x: (rows, height, width, channels) float32, the state.
    answer: The network's output for scale * x, of the same shape.
    before: The estimate of the image in the previous step.
    prediction: What the network predicts, see `NoiseSchedule`.
    clip: See `Sampler`.

  Returns:
    The next state, and the estimate of the image.
  """
  # The input of the network is signal * image + noise * n with these scales.
  signal, noise = step.signal * step.scale, step.noise * step.scale
  if prediction == 'epsilon':
    image = (x * step.scale - noise * answer) / signal
  else:
    image = signal * (x * step.scale) - noise * answer
  n = (x - step.signal * image) / step.noise
  if clip is not None:
    image = jnp.clip(image, -clip, clip)
  following = (
    step.next_signal * image
    + step.next_noise * n
    + step.change * (image - before)
  )
  return following, image


def _times(s: Sampler, last: int, total: int, count: int) -> np.ndarray:
  """The times of all steps, noisiest first; integers except for 'linspace'."""
  if s.spacing == 'linspace':
    return np.linspace(0, last - 1, count)[::-1]
  if s.spacing == 'leading':
    return (np.arange(count) * (last // count))[::-1] + s.offset
  return np.round(np.arange(last, 0, -total / count))[:count] - 1


def _ddim(s: Sampler, schedule: NoiseSchedule, count: int):
  total, squared = schedule.timesteps, schedule.signal_squared
  times = np.round(_times(s, total, total, count)).astype(int)
  _check_times(times, total)
  following = times - total // count
  end = 1.0 if s.end_at_image else squared[0]
  now = squared[times]
  then = np.where(following >= 0, squared[np.maximum(following, 0)], end)
  one, none = np.ones(count), np.zeros(count)
  scales = (np.sqrt(now), np.sqrt(1 - now), np.sqrt(then), np.sqrt(1 - then))
  return times, one, *scales, none


def _euler(s: Sampler, schedule: NoiseSchedule, count: int):
  total, every = schedule.timesteps, _noise_to_signal(schedule)
  times = _times(s, total, total, count)
  _check_times(times, total)
  end = 0.0 if s.zero_end else every[0]
  scales = np.append(np.interp(times, np.arange(total), every), end)
  ends = scales[0], scales[-2]
  if s.log_linear:
    # As in diffusers, the last step goes to the smallest noise scale.
    ends = every[-1], every[0]
    scales = np.exp(np.linspace(*np.log(ends), count + 1))
  if s.karras:
    scales = np.append(_karras(*ends, count), end)
    times = np.interp(np.log(scales[:-1]), np.log(every), np.arange(total))
  scales, following = scales[:-1], scales[1:]
  one = np.ones(count)
  return (
    times,
    1 / np.sqrt(scales**2 + 1),
    *(one, scales, one, following),
    np.zeros(count),
  )


def _dpm_solver(s: Sampler, schedule: NoiseSchedule, count: int):
  total, every = schedule.timesteps, _noise_to_signal(schedule)
  last = total
  if s.least_log_snr is not None:
    last = int(np.sum(-np.log(every) >= s.least_log_snr))
  if s.spacing == 'trailing':
    times = _times(s, last, total, count)
  else:
    times = _times(s, last, total, count + 1)[:-1]
  times, count = np.round(times), len(times)
  _check_times(times, total)
  scales = np.interp(times, np.arange(total), every)
  if s.karras:
    scales = _karras(every[-1], every[0], count)
    times = np.interp(np.log(scales), np.log(every), np.arange(total))
    if schedule.beta_schedule != 'squaredcos_cap_v2':
      times = np.round(times)
    times = np.trunc(times)
  scales = np.append(scales, 0.0 if s.zero_end else every[0])
  signal = 1 / np.sqrt(scales**2 + 1)
  noise = scales * signal
  return (
    times,
    np.ones(count),
    *(signal[:-1], noise[:-1], signal[1:], noise[1:]),
    _second_order(s, signal, scales),
  )


def _second_order(s: Sampler, signal, scales) -> np.ndarray:
  """The coefficients of the change in the estimate of the image."""
  count = len(scales) - 1
  change = np.zeros(count)
  for i in range(1, count):
    is_last = i == count - 1
    few = s.first_order_end and count < _FEW
    if s.order == 1 or (is_last and (s.euler_end or few or s.zero_end)):
      continue
    step = np.log(scales[i]) - np.log(scales[i + 1])
    before = np.log(scales[i - 1]) - np.log(scales[i])
    left = np.exp(-step) - 1
    weight = (left / step + 1) if s.heun else -0.5 * left
    change[i] = signal[i + 1] * weight * step / before
  return change


def _noise_to_signal(schedule: NoiseSchedule) -> np.ndarray:
  squared = schedule.signal_squared
  if schedule.zero_terminal:
    squared = np.append(squared[:-1], _LEAST_SIGNAL_SQUARED)
  return np.sqrt((1 - squared) / squared)


def _karras(first: float, last: float, count: int) -> np.ndarray:
  return np.linspace(first ** (1 / _RHO), last ** (1 / _RHO), count) ** _RHO


def _check_times(times: np.ndarray, total: int) -> None:
  """Raises ValueError for times that the network was not trained for."""
  if times.max() > total - 1:
    raise ValueError(
      f'{len(times)} steps begin at time {times.max():g}, after the last of '
      f'{total}: take fewer steps, or a smaller steps_offset'
    )
