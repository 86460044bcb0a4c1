"""Caches what a compiler reports about a program, for the next plan.

JAX's own cache cannot be used here. A compile-only client writes entries to it
but cannot read them (jax 0.10.2: "PjRtCompiler must be constructed with a
Client to call DeserializeLoadedExecutable"), so a second plan would compile
again and print a warning. A plan does not need an executable program: only its
text and its sizes are cached, in the folder `plans` of JAX's cache.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from lora_opt import writing
from lora_opt.planning.targets import Target

# Attributes of `compiled.memory_analysis()`.
SIZES = (
  'alias_size_in_bytes',
  'argument_size_in_bytes',
  'generated_code_size_in_bytes',
  'output_size_in_bytes',
  'peak_memory_in_bytes',
  'temp_size_in_bytes',
)
# Environment variables that affect compilers.
_ENVIRONMENT = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')


class Compiled(NamedTuple):
  """What a compiler reports about a program.

  Attributes:
    text: The compiled program.
    sizes: Name in `SIZES` -> size in bytes.
    seconds: Time that compiling took, when it was done.
  """

  text: str
  sizes: Mapping[str, int]
  seconds: float


def compile_or_recall(
  lowered: jax.stages.Lowered,
  target: Target,
  options: Mapping[str, str | int | bool] | None = None,
) -> Compiled:
  """Compiles a program, or returns what the same compiler reported before.

  Results of compilers for real hardware are cached if JAX has a compilation
  cache (`jax_compilation_cache_dir`). A program for simulated devices is an
  ordinary one, which JAX caches itself.

  Args:
    lowered: The program.
    target: What it is compiled for.
    options: Compiler options.

  Raises:
    jax.errors.JaxRuntimeError: The compiler refuses; this is not cached.
  """
  if not target.real:
    return _compile(lowered, options)
  file = _place(lowered, target, options)
  if file and (found := _read(file)):
    return found
  with _without_jax_cache():
    found = _compile(lowered, options)
  if file:
    data = json.dumps(found._asdict()).encode()
    # If the cache cannot be written, go on without it.
    with contextlib.suppress(OSError):
      writing.write_bytes(file, gzip.compress(data, 5, mtime=0))
  return found


def _compile(lowered, options) -> Compiled:
  start = time.monotonic()
  compiled = lowered.compile(compiler_options=options)
  seconds = time.monotonic() - start
  stats = compiled.memory_analysis()
  sizes = {name: getattr(stats, name) for name in SIZES}
  return Compiled(compiled.as_text(), sizes, seconds)


def _place(lowered, target: Target, options) -> pathlib.Path | None:
  """The cache file of a program, named by a hash of all compiler inputs."""
  folder = jax.config.jax_compilation_cache_dir
  if not folder:
    return None
  program = io.BytesIO()
  # Includes the source locations, which the compiled text contains.
  lowered.compiler_ir('stablehlo').operation.write_bytecode(file=program)
  told = [
    target.compiler,
    *(f'{name}={os.environ.get(name, "")}' for name in _ENVIRONMENT),
    json.dumps(dict(options or {}), sort_keys=True),
    *(f'{d.id} {d.device_kind} {_where(d)}' for d in target.devices),
  ]
  key = hashlib.sha256('\n'.join(told).encode() + b'\0' + program.getvalue())
  return pathlib.Path(folder, 'plans', f'{key.hexdigest()}.json.gz')


def _where(device: jax.Device) -> str:
  """The position of a TPU in the network, its slice and its process."""
  names = ('coords', 'slice_index', 'process_index')
  return ' '.join(str(getattr(device, name, None)) for name in names)


def _read(file: pathlib.Path) -> Compiled | None:
  """Reads a cache file; returns None if it is missing or damaged."""
  try:
    found = Compiled(**json.loads(gzip.decompress(file.read_bytes())))
    if set(found.sizes) == set(SIZES):
      return found
  except (OSError, EOFError, TypeError, ValueError, gzip.zlib.error):
    pass
  return None


@contextlib.contextmanager
def _without_jax_cache() -> Iterator[None]:
  """Turns JAX's cache off. It reads its settings once, hence the resets."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()
