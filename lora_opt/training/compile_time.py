"""Remembers compile times, to show the last one while compiling again.

They are stored beside the compiled programs, in JAX's compilation cache: if the
cache is emptied, or there is none, programs are compiled anew. A program is
identified by its name, the shapes of its arguments, the devices and the version
of JAX.
"""

import contextlib
import hashlib
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from lora_opt import progress, writing
from lora_opt.devices.together import is_first
from lora_opt.reading.json_text import read_json
from lora_opt.reading.values import table

FILE = 'lora_opt_seconds.json'
_MOST = 500  # the number of programs that are remembered


@contextlib.contextmanager
def compiling(what: str, *trees: Any) -> Iterator[None]:
  """Shows how long the first call of a program takes, and took last time.

  Args:
    what: the name of the program.
    *trees: its arguments.
  """
  path, key = _file(), _key(what, trees)
  usual = None if path is None else _read(path).get(key)
  start = time.monotonic()
  with progress.waiting(f'compiling {what}', usual):
    yield
  if path is not None and is_first():
    seconds = round(time.monotonic() - start, 1)
    known = {name: s for name, s in _read(path).items() if name != key}
    known = dict([*known.items(), (key, seconds)][-_MOST:])
    with contextlib.suppress(OSError):  # the cache may be read-only
      writing.write_text(path, json.dumps(known, indent=1) + '\n')


def _file() -> pathlib.Path | None:
  folder = jax.config.jax_compilation_cache_dir
  if not folder or '://' in folder:
    return None
  return pathlib.Path(folder, FILE)


def _read(path: pathlib.Path) -> dict[str, float]:
  try:
    found = table(read_json(path), str(path))
  except (OSError, ValueError):
    return {}
  return {n: s for n, s in found.items() if isinstance(s, int | float)}


def _key(what: str, trees: Any) -> str:
  device = jax.devices()[0]
  words = [what, jax.__version__, device.device_kind, str(jax.device_count())]
  for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
    shape, kind = getattr(leaf, 'shape', ()), getattr(leaf, 'dtype', '')
    words.append(f'{jax.tree_util.keystr(path)} {shape} {kind}')
  return hashlib.sha256('\n'.join(words).encode()).hexdigest()[:16]
