"""Settings for every test. Warnings are errors (pyproject.toml)."""

import os
import shutil
import tempfile

# Before jax is imported: tests must not depend on the machine's accelerator.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

# Programs that one process compiled serve the others of the same test run.
_OWN_CACHE = 'JAX_COMPILATION_CACHE_DIR' not in os.environ
if _OWN_CACHE:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp('_compiled')

import jax
import pytest


def pytest_unconfigure(config):
  # Workers were given the folder by the process that made it.
  if _OWN_CACHE:
    shutil.rmtree(os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)


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
