"""How noise is added to images, and what a network predicts.

x_t = signal_t x + noise_t n, where signal_t^2 + noise_t^2 = 1 (arXiv
2006.11239). The network predicts n, or v = signal_t n - noise_t x (2202.00512).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from lora_opt.models.fields import check_fields

SCHEDULES = ('linear', 'scaled_linear', 'squaredcos_cap_v2')
PREDICTIONS = ('epsilon', 'v_prediction')
# The largest beta of the cosine schedule.
_MOST_BETA = 0.999


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
  """How much noise there is at each time.

  Attributes:
    timesteps: Number of times, which start at 0.
    beta_start: Beta of the first step: the share of noise that it adds.
    beta_end: Beta of the last step.
    beta_schedule: 'linear' if betas are evenly spaced between these two,
      'scaled_linear' if their square roots are; 'squaredcos_cap_v2' follows a
      cosine and uses neither of the two.
    betas: The betas themselves, instead of a schedule; () to use the schedule.
    zero_terminal: Whether the schedule is rescaled so that nothing of the image
      is left at the last time (arXiv 2305.08891).
    prediction: What the network predicts, 'epsilon' or 'v_prediction'.

  Raises:
    ValueError: If a setting has the wrong type or is out of bounds, or the
      settings contradict each other.
  """

  timesteps: int = 1000
  beta_start: float = 0.00085
  beta_end: float = 0.012
  beta_schedule: str = 'scaled_linear'
  betas: tuple[float, ...] = ()
  zero_terminal: bool = False
  prediction: str = 'epsilon'

  def __post_init__(self):
    check_fields(
      self,
      timesteps=(2, 10**6),
      beta_start=(1e-12, 0.999),
      beta_end=(1e-12, 0.999),
      betas=(1e-12, 0.999),
    )
    for name, allowed in (
      ('beta_schedule', SCHEDULES),
      ('prediction', PREDICTIONS),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'{name}={getattr(self, name)!r} must be one of {", ".join(allowed)}'
        )
    if self.zero_terminal and self.prediction == 'epsilon':
      raise ValueError(
        'zero_terminal=True leaves nothing of an image at the last time, where '
        "its noise says nothing of it: take prediction='v_prediction'"
      )
    if len(self.betas) not in (0, self.timesteps):
      raise ValueError(
        f'betas has {len(self.betas)} entries, must have timesteps='
        f'{self.timesteps} or none'
      )

  @functools.cached_property
  def signal_squared(self) -> np.ndarray:
    """signal_t^2 as (timesteps,) float64, computed from betas in float32.

    Rounding to float32 makes a difference where little of an image is left, and
    the weights were trained with it.
    """
    kept = np.float32(1) - self._betas().astype(np.float32)
    products = np.cumprod(kept, dtype=np.float32).astype(np.float64)
    if not self.zero_terminal:
      return products
    roots = np.sqrt(products)
    return ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2

  def _betas(self) -> np.ndarray:
    if self.betas:
      return np.array(self.betas)
    ends = (self.beta_start, self.beta_end, self.timesteps)
    if self.beta_schedule == 'linear':
      return np.linspace(*ends)
    if self.beta_schedule == 'scaled_linear':
      return np.linspace(ends[0] ** 0.5, ends[1] ** 0.5, ends[2]) ** 2
    time = np.arange(self.timesteps + 1) / self.timesteps
    kept = np.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - kept[1:] / kept[:-1], _MOST_BETA)

  def scales(self, timesteps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """signal_t and noise_t at times (rows,), as (rows, 1, 1, 1) float32."""
    squared = self.signal_squared
    signal, noise = (
      jnp.asarray(np.sqrt(x), jnp.float32)[timesteps][:, None, None, None]
      for x in (squared, 1 - squared)
    )
    return signal, noise

  def add(
    self, images: jax.Array, noise: jax.Array, timesteps: jax.Array
  ) -> jax.Array:
    """Adds noise to images (rows, height, width, channels); float32."""
    signal, scale = self.scales(timesteps)
    return _times(signal, images) + _times(scale, noise)

  def target(
    self, images: jax.Array, noise: jax.Array, timesteps: jax.Array
  ) -> jax.Array:
    """What the network should predict; the arguments are those of `add`."""
    if self.prediction == 'epsilon':
      return noise
    signal, scale = self.scales(timesteps)
    return _times(signal, noise) - _times(scale, images)

  def loss_weights(self, timesteps: jax.Array, gamma: float) -> jax.Array:
    """The weights of squared errors, after arXiv 2303.09556.

    An error of the image has the weight min(snr, gamma). This is converted to
    the weight of an error of what the network predicts.

    Args:
      timesteps: (rows,).
      gamma: The largest weight of an error of the image, 5 in the paper.

    Returns:
      (rows,) float32.
    """
    squared = self.signal_squared
    snr = squared / (1 - squared)
    divisor = snr if self.prediction == 'epsilon' else snr + 1
    # If nothing of the image is left, its noise says nothing about it.
    divisor = np.where(divisor > 0, divisor, 1.0)
    weights = np.minimum(snr, gamma) / divisor
    return jnp.asarray(weights, jnp.float32)[timesteps]


def _times(scale: jax.Array, x: jax.Array) -> jax.Array:
  return jnp.broadcast_to(scale, x.shape) * x
