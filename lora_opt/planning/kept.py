"""What a compiler said of a program, kept for the next plan.

JAX's own cache does not serve here. A client that only compiles writes entries
to it and cannot read them (jax 0.10.2: "PjRtCompiler must be constructed with a
Client to call DeserializeLoadedExecutable"), so that a second plan would
compile again, and say a warning. A plan needs no program that runs: its text
and its sizes are kept, in the folder `plans` of JAX's cache.
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

# Of `compiled.memory_analysis()`.
SIZES = (
  'alias_size_in_bytes',
  'argument_size_in_bytes',
  'generated_code_size_in_bytes',
  'output_size_in_bytes',
  'peak_memory_in_bytes',
  'temp_size_in_bytes',
)
# What else compilers heed.
_ENVIRONMENT = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')


class Compiled(NamedTuple):
  """What a compiler made of a program.

  Attributes:
    text: The program as it will run.
    sizes: In bytes, by the names of `SIZES`.
    seconds: That compiling took, when it was done.
  """

  text: str
  sizes: Mapping[str, int]
  seconds: float


def compile_or_recall(
  lowered: jax.stages.Lowered,
  target: Target,
  options: Mapping[str, str | int | bool] | None = None,
) -> Compiled:
  """Compiles a program, or says what the same compiler said of the same one.

  What compilers of hardware say is kept where JAX has a compilation cache
  (`jax_compilation_cache_dir`). A program for simulated devices is an ordinary
  one, which JAX keeps by itself.

  Args:
    lowered: The program.
    target: What it is compiled for.
    options: For the compiler.

  Raises:
    jax.errors.JaxRuntimeError: The compiler refuses; that is not kept.
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
    # A cache that cannot be written is none.
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
  """The file of a program, named after all that its compiler is told."""
  folder = jax.config.jax_compilation_cache_dir
  if not folder:
    return None
  program = io.BytesIO()
  # With the places in the code, which the text will name.
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
  """Of a TPU its place in the network, and its slice."""
  names = ('coords', 'slice_index', 'process_index')
  return ' '.join(str(getattr(device, name, None)) for name in names)


def _read(file: pathlib.Path) -> Compiled | None:
  """What the file says; None where there is none, or it is damaged."""
  try:
    found = Compiled(**json.loads(gzip.decompress(file.read_bytes())))
    if set(found.sizes) == set(SIZES):
      return found
  except (OSError, EOFError, TypeError, ValueError, gzip.zlib.error):
    pass
  return None


@contextlib.contextmanager
def _without_jax_cache() -> Iterator[None]:
  """Within it JAX keeps no program. It asks its settings once: hence resets."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()
