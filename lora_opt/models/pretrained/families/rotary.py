"""Reads the base and the scaling of rotary positions from config.json."""

import math
from typing import Any

import numpy as np

from lora_opt.models.fields import BOUNDS
from lora_opt.models.pretrained.config_file import ConfigFile, Settings
from lora_opt.reading import values
from lora_opt.reading.values import shown

# The parameters that each recipe of rotary scaling needs, those it may have,
# and those that every recipe may have.
NEEDED = {
  'default': set(),
  'dynamic': {'factor'},
  'linear': {'factor'},
  'llama3': {
    *('factor', 'low_freq_factor', 'high_freq_factor'),
    'original_max_position_embeddings',
  },
  'longrope': {'short_factor', 'long_factor'},
  'yarn': {'factor'},
}
OPTIONAL = {
  'longrope': {'factor', 'attention_factor'},
  'yarn': {
    *('attention_factor', 'beta_fast', 'beta_slow'),
    *('mscale', 'mscale_all_dim', 'truncate'),
  },
}
ALWAYS = {
  *('rope_type', 'type', 'rope_theta'),
  'original_max_position_embeddings',
}


def scaling(
  settings: ConfigFile, sizes: dict[str, Any], theta: float = 10_000.0
) -> dict[str, Any]:
  """Reads the fields of `DecoderConfig` for rotary positions.

  Args:
    settings: The file.
    sizes: The model's head_dim and max_length.
    theta: Used if rope_theta is absent.
  """
  rope = section(settings)
  theta = base(settings, rope, 'rope_theta', theta)
  return {'rope_theta': theta, **recipe(rope, theta, **context(sizes))}


def section(settings: ConfigFile) -> Settings:
  """The recipe; in transformers 5 it is rope_parameters, with theta inside."""
  settings.expect_one('rope_parameters', 'rope_scaling')
  name = 'rope_parameters' if 'rope_parameters' in settings else 'rope_scaling'
  return settings.section(name)


def context(sizes: dict[str, Any]) -> dict[str, int]:
  """The arguments of `recipe` that follow from the sizes of a model."""
  return {'width': sizes['head_dim'], 'length': sizes['max_length']}


def base(
  settings: ConfigFile, rope: Settings, outside: str, default: float
) -> float:
  """Reads theta, in the recipe or outside; ValueError if both differ."""
  bounds = {'least': BOUNDS['rope_theta'][0], 'most': BOUNDS['rope_theta'][1]}
  found = settings.number(outside, default, **bounds, null=True)
  theta = rope.number('rope_theta', found, **bounds, null=True)
  if outside in settings and theta != found:
    raise ValueError(
      f'{settings.place}: {outside}={found} outside, but rope_theta={theta} in '
      f'{rope.place}; delete the wrong one'
    )
  return theta


