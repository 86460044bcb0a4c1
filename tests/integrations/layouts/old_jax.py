"""For libraries that want a jax too old for `lora_opt` as a whole."""

import pathlib
import sys
import types

import jax

ROOT = pathlib.Path(__file__).parents[3]


def enter():
  """Lets `lora_opt.pairs` be imported, without the package's `__init__`."""
  package = types.ModuleType('lora_opt')
  package.__path__ = [str(ROOT / 'lora_opt')]
  sys.modules.setdefault('lora_opt', package)
  jax.tree_util.keystr = _keystr


def _keystr(path, *, simple, separator):
  """`jax.tree_util.keystr` with the arguments that jax had not yet."""
  assert simple
  names = (getattr(key, 'key', getattr(key, 'name', None)) for key in path)
  return separator.join(names)
