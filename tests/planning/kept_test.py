"""What compilers say is kept, and taken for the same program alone."""

import jax
import jax.numpy as jnp
import pytest

from lora_opt.planning import kept, targets
from lora_opt.planning.chips import read_topology


@pytest.fixture
def cache(tmp_path, monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  yield tmp_path
  jax.config.update('jax_compilation_cache_dir', before)


@pytest.fixture
def target():
  pytest.importorskip('libtpu')
  return targets.find_target(read_topology('v5e-1'))


def lower(target, size=128):
  sharding = jax.sharding.SingleDeviceSharding(target.devices[0])
  x = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=sharding)
  return jax.jit(lambda x: x @ x).lower(x)


def ask(target, size=128):
  return kept.compile_or_recall(lower(target, size), target)


def files(cache):
  return [path for path in cache.rglob('*') if path.is_file()]


def test_the_second_time_nothing_is_compiled(cache, target, monkeypatch):
  compiled, make = [], kept._compile
  monkeypatch.setattr(
    kept, '_compile', lambda *given: compiled.append(1) or make(*given)
  )
  # From one place in the code, which is a part of the program's text.
  first, again = (ask(target) for _ in range(2))
  assert len(compiled) == 1 and again == first
  assert 'ENTRY' in first.text and first.sizes['peak_memory_in_bytes'] > 0
  (file,) = files(cache)  # and none of JAX's own, which it could not read
  assert file.parent.name == 'plans'


def test_what_the_compiler_is_told_tells_programs_apart(
  cache, target, monkeypatch
):
  for _ in range(3):
    other = target._replace(compiler='libtpu 1, JAX 2')
    lowered = lower(target)
    kept.compile_or_recall(lowered, other)
    kept.compile_or_recall(
      lowered, target, {'xla_tpu_scoped_vmem_limit_kib': 20000}
    )
    monkeypatch.setenv(
      'LIBTPU_INIT_ARGS', '--xla_tpu_scoped_vmem_limit_kib=20001'
    )
    kept.compile_or_recall(lowered, target)
    monkeypatch.delenv('LIBTPU_INIT_ARGS')
    kept.compile_or_recall(lower(target, 256), target)
  assert len(files(cache)) == 4


def test_a_damaged_file_is_as_none(cache, target):
  damages = (b'', b'{}', b'cut', b'turned')
  made = []
  for damage in (None, *damages):
    if damage is not None:
      (file,) = files(cache)
      whole = file.read_bytes()
      turned = whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]
      file.write_bytes(
        {b'cut': whole[:-20], b'turned': turned}.get(damage, damage)
      )
    made.append(ask(target))
  assert len({found.text for found in made}) == 1
  assert len(files(cache)) == 1 and kept._read(files(cache)[0]) == made[-1]


def test_without_a_folder_nothing_is_kept(target, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  try:
    ask(target)
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  assert not files(tmp_path)