def recipe(
  rope: Settings,
  theta: float,
  *,
  width: int,
  length: int,
  original: int | None = None,
  kinds: dict[str, str] | None = None,
  besides: tuple[str, ...] = (),
) -> dict[str, Any]:
  """Converts a scaling recipe to fields of `DecoderConfig`.

  Args:
    rope: The recipe: rope_type and its parameters.
    theta: Base of the wavelengths.
    width: Dimensions of a head that are rotated; at most 2^14.
    length: The context length of the model.
    original: The context length before it was extended, if the file has it
      outside the recipe; takes precedence over that in the recipe.
    kinds: Maps the names that the recipe may have to those in `NEEDED`; by
      default, the names are the same.
    besides: Further parameters, which the caller reads.

  Returns:
    The fields by name; empty without scaling.

  Raises:
    ValueError: The recipe is unknown, lacks a parameter or has an unknown one.
  """
  kinds = kinds or {kind: kind for kind in NEEDED}
  old = rope.choose('type', kinds, 'default', null=True)
  kind = rope.choose('rope_type', kinds, old, null=True)
  if 'type' in rope and 'rope_type' in rope:
    rope.expect('type', rope.get('rope_type'))
  _check_parameters(rope, kind, besides)
  inside = rope.integer('original_max_position_embeddings', length, null=True)
  original = original or inside
  if kind == 'default':
    return {}
  if kind == 'longrope':
    return _longrope(rope, length, original)
  factor = rope.number('factor')
  if kind == 'linear':
    return {'rope_divisors': (factor,) * (width // 2)}
  if kind == 'dynamic':
    return {'dynamic_rope': factor, 'rope_context': length}
  if kind == 'yarn':
    return _yarn(rope, theta, width, factor, original)
  low = rope.number('low_freq_factor')
  high = rope.number('high_freq_factor', above=low)
  wavelengths = 2 * np.pi * theta ** (np.arange(0, width, 2) / width)
  # 0 for wavelengths beyond the original context, 1 for short ones.
  smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
  return {'rope_divisors': _blended(smooth, factor)}


def _check_parameters(rope, kind, besides):
  """Raises ValueError unless a recipe has what it needs and nothing unknown."""
  needed, found = NEEDED[kind], set(rope.keys())
  known = needed | OPTIONAL.get(kind, set())
  missing, unknown = needed - found, found - known - ALWAYS - {*besides}
  if missing or unknown:
    raise ValueError(
      f'{rope.place}: rope scaling {kind!r} has the parameters '
      f'{", ".join(sorted(known)) or "none"}; missing: '
      f'{", ".join(sorted(missing)) or "none"}, unknown: '
      f'{shown(", ".join(sorted(unknown)))[1:-1] or "none"}'
    )


def _blended(kept, factor):
  """Divisors of frequencies that are kept (1), divided (0) or in between."""
  return tuple(float(x) for x in 1 / ((1 - kept) / factor + kept))


def _yarn(rope, theta, width, factor, original):
  """YaRN (arXiv 2309.00071): slow pairs are divided, fast ones kept."""
  if theta <= 1:
    raise ValueError(f'{rope.place}: yarn needs a rope_theta above 1')

  def pair(turns):
    """Index of the pair that makes so many turns in the original context."""
    return width * math.log(original / (turns * 2 * math.pi)) / rate

  rate = 2 * math.log(theta)
  first = pair(rope.number('beta_fast', 32, most=1e6, null=True))
  last = pair(rope.number('beta_slow', 1, most=1e6, null=True))
  if rope.boolean('truncate', True, null=True):
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, width - 1)
  last += 0.001 if first == last else 0  # no division by zero
  kept = 1 - np.clip((np.arange(width // 2) - first) / (last - first), 0, 1)
  return {
    'rope_divisors': _blended(kept, factor),
    'rope_gain': _yarn_gain(rope, factor),
  }


def _yarn_gain(rope, factor):
  """The factor that rotated queries and keys are multiplied by."""

  def gain(scale):
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

  one = rope.number('mscale', 0.0, above=None, least=0, null=True)
  all_ = rope.number('mscale_all_dim', 0.0, above=None, least=0, null=True)
  inferred = gain(one) / gain(all_) if one and all_ else gain(1.0)
  return rope.number('attention_factor', inferred, null=True)


def _longrope(rope, length, original):
  """LongRoPE (arXiv 2402.13753): divisors for short and for long texts."""
  short, long = (
    tuple(
      float(values.number(x, f'{rope.place}: {key}', above=0))
      for x in rope.items(key)
    )
    for key in ('short_factor', 'long_factor')
  )
  factor = rope.number('factor', length / original, null=True)
  gain = 1.0
  if factor > 1:
    values.integer(original, f'{rope.place}: original context', least=2)
    gain = math.sqrt(1 + math.log(factor) / math.log(original))
  return {
    'rope_divisors': short,
    'long_rope_divisors': long,
    'rope_context': original,
    'rope_gain': rope.number('attention_factor', gain, null=True),
  }


def written(config: Any) -> dict[str, Any]:
  """The rotary settings of a config; the inverse of `scaling`.

  Raises:
    ValueError: If the recipe's parameters cannot be derived from its divisors.
  """
  c, factors, rope = config, set(config.rope_divisors), None
  beyond = c.dynamic_rope is not None and c.rope_context != c.max_length
  if len(factors) > 1 or c.long_rope_divisors or c.rope_gain != 1 or beyond:
    raise ValueError(
      'rope_divisors that differ from each other or with the length of a text, '
      'and rope_gain, have no config.json; give the folder the model came from'
    )
  if c.dynamic_rope is not None:
    rope = {'rope_type': 'dynamic', 'factor': c.dynamic_rope}
  elif factors:
    rope = {'rope_type': 'linear', 'factor': max(factors)}
  return {'rope_theta': c.rope_theta, 'rope_scaling': rope}
