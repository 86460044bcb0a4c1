"""Small LoRA problems that several tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_opt


# These two repeat arguments of the recipes by name, since
# `optax.inject_hyperparams` looks for them in the signature.
def balanced_adamw(
  learning_rate,
  *,
  weight_decay=0.0,
  mask=None,
  mu_dtype=None,
  other=None,
  max_consecutive_skips=50,
):
  inner = lora_opt.adamw(
    learning_rate, weight_decay=weight_decay, mask=mask, mu_dtype=mu_dtype
  )
  return lora_opt.balanced(
    inner, other=other, max_consecutive_skips=max_consecutive_skips
  )


def recommended(
  learning_rate,
  *,
  weight_decay=0.0,
  mask=None,
  mu_dtype=None,
  other=None,
  max_consecutive_skips=50,
):
  """With its own schedule, unless it gets one."""
  return lora_opt.recommended(
    learning_rate,
    1000 if isinstance(learning_rate, float) else None,
    lora_scale=1.0,
    weight_decay=weight_decay,
    mask=mask,
    mu_dtype=mu_dtype,
    other=other,
    max_consecutive_skips=max_consecutive_skips,
  )


# One entry a recipe, and the variants that are other algorithms.
RECIPES = {
  name: getattr(lora_opt, name)
  for name in (
    'adamw',
    'altlora',
    'lamb',
    'lora_fa',
    'lora_muon',
    'lora_plus',
    'lora_pro',
    'lora_rite',
    'muon',
    'polora',
    'reflora',
    'reflora_s',
    'scaled_adamw',
    'scaled_gd',
    'shampoo',
  )
} | {
  'lora_rite low memory': functools.partial(
    lora_opt.lora_rite, low_memory=True
  ),
  'polora half each': functools.partial(lora_opt.polora, half_each=True),
  'recommended': recommended,
  'reflora real': functools.partial(lora_opt.reflora, refactoring='real'),
  'balanced': balanced_adamw,
}
# Learning rates at which the problems below are learnt in a few dozen steps.
RATES = dict.fromkeys(RECIPES, 0.03) | {
  'altlora': 40.0,
  'lamb': 0.1,
  'lora_muon': 0.15,
  'lora_pro': 0.1,
  'lora_rite': 0.05,
  'lora_rite low memory': 0.05,
  'muon': 0.3,
  'polora': 0.3,
  'polora half each': 0.3,
  'recommended': 3.0,
  'scaled_gd': 20.0,
}


# Each of the papers' and one that wraps; the rest is long where most of what a
# test compiles is shared by all.
SOON = ('adamw', 'balanced', 'lora_plus', 'lora_rite', 'polora', 'reflora')


def some_recipes(names=RECIPES):
  """A parameter `name`: some recipes by default, all of them under `long`."""
  return pytest.mark.parametrize(
    'name',
    [
      pytest.param(name, marks=[pytest.mark.long] * (name not in SOON))
      for name in names
    ],
  )


def recipe(name, *args, method='platform', **options):
  """The recipe of this name with its r x r work done by this method."""
  tx = RECIPES[name](*args, **options)
  return lora_opt.transforms.with_matrix_method(tx, method)


WITHOUT_STATE = ('scaled_gd',)


def reachable(name, params, rank=None) -> float:
  """The least loss a recipe can reach: LoRA-FA trains B alone."""
  if name != 'lora_fa':
    return 0.0
  targets, loss = targets_of(params, rank=rank), 0.0
  sites = lora_opt.pairs.find_sites(params)
  for site, (a, _) in lora_opt.pairs.extract_pairs(params, sites).items():
    a, target = np.asarray(a, np.float64), np.asarray(targets[site], np.float64)
    loss += np.mean(np.square(target - a @ (np.linalg.pinv(a) @ target)))
  return loss


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


def small_tree(dtype=jnp.float32, **options):
  """Without one of the shapes, each of which takes its time to compile."""
  tree = mixed_tree(dtype, **options)
  del tree['layers']['down']
  return tree


def targets_of(tree, seed=1, rank=None):
  """A random target for every a @ b, of low rank if asked for."""
  rng = np.random.default_rng(seed)
  targets = {}
  for s in lora_opt.pairs.find_sites(tree):
    target = rng.normal(size=(s.batch, s.fan_in, s.fan_out))
    if rank:
      left = rng.normal(size=(s.batch, s.fan_in, rank))
      target = left @ rng.normal(size=(s.batch, rank, s.fan_out))
    targets[s.name] = jnp.asarray(target, jnp.float32)
  return targets


def loss_fn(tree, targets):
  """Mean squared distance of every a @ b to its target."""
  sites = lora_opt.pairs.find_sites(tree)
  total = jnp.zeros((), jnp.float32)
  for name, (a, b) in lora_opt.pairs.extract_pairs(tree, sites).items():
    delta = jnp.matmul(a, b.mT).astype(jnp.float32)
    total += jnp.mean(jnp.square(delta - targets[name]))
  return total


@functools.lru_cache(maxsize=1)
def compiled(tx):
  """init and update, compiled once for all runs of a test with this `tx`."""
  return jax.jit(tx.init), jax.jit(tx.update)


class Trainer:
  """A compiled training step, to be used again: compiling is what costs."""

  def __init__(self, tx):
    self.tx = tx
    self.init = jax.jit(tx.init)
    self.update = jax.jit(tx.update)
    self._step = jax.jit(self._one)

  def _one(self, params, state, targets):
    gradients = jax.grad(loss_fn)(params, targets)
    updates, state = self.tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  def train(self, params, steps, rank=None):
    """(params, state, first loss, last loss)."""
    targets = targets_of(params, rank=rank)
    state, first = self.init(params), float(loss_fn(params, targets))
    for _ in range(steps):
      params, state = self._step(params, state, targets)
    return params, state, first, float(loss_fn(params, targets))


@functools.cache
def trainer(name) -> Trainer:
  """The trainer of a recipe with its defaults."""
  return Trainer(RECIPES[name](RATES[name]))


@functools.cache
def low_rank_trainer(name) -> Trainer:
  """The same, for gradients of low rank and without noise.

  PoLoRA's defaults, which are for noisy ones, make nearly no use of these: see
  its docstring.
  """
  if name.startswith('polora'):
    half_each = name == 'polora half each'
    return Trainer(lora_opt.polora(3.0, damping=0.1, half_each=half_each))
  return trainer(name)


def is_finite(tree):
  return all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(tree))
