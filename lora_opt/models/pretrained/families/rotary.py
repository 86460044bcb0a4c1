"""Rotary positions, as config.json says how far apart and how scaled."""

import numpy as np

from lora_opt.models.fields import BOUNDS
from lora_opt.models.pretrained.config_file import ConfigFile, Settings
from lora_opt.reading.values import shown

# Of each recipe of rotary scaling, its parameters; and what any may have.
ROPE_PARAMETERS = {
  'default': set(),
  'linear': {'factor'},
  'llama3': {
    *('factor', 'low_freq_factor', 'high_freq_factor'),
    'original_max_position_embeddings',
  },
}
ROPE_ALWAYS = {
  *('rope_type', 'type', 'rope_theta'),
  'original_max_position_embeddings',
}


def scaling(
  settings: ConfigFile, head_dim: int
) -> tuple[float, tuple[float, ...]]:
  """Returns theta and the divisors of the frequencies."""
  # transformers 5 calls it rope_parameters and keeps theta inside.
  settings.expect_one('rope_parameters', 'rope_scaling')
  name = 'rope_parameters' if 'rope_parameters' in settings else 'rope_scaling'
  rope = settings.section(name)
  theta = base(settings, rope, 'rope_theta', 10_000.0)
  return theta, divisors(rope, theta, head_dim)


def base(
  settings: ConfigFile, rope: Settings, outside: str, default: float
) -> float:
  """Theta, in the recipe or outside; refused if both are there and differ."""
  bounds = {'least': BOUNDS['rope_theta'][0], 'most': BOUNDS['rope_theta'][1]}
  found = settings.number(outside, default, **bounds, null=True)
  theta = rope.number('rope_theta', found, **bounds, null=True)
  if outside in settings and theta != found:
    raise ValueError(
      f'{settings.place}: {outside}={found} outside, but rope_theta={theta} in '
      f'{rope.place}; delete the wrong one'
    )
  return theta


def divisors(rope: Settings, theta: float, head_dim: int) -> tuple[float, ...]:
  """The divisors of the frequencies that a scaling recipe stands for.

  Args:
    rope: The recipe: rope_type and its parameters.
    theta: Base of the wavelengths.
    head_dim: Width of a head; at most 2^14.
  """
  kinds = {kind: kind for kind in ROPE_PARAMETERS}
  old = rope.choose('type', kinds, 'default', null=True)
  kind = rope.choose('rope_type', kinds, old, null=True)
  if 'type' in rope:
    rope.expect('type', kind)
  needed, found = ROPE_PARAMETERS[kind], set(rope.keys())
  missing, unknown = needed - found, found - needed - ROPE_ALWAYS
  if missing or unknown:
    raise ValueError(
      f'{rope.place}: rope scaling {kind!r} has the parameters '
      f'{", ".join(sorted(needed)) or "none"}; missing: '
      f'{", ".join(sorted(missing)) or "none"}, unknown: '
      f'{shown(", ".join(sorted(unknown)))[1:-1] or "none"}'
    )
  if 'original_max_position_embeddings' in rope:
    context = rope.integer('original_max_position_embeddings')
  if kind == 'default':
    return ()
  factor = rope.number('factor')
  if kind == 'linear':
    return (factor,) * (head_dim // 2)
  low = rope.number('low_freq_factor')
  high = rope.number('high_freq_factor', above=low)
  wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
  # 0 for wavelengths beyond the original context, 1 for short ones.
  smooth = np.clip((context / wavelengths - low) / (high - low), 0, 1)
  return tuple(float(x) for x in 1 / ((1 - smooth) / factor + smooth))
