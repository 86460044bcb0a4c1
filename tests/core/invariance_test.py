"""Which changes of the factors, and of alpha, leave the path of delta_w."""

import functools

import jax
import numpy as np
import optax
import pytest

import lora_opt
from lora_opt import transforms
from tests.core import problems
from tests.core.methods_test import trajectory


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def group_element(kind, rank, rng):
  """A random T of the group."""
  orthogonal, _ = np.linalg.qr(rng.normal(size=(rank, rank)))
  if kind == 'GL(r)':  # condition 100
    other, _ = np.linalg.qr(rng.normal(size=(rank, rank)))
    return (orthogonal * np.geomspace(0.1, 10, rank)) @ other
  if kind == 'O(r)':
    return orthogonal
  if kind == 'signed permutations':
    return np.eye(rank)[rng.permutation(rank)] * rng.choice([-1, 1], rank)
  assert kind == 'scalars'
  return 3.0 * np.eye(rank)


def difference(tx, kind):
  """Largest relative difference of delta_w over a few steps."""
  rng = np.random.default_rng(0)
  pairs = problems.random_pairs(1)
  moved = []
  for a, b in pairs:
    t = group_element(kind, a.shape[1], rng)
    moved.append((a @ t, b @ np.linalg.inv(t).T))
  worst = 0.0
  paths = trajectory(tx, pairs, 5), trajectory(tx, moved, 5)
  for one, two in zip(*paths, strict=True):
    for (a1, b1), (a2, b2) in zip(one, two, strict=True):
      gap = np.linalg.norm(a1 @ b1.T - a2 @ b2.T)
      worst = max(worst, gap / np.linalg.norm(a1 @ b1.T))
  return worst


def refactored_sgd():
  return optax.chain(
    transforms.on_lora_pairs(transforms.precondition_by_refactoring()),
    optax.sgd(0.02),
  )


INVARIANT = [
  ('GL(r)', lora_opt.lora_rite(0.05)),
  (
    'GL(r)',
    lora_opt.lora_rite(0.05, weight_decay=0.1, escaped_mass='eigenvalues'),
  ),
  (
    'GL(r)',
    lora_opt.lora_rite(
      0.05, rebalance=True, cap_rms=0.5, skip_rms=1.3, max_relative_step=0.02
    ),
  ),
  ('GL(r)', refactored_sgd()),
  ('GL(r)', lora_opt.lora_rite(0.05, low_memory=True, weight_decay=0.1)),
  ('GL(r)', lora_opt.lora_rite(0.05, width_scaling=True, lora_scale=2.0)),
  ('GL(r)', lora_opt.lora_muon(0.1, weight_decay=0.1)),
  ('GL(r)', lora_opt.scaled_gd(0.3, reg=0.0)),
  ('GL(r)', lora_opt.scaled_gd(0.3, 0.9, reg=0.0)),
  ('GL(r)', lora_opt.altlora(0.3, weight_decay=0.1)),
  ('GL(r)', lora_opt.balanced(optax.sgd(0.02))),
  ('O(r)', optax.sgd(0.02, momentum=0.9)),
  ('O(r)', lora_opt.shampoo(0.02)),
  ('O(r)', lora_opt.polora(0.05, weight_decay=0.1)),
  # But for eps, which has the size of a squared gradient.
  ('scalars', lora_opt.polora(0.05, eps=0.0, half_each=True)),
  ('O(r)', lora_opt.scaled_gd(0.02, reg=1e-2)),
  ('signed permutations', lora_opt.adamw(0.02)),
  ('signed permutations', lora_opt.lora_plus(0.02)),
  ('signed permutations', lora_opt.reflora(0.02)),
  ('signed permutations', lora_opt.lora_pro(0.02)),
  ('signed permutations', lora_opt.reflora(0.02, refactoring='real')),
  ('scalars', lora_opt.reflora_s(0.02)),
]
NOT_INVARIANT = [
  ('GL(r)', optax.sgd(0.02)),
  ('O(r)', lora_opt.adamw(0.02)),
  ('O(r)', lora_opt.lora_plus(0.02)),
  ('O(r)', lora_opt.reflora(0.02)),
  ('O(r)', lora_opt.reflora_s(0.02)),
  ('scalars', lora_opt.adamw(0.02)),
  ('GL(r)', lora_opt.scaled_gd(0.02, reg=1e-2)),
  ('GL(r)', lora_opt.shampoo(0.02)),
  ('GL(r)', lora_opt.lora_pro(0.02)),
  ('GL(r)', lora_opt.muon(0.02)),
  ('GL(r)', lora_opt.polora(0.05)),
  ('scalars', lora_opt.polora(0.05)),
  ('GL(r)', lora_opt.polora(0.05, half_each=True)),
  ('O(r)', lora_opt.scaled_adamw(0.02)),
  ('O(r)', lora_opt.lora_fa(0.02)),
]


@pytest.mark.parametrize(
  'matrix_method',
  ['lapack', pytest.param('products', marks=pytest.mark.long)],
)
@pytest.mark.parametrize(('kind', 'tx'), INVARIANT)
def test_invariant(kind, tx, matrix_method):
  tx = transforms.with_matrix_method(tx, matrix_method)
  # Condition 1e2 of T, squared by Gram matrices: 1e4 roundings of 1e-16.
  assert difference(tx, kind) < 1e-9


@pytest.mark.parametrize(('kind', 'tx'), NOT_INVARIANT)
def test_not_invariant(kind, tx):
  assert difference(tx, kind) > 1e-4


@pytest.mark.parametrize('start', ['zero b', 'general'])
@pytest.mark.parametrize(
  'recipe',
  [
    functools.partial(lora_opt.lora_rite, 0.05),
    functools.partial(
      # What is bounded is of another size than at the first setting.
      *(lora_opt.lora_rite, 0.05, 0.9, 0.99, 0.1),
      **{'clip_norm': 20.0, 'skip_rms': 1.3, 'low_memory': True},
    ),
    functools.partial(lora_opt.lora_muon, 0.15),
    functools.partial(lora_opt.scaled_gd, 0.3, reg=0.0),
    functools.partial(lora_opt.altlora, 0.3),
    functools.partial(lora_opt.polora, 0.3, eps=0.0, half_each=True),
  ],
  ids=lambda recipe: recipe.func.__name__,
)
def test_told_alpha_the_path_does_not_depend_on_it(recipe, start):
  paths = []
  for scale in (1 / 3, 30.0):
    pairs = [
      (a, 0 * b if start == 'zero b' else b / scale)
      for a, b in problems.random_pairs(4)[:1]
    ]
    tx = recipe(lora_scale=scale)
    steps = trajectory(tx, pairs, scale=scale)
    paths.append([[scale * a @ b.T for a, b in step] for step in steps])
  for [x], [y] in zip(*paths, strict=True):
    # Roundings of 1e-16, times conditions of some tens, over eight steps.
    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-10)
