"""A network small enough for hundreds of runs: a student with LoRA, a teacher.

The teacher is the student with a planted change of rank four and spectral norm
one in each of its two square layers. All layers are scaled so that activations
have the same size at any width. Every step gets new inputs.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

INPUTS, OUTPUTS, PLANTED_RANK, BATCH = 32, 16, 4, 256


class Problem(NamedTuple):
  """Frozen arrays; LoRA is added to the two middle layers."""

  first: jax.Array  # (INPUTS, width)
  middle: jax.Array  # (2, width, width)
  last: jax.Array  # (width, OUTPUTS)
  planted: jax.Array  # (2, width, width)
  scale: float  # alpha / rank


def make_problem(key: jax.Array, width: int, scale: float) -> Problem:
  keys = jax.random.split(key, 5)

  def layer(key, *shape):
    return jax.random.normal(key, shape) * shape[-2] ** -0.5

  left, right = (
    jnp.linalg.qr(jax.random.normal(k, (2, width, PLANTED_RANK)))[0]
    for k in keys[3:]
  )
  return Problem(
    layer(keys[0], INPUTS, width),
    layer(keys[1], 2, width, width),
    layer(keys[2], width, OUTPUTS),
    left @ right.mT,
    scale,
  )


def init_lora(key: jax.Array, width: int, rank: int) -> dict[str, jax.Array]:
  """A random, B zero: (2, width, rank) and (2, rank, width)."""
  return {
    'lora_a': jax.random.normal(key, (2, width, rank)) * width**-0.5,
    'lora_b': jnp.zeros((2, rank, width)),
  }


def loss_fn(lora: dict[str, Any], problem: Problem, key: jax.Array):
  """Mean squared distance to the teacher, relative to that without LoRA."""
  x = jax.random.normal(key, (BATCH, INPUTS)) @ problem.first

  def run(change):
    h = jax.nn.relu(x)
    for i in range(2):
      h = jax.nn.relu(h @ problem.middle[i] + change(h, i))
    return h @ problem.last

  teacher = run(lambda h, i: h @ problem.planted[i])
  frozen = run(lambda h, i: 0.0)
  student = run(
    lambda h, i: problem.scale * (h @ lora['lora_a'][i]) @ lora['lora_b'][i]
  )
  distance = jnp.mean(jnp.square(student - teacher))
  return distance / jnp.mean(jnp.square(frozen - teacher))


def train(tx, problem: Problem, lora, key: jax.Array, steps: int):
  """Returns (factors, losses (steps,)); meant to be jitted and vmapped."""

  def step(carry, key):
    lora, state = carry
    loss, gradients = jax.value_and_grad(loss_fn)(lora, problem, key)
    updates, state = tx.update(gradients, state, lora)
    lora = jax.tree.map(jnp.add, lora, updates)
    return (lora, state), loss

  keys = jax.random.split(key, steps)
  (lora, _), losses = jax.lax.scan(step, (lora, tx.init(lora)), keys)
  return lora, losses
