"""The problems that the variants train on, with losses that start at one."""

import jax
import jax.numpy as jnp

from experiments import student

STUDENT_WIDTH, STUDENT_RANK = 64, 8
FAN_IN, FAN_OUT, RANK, BATCH, CONDITION = 48, 32, 8, 64, 100.0
# One batch in SPIKE_EVERY has inputs that are SPIKE_SIZE times too large.
SPIKE_EVERY, SPIKE_SIZE = 25, 10.0


def cosine(rate, steps):
  """A cosine schedule from the rate to zero."""
  return lambda count: rate * (1 + jnp.cos(jnp.pi * count / steps)) / 2


def on_student(make, b_std, rate, seed, steps):
  """Trains `experiments.student`; returns the mean loss of the last tenth."""
  keys = jax.random.split(jax.random.key(seed), 4)
  problem = student.make_problem(keys[0], STUDENT_WIDTH, 1.0)
  lora = student.init_lora(keys[1], STUDENT_WIDTH, STUDENT_RANK)
  lora['lora_b'] += b_std * jax.random.normal(keys[3], lora['lora_b'].shape)
  tx = make(cosine(rate, steps))
  _, losses = student.train(tx, problem, lora, keys[2], steps)
  return jnp.mean(losses[-max(steps // 10, 1) :])


def on_matrix(make, b_std, rate, seed, steps, spikes=False):
  """Learns x -> x Y from batches; both x and Y have a condition of 100.

  Y (48, 32) has rank 8 like the factors, and its squared singular values span
  1e4. The variances of x span 1e2. Returns the exact loss at the end.
  """
  keys = jax.random.split(jax.random.key(seed), 6)
  left, right, basis = (
    jnp.linalg.qr(jax.random.normal(k, shape))[0]
    for k, shape in zip(
      keys, ((FAN_IN, RANK), (FAN_OUT, RANK), (FAN_IN, FAN_IN)), strict=False
    )
  )
  y = (left * jnp.geomspace(1.0, 1 / CONDITION, RANK)) @ right.T
  root = jnp.sqrt(jnp.geomspace(1.0, 1 / CONDITION, FAN_IN))[:, None] * basis.T
  unit = jnp.sum(jnp.square(root @ y))

  def step(carry, inputs):
    lora, state = carry
    key, count = inputs
    x = jax.random.normal(key, (BATCH, FAN_IN)) @ root
    if spikes:
      spike = count % SPIKE_EVERY == SPIKE_EVERY - 1
      x = x * jnp.where(spike, SPIKE_SIZE, 1.0)

    def loss(lora):
      missing = x @ lora['lora_a'] @ lora['lora_b'] - x @ y
      return jnp.sum(jnp.square(missing)) / BATCH / unit

    updates, state = tx.update(jax.grad(loss)(lora), state, lora)
    return (jax.tree.map(jnp.add, lora, updates), state), None

  lora = {
    'lora_a': jax.random.normal(keys[3], (FAN_IN, RANK)) * FAN_IN**-0.5,
    'lora_b': b_std * jax.random.normal(keys[4], (RANK, FAN_OUT)),
  }
  tx = make(cosine(rate, steps))
  inputs = jax.random.split(keys[5], steps), jnp.arange(steps)
  (lora, _), _ = jax.lax.scan(step, (lora, tx.init(lora)), inputs)
  missing = root @ (lora['lora_a'] @ lora['lora_b'] - y)
  return jnp.sum(jnp.square(missing)) / unit


def on_spikes(make, b_std, rate, seed, steps):
  """`on_matrix` with gradients 100 times too large in one step out of 25."""
  return on_matrix(make, b_std, rate, seed, steps, spikes=True)


PROBLEMS = {'student': on_student, 'matrix': on_matrix, 'spikes': on_spikes}
