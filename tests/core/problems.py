"""Small LoRA problems that several tests share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lora_opt

RECIPES = {
  name: getattr(lora_opt, name)
  for name in ('adamw', 'lora_plus', 'reflora', 'reflora_s', 'lora_rite')
}
# Learning rates at which the problems below are learnt in a few dozen steps.
RATES = dict.fromkeys(RECIPES, 0.03) | {'lora_rite': 0.05}


def random_pairs(seed, shapes=((16, 24, 4), (10, 6, 3)), std=0.3):
  """[(A, B)], tall, float64."""
  rng = np.random.default_rng(seed)
  return [
    (rng.normal(0, std, (m, r)), rng.normal(0, std, (n, r)))
    for m, n, r in shapes
  ]


def to_tree(pairs):
  """Tall pairs as this project's models keep them."""
  return {
    f's{k}': {'lora_a': jnp.asarray(a), 'lora_b': jnp.asarray(b).mT}
    for k, (a, b) in enumerate(pairs)
  }


def from_tree(tree):
  return [
    (np.asarray(tree[k]['lora_a']), np.asarray(tree[k]['lora_b']).T)
    for k in sorted(tree)
  ]


def mixed_tree(dtype=jnp.float32, seed=0, zero_b=True):
  """Scanned and unscanned sites, several shapes and two ranks."""
  rng = np.random.default_rng(seed)

  def site(*shape_a, out):
    *batch, fan_in, rank = shape_a
    a = rng.normal(size=shape_a) / np.sqrt(fan_in)
    b = rng.normal(0, 0.0 if zero_b else 0.1, (*batch, rank, out))
    return {'lora_a': jnp.asarray(a, dtype), 'lora_b': jnp.asarray(b, dtype)}

  return {
    'layers': {
      'q': site(3, 12, 4, out=8),
      'down': site(3, 20, 4, out=12),
    },
    'head': site(12, 2, out=9),
    'tail': site(12, 2, out=9),
  }


def loss_of(tree, seed=1, rank=None):
  """Distance of every a @ b to a random matrix, of low rank if asked for."""
  rng = np.random.default_rng(seed)
  sites = lora_opt.pairs.find_sites(tree)
  targets = {}
  for s in sites:
    shape = s.batch, s.fan_in, s.fan_out
    target = rng.normal(size=shape)
    if rank:
      left = rng.normal(size=(s.batch, s.fan_in, rank))
      target = left @ rng.normal(size=(s.batch, rank, s.fan_out))
    targets[s.name] = jnp.asarray(target, jnp.float32)

  def loss(tree):
    pairs = lora_opt.pairs.extract_pairs(tree, sites)
    total = jnp.zeros((), jnp.float32)
    for name, (a, b) in pairs.items():
      delta = jnp.matmul(a, b.mT).astype(jnp.float32)
      total += jnp.mean(jnp.square(delta - targets[name]))
    return total

  return loss


def train(tx, params, loss, steps):
  """(params, state, first loss, last loss)."""

  def step(params, state):
    gradients = jax.grad(loss)(params)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  step = jax.jit(step)
  state, first = jax.jit(tx.init)(params), float(loss(params))
  for _ in range(steps):
    params, state = step(params, state)
  return params, state, first, float(loss(params))


def is_finite(tree):
  return all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(tree))
