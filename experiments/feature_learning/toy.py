"""The toy model of LoRA+: one hidden layer of any width, learned by LoRA.

  f(x) = w_out . relu(h0(x) + z(x) A B),    z(x) = relu(x W_in)

Only A (width, rank) and B (rank, width) are trained. In the paper's toy model,
the hidden layer is only A B, that is h0 = 0. Then A = 0 or B = 0 cannot be a
start: all units are at relu(0), whose derivative is zero, and nothing ever
moves. For those two starts, LoRA is added to a frozen random layer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

INPUTS, RANK = 5, 4
STARTS = ('Init[1]', 'Init[2]', 'both random')


class Toy(NamedTuple):
  """Frozen arrays; z and h0 do not change, so they are computed once."""

  z: jax.Array  # (points, width)
  h0: jax.Array  # (points, width)
  last: jax.Array  # (width,)
  y: jax.Array  # (points,)


def make(key, width: int, points: int, start: str):
  """Returns (Toy, factors); y is the sine of the sum of x / sqrt(inputs)."""
  keys = jax.random.split(key, 6)
  normal = jax.random.normal
  x = normal(keys[0], (points, INPUTS))
  z = jax.nn.relu(x @ normal(keys[1], (INPUTS, width)) * INPUTS**-0.5)
  h0 = jnp.zeros((points, width))
  if start != 'both random':
    h0 = z @ normal(keys[2], (width, width)) * (2 / width) ** 0.5
  toy = Toy(
    z,
    h0,
    normal(keys[3], (width,)) * width**-0.5,
    jnp.sin(jnp.sum(x, axis=1) * INPUTS**-0.5),
  )
  a = normal(keys[4], (width, RANK)) * width**-0.5
  b = normal(keys[5], (RANK, width)) * RANK**-0.5
  if start == 'Init[1]':
    b = 0 * b
  if start == 'Init[2]':
    a = 0 * a
  return toy, {'lora_a': a, 'lora_b': b}


def loss_fn(factors, toy: Toy):
  """Mean squared error over the points."""
  h = toy.h0 + (toy.z @ factors['lora_a']) @ factors['lora_b']
  return jnp.mean(jnp.square(jax.nn.relu(h) @ toy.last - toy.y))


def terms(old, new, toy: Toy):
  """Root mean squares (3,) of the parts of the change of z A B.

  The parts are z dA B, linear in the step of A; z A dB, linear in the step of
  B; and z dA dB.
  """
  d_a = new['lora_a'] - old['lora_a']
  d_b = new['lora_b'] - old['lora_b']
  parts = (
    (toy.z @ d_a) @ old['lora_b'],
    (toy.z @ old['lora_a']) @ d_b,
    (toy.z @ d_a) @ d_b,
  )
  return jnp.sqrt(jnp.array([jnp.mean(jnp.square(p)) for p in parts]))


def train(tx, toy: Toy, factors, steps: int):
  """(losses before each step and after the last (1 + steps,), terms)."""

  def step(carry, _):
    old, state = carry
    loss, gradients = jax.value_and_grad(loss_fn)(old, toy)
    updates, state = tx.update(gradients, state, old)
    new = jax.tree.map(jnp.add, old, updates)
    return (new, state), (loss, terms(old, new, toy))

  carry = factors, tx.init(factors)
  (factors, _), (losses, sizes) = jax.lax.scan(step, carry, length=steps)
  return jnp.append(losses, loss_fn(factors, toy)), sizes
