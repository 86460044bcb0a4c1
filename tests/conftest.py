"""Settings for every test. Warnings are errors (pyproject.toml)."""

import os

# Before jax is imported: tests must not depend on the machine's accelerator.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest


@pytest.fixture(scope='module')
def fast_compile():
  """Compiles with few optimisations, where compiling takes longer than running.

  Full optimisation runs in what uses a real model or a process of its own.
  """
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
