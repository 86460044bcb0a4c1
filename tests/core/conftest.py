"""Layers 0-3 are strict about ranks and dtypes; third-party code is not."""

import jax
import pytest


@pytest.fixture(autouse=True)
def no_rank_promotion():
  """No implicit broadcasting of ranks."""
  with jax.numpy_rank_promotion('raise'):
    yield


@pytest.fixture
def strict():
  """No implicit widening of dtypes. (optax.scale_by_adam needs it.)"""
  with jax.numpy_dtype_promotion('strict'):
    yield
