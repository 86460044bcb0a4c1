"""What the backward pass keeps of a layer, by name."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


def kept(x: jax.Array, name: str) -> jax.Array:
  """x, which policies of `jax.checkpoint` know by a name.

  What they keep of every layer of a scan lies in one stack. XLA's compiler for
  CPUs has no way to write a layer of bfloat16 into it: it rewrites all of the
  stack in float32 and back, layer after layer. So the stack has the bits of
  bfloat16, as integers.

  >>> kept(jnp.ones(2, jnp.bfloat16), 'ones').dtype
  dtype(bfloat16)
  """
  if x.dtype == jnp.bfloat16:
    return _as_bits(x, name)
  return checkpoint_name(x, name)


def kept_in_rule(x: jax.Array, name: str) -> jax.Array:
  """The same in the forward rule of a `jax.custom_vjp`.

  Nothing is differentiated there, and policies find no name inside of another
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
