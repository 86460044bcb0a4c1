"""Settings for every test. Warnings are errors (pyproject.toml)."""

import gc
import os
import pathlib

# Before jax is imported: tests must not depend on the machine's accelerator.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

# Programs that one process compiled serve all others, and the next run.
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  str(pathlib.Path(__file__).parents[1] / '.pytest_cache' / 'compiled'),
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import jax
import pytest


def pytest_collection_finish():
  """Looks for garbage less often, and not among what is there to stay.

  Tracing makes so many objects that a tenth of all processor time went into it.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope='module', autouse=True)
def forget_compiled():
  """Compiled programs of a module are of no use to others, and fill memory."""
  yield
  jax.clear_caches()


@pytest.fixture(scope='module')
def fast_compile():
  """Compiles with few optimisations, where compiling takes longer than running.

  Full optimisation runs in what uses a real model or a process of its own.
  """
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture
def leave_gin_as_it_was():
  """What a test sets in gin does not reach the next one."""
  yield
  from lora_opt import config

  config.gin.clear_config()
