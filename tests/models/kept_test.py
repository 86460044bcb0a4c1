"""What a layer keeps for the backward pass, under its name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt.models.kept import kept
from lora_opt.planning.operations import product_flops

LAYERS, WIDTH = 3, 8
POLICY = jax.checkpoint_policies.save_only_these_names('product')


def gradient(dtype):
  """Of the sum behind some layers, in the weights of all; and arguments."""
  x = jnp.ones((2, WIDTH), dtype)
  weights = jax.random.normal(jax.random.key(0), (LAYERS, WIDTH, WIDTH))

  @jax.checkpoint
  def plain(x, weight):
    return jnp.tanh(x @ weight), None

  def layer(x, weight):
    return jnp.tanh(kept(x @ weight, 'product')), None

  def total(layer, weights, x):
    return jax.lax.scan(layer, x, weights)[0].sum()

  named = jax.checkpoint(layer, policy=POLICY, prevent_cse=False)
  return (
    jax.grad(lambda w, x: total(named, w, x)),
    jax.grad(lambda w, x: total(plain, w, x)),
    (weights.astype(dtype), x),
  )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_it_changes_no_gradient(dtype):
  named, plain, given = gradient(dtype)
  np.testing.assert_array_equal(jax.jit(named)(*given), jax.jit(plain)(*given))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_what_is_kept_is_not_computed_again(dtype):
  named, plain, given = gradient(dtype)
  once, again = (
    product_flops(jax.make_jaxpr(f)(*given)) for f in (named, plain)
  )
  one = 2 * 2 * WIDTH**2 * LAYERS
  # Forward, and the gradients of layers and weights; or forward twice.
  assert (once, again) == (3 * one, 4 * one)


def test_stacks_of_bfloat16_are_integers():
  named, _, given = gradient('bfloat16')
  text = str(jax.make_jaxpr(named)(*given))
  assert f'u16[{LAYERS},2,{WIDTH}]' in text
