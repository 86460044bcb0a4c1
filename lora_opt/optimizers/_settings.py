"""The allowed range of each setting of the recipes, by its name."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

# (description of the allowed range, test for it)
_DECAY = ('at least 0 and less than 1', lambda x: 0 <= x < 1)
_AT_LEAST_ZERO = ('finite and at least 0', lambda x: 0 <= x < math.inf)
_AT_LEAST_ONE = ('finite and at least 1', lambda x: 1 <= x < math.inf)
_PART = ('above 0 and less than 1', lambda x: 0 < x < 1)
_POSITIVE = ('finite and above 0', lambda x: 0 < x < math.inf)

_RULES = {
  'learning_rate': _AT_LEAST_ZERO,
  'b1': _DECAY,
  'b2': _DECAY,
  'momentum': _DECAY,
  'rtol': _DECAY,
  'damping': _PART,
  'eps': _AT_LEAST_ZERO,
  'reg': _AT_LEAST_ZERO,
  'weight_decay': _AT_LEAST_ZERO,
  'lr_ratio': _AT_LEAST_ZERO,
  'embedding_ratio': _AT_LEAST_ZERO,
  'warmup_steps': _AT_LEAST_ZERO,
  'blend_steps': _AT_LEAST_ZERO,
  'max_consecutive_skips': _AT_LEAST_ZERO,
  'every': _AT_LEAST_ONE,
  'steps': _AT_LEAST_ONE,
  'lora_scale': _POSITIVE,
  'clip_norm': _POSITIVE,
  'skip_rms': _POSITIVE,
  'cap_rms': _POSITIVE,
  'max_relative_step': _POSITIVE,
  'max_spread': _POSITIVE,
}
_MAY_BE_NONE = frozenset(
  {
    'steps',
    'momentum',
    'embedding_ratio',
    'clip_norm',
    'skip_rms',
    'cap_rms',
    'max_relative_step',
    'max_spread',
    'max_consecutive_skips',
  }
)
_MAY_BE_SCHEDULES = frozenset({'learning_rate', 'weight_decay'})
# In 16 bits 0.999 may round to one, and 1e-8 to zero.
_NEED_32_BITS = frozenset({'b1', 'b2', 'momentum', 'eps', 'rtol'})

Recipe = Callable[..., optax.GradientTransformationExtraArgs]


def checked(recipe: Recipe) -> Recipe:
  """Makes a recipe reject settings that are out of range, by name.

  The values of traced numbers are not known yet, so their range is not
  checked, only their shape and dtype.

  Args:
    recipe: a function that makes an optimizer.

  Returns:
    The same function, which raises `ValueError` for such a setting.

  >>> @checked
  ... def rest(learning_rate):
  ...   return optax.set_to_zero()
  >>> rest(float('nan'))
  Traceback (most recent call last):
  ValueError: rest: learning_rate=nan must be finite and at least 0
  """
  signature = inspect.signature(recipe)

  @functools.wraps(recipe)
  def make(*args, **kwargs):
    bound = signature.bind(*args, **kwargs)
    for name, value in bound.arguments.items():
      if name in _RULES:
        _check(f'{recipe.__name__}: {name}', name, value)
    return recipe(*args, **kwargs)

  # For gin, which reads the parameters from the function itself.
  make.__signature__ = signature
  return make


def _check(place: str, name: str, value: Any) -> None:
  if value is None and name in _MAY_BE_NONE:
    return
  if callable(value) and name in _MAY_BE_SCHEDULES:
    return
  number = isinstance(value, (int, float)) or hasattr(value, 'dtype')
  if not number or isinstance(value, bool) or jnp.ndim(value):
    raise ValueError(f'{place} must be a number, not {value!r}')
  dtype = getattr(value, 'dtype', jnp.dtype(jnp.float32))
  if name in _NEED_32_BITS and dtype.itemsize < 4:
    raise ValueError(
      f'{place} comes in {dtype}, which has no room for such a number: keep it '
      'in float32 (optax.inject_hyperparams: hyperparam_dtype=jnp.float32)'
    )
  if isinstance(value, jax.core.Tracer):
    return
  what, is_good = _RULES[name]
  if not is_good(float(value)):
    raise ValueError(f'{place}={float(value):g} must be {what}')
