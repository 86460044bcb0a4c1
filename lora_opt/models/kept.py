"""Names for the values of a layer that the backward pass may keep."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


def kept(x: jax.Array, name: str) -> jax.Array:
  """Returns x with a name for the policies of `jax.checkpoint`.

  The values kept of all layers of a scan are in one stack. XLA's compiler for
  CPUs cannot write a bfloat16 layer into it in place: it converts the whole
  stack to float32 and back for every layer. So the stack holds the bits of
  bfloat16 as integers.

  >>> kept(jnp.ones(2, jnp.bfloat16), 'ones').dtype
  dtype(bfloat16)
  """
  if x.dtype == jnp.bfloat16:
    return _as_bits(x, name)
  return checkpoint_name(x, name)


def kept_in_rule(x: jax.Array, name: str) -> jax.Array:
  """`kept` for use in the forward rule of a `jax.custom_vjp`.

  Nothing is differentiated there, and policies do not find names inside another
  rule.
  """
  if x.dtype != jnp.bfloat16:
    return checkpoint_name(x, name)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint16)
  return jax.lax.bitcast_convert_type(checkpoint_name(bits, name), x.dtype)


_as_bits = jax.custom_jvp(kept_in_rule, nondiff_argnums=(1,))


@_as_bits.defjvp
def _as_bits_jvp(name, primals, tangents):
  return kept_in_rule(*primals, name), *tangents
