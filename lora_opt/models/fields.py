"""Checks of the fields of a config, by their types and bounds.

The bounds are far beyond every published model. A larger value comes from a
damaged or malicious file, and would otherwise only be noticed when memory runs
out.
"""

import dataclasses
import types
import typing
from typing import Any

from lora_opt.reading import values

COUNT = (1, 2**30)  # the sum of two has at most 32 bits
BOUNDS = {
  'vocab_size': (1, 2**24),
  'embed_dim': (1, 2**20),
  'num_layers': (1, 10_000),
  'num_decoder_layers': (1, 10_000),
  'num_heads': (1, 2**14),
  'num_kv_heads': (1, 2**14),
  'head_dim': (1, 2**14),
  'mlp_dim': (1, 2**22),
  'norm_eps': (1e-30, 1.0),
  'rope_theta': (1.0, 1e15),
  'local_rope_theta': (1.0, 1e15),
  'rotary_dim': (2, 2**14),
  'rope_divisors': (1e-6, 1e6),
  'long_rope_divisors': (1e-6, 1e6),
  'rope_gain': (1e-6, 1e6),
  'dynamic_rope': (1e-6, 1e6),
  'attention_scale': (1e-6, 1e3),
  'attention_softcap': (1e-3, 1e6),
  'logit_softcap': (1e-3, 1e6),
}


def check_fields(config: Any, **bounds: tuple[float, float]) -> None:
  """Raises ValueError unless each field has its type and is within bounds.

  Args:
    config: A dataclass with fields of type bool, int, float or str, tuples of
      these, or one of these or None. Fields of other types are not checked.
    **bounds: The smallest and the largest value by field, in addition to
      `BOUNDS`; integers in neither must be within `COUNT`.
  """
  bounds = BOUNDS | bounds
  for field in dataclasses.fields(config):
    value, kind = getattr(config, field.name), field.type
    if isinstance(kind, types.UnionType):
      if value is None:
        continue
      kind = typing.get_args(kind)[0]
    limits = bounds.get(field.name)
    if typing.get_origin(kind) is tuple:
      if not isinstance(value, tuple):
        raise ValueError(f'{field.name}: expected a tuple, found {value!r}')
      for one in value:
        _check(one, field.name, typing.get_args(kind)[0], limits)
    else:
      _check(value, field.name, kind, limits)


def _check(value, name, kind, limits) -> None:
  if kind is bool:
    values.boolean(value, name)
  elif kind is int:
    values.integer(value, name, *(limits or COUNT))
  elif kind is float:
    values.number(value, name, *(limits or ()))
  elif kind is str:
    values.text(value, name)
