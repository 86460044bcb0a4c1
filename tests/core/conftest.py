"""Layers 0-3 are strict about ranks and dtypes; third-party code is not."""

import jax
import pytest


@pytest.fixture(autouse=True)
def core_settings():
  """No implicit broadcasting of ranks; compile fast, since steps are few.

  (Full optimisation runs in two_threads_test and in the training tests.)
  """
  jax.config.update('jax_disable_most_optimizations', True)
  try:
    with jax.numpy_rank_promotion('raise'):
      yield
  finally:
    jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(
  params=['lapack', pytest.param('products', marks=pytest.mark.long)]
)
def method(request):
  """How r x r work is done; the default on CPUs, and long, that elsewhere."""
  return request.param


@pytest.fixture
def strict():
  """No implicit widening of dtypes. (optax.scale_by_adam needs it.)"""
  with jax.numpy_dtype_promotion('strict'):
    yield
