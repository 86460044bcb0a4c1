"""The chunked cross-entropy against the full logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend.core import jaxprs_in_params

from lora_opt.models.loss import (
  adapted_cross_entropy,
  project_to_vocabulary,
  token_cross_entropy,
)

pytestmark = pytest.mark.usefixtures('fast_compile')


@pytest.fixture(name='problem')
def _problem():
  keys = jax.random.split(jax.random.key(0), 4)
  hidden = jax.random.normal(keys[0], (2, 5, 8))
  head = jax.random.normal(keys[1], (30, 8))
  targets = jax.random.randint(keys[2], (2, 5), 0, 30)
  weights = jax.random.normal(keys[3], (2, 5))
  return hidden, head, targets, weights


ALL = jnp.ones((2, 5), bool)
SOME = jnp.array([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0]], bool)


def full_losses(hidden, head, targets):
  logits = jax.nn.log_softmax(project_to_vocabulary(hidden, head))
  return -jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize('needed', [ALL, SOME], ids=['all', 'some'])
@pytest.mark.parametrize('chunk_rows', [1, 2, 4, 6, 100])
def test_value_and_gradient_are_those_of_full_logits(
  problem, chunk_rows, needed
):
  hidden, head, targets, weights = problem

  def chunked(hidden):
    losses = token_cross_entropy(hidden, head, targets, needed, chunk_rows)
    return (losses * weights).sum(), losses

  def full(hidden):
    losses = jnp.where(needed, full_losses(hidden, head, targets), 0)
    return (losses * weights).sum(), losses

  (_, losses), gradient = jax.value_and_grad(chunked, has_aux=True)(hidden)
  (_, expected), wanted = jax.value_and_grad(full, has_aux=True)(hidden)
  np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5)
  evaluated = token_cross_entropy(hidden, head, targets, needed, chunk_rows)
  np.testing.assert_array_equal(evaluated, losses)


@pytest.mark.parametrize('chunk_rows', [2, 100])
def test_adapter_of_the_head_is_a_change_of_the_head(problem, chunk_rows):
  hidden, head, targets, weights = problem
  down, up = jax.random.normal(jax.random.key(7), (2, 8, 3))
  up = jnp.tile(up.T, 4)[:, :30]

  def chunked(hidden, down, up):
    losses = adapted_cross_entropy(
      hidden, head, hidden @ down, up, targets, SOME, chunk_rows
    )
    return (losses * weights).sum()

  def full(hidden, down, up):
    losses = full_losses(hidden, head + (down @ up).T, targets)
    return (jnp.where(SOME, losses, 0) * weights).sum()

  both = [
    jax.value_and_grad(function, argnums=(0, 1, 2))(hidden, down, up)
    for function in (chunked, full)
  ]
  for actual, expected in zip(*map(jax.tree.leaves, both), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('adapted', [False, True])
def test_logits_are_capped(problem, adapted):
  hidden, head, targets, weights = problem
  cap, zero = 3.0, jnp.zeros((3, 30))

  def chunked(hidden):
    labels = (targets, SOME, 4, cap)
    if adapted:
      losses = adapted_cross_entropy(
        hidden, head, hidden[..., :3], zero, *labels
      )
    else:
      losses = token_cross_entropy(hidden, head, *labels)
    return (losses * weights).sum()

  def full(hidden):
    logits = cap * jnp.tanh(hidden @ head.T / cap)
    likelihoods = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(likelihoods, targets[..., None], -1)[..., 0]
    return (jnp.where(SOME, losses, 0) * weights).sum()

  both = [jax.value_and_grad(each)(hidden) for each in (chunked, full)]
  for actual, expected in zip(*both, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_no_gradient_for_the_frozen_head(problem):
  hidden, head, targets, _ = problem
  gradient = jax.grad(
    lambda head: token_cross_entropy(hidden, head, targets, ALL, 4).sum()
  )(head)
  assert not gradient.any()


def test_full_logits_never_exist(problem):
  hidden, head, targets, _ = problem
  program = jax.make_jaxpr(
    jax.grad(lambda h: token_cross_entropy(h, head, targets, ALL, 2).sum())
  )(hidden)
  # Two rows at a time: no array as large as (batch * length, vocab).
  sizes = [int(s) for s in _array_sizes(program.jaxpr)]
  assert max(sizes) < targets.size * head.shape[0]


@pytest.mark.parametrize(('platform', 'rows'), [('cpu', 256), ('tpu', 512)])
@pytest.mark.parametrize('adapted', [False, True])
def test_the_platform_chooses_how_many_logits(platform, rows, adapted):
  batch, length, vocab = 2, 768, 30
  hidden, head = jnp.ones((batch, length, 8)), jnp.ones((vocab, 8))
  labels = (jnp.zeros((batch, length), int), jnp.ones((batch, length), bool))

  def loss(hidden, head):
    if adapted:
      more = (hidden[..., :3], jnp.ones((3, vocab)))
      return adapted_cross_entropy(hidden, head, *more, *labels, None).sum()
    return token_cross_entropy(hidden, head, *labels, None).sum()

  traced = jax.jit(jax.grad(loss)).trace(hidden, head)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  found = set(re.findall(rf'tensor<(\d+)x{vocab}xf32>', text))
  assert found - {'3', '8'} == {str(rows)}


def _array_sizes(jaxpr):
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield np.prod(variable.aval.shape)
    for inner in jaxprs_in_params(equation.params):
      yield from _array_sizes(inner)


def test_a_chunk_is_that_of_a_device(problem):
  """More devices must not mean more, smaller products with the whole head."""
  hidden, head, targets, _ = problem

  def rounds(devices):
    mesh = jax.sharding.AbstractMesh((devices,), ('data',))
    rules = [('batch', 'data')]
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(rules):
      program = jax.make_jaxpr(
        lambda h: token_cross_entropy(h, head, targets, ALL, 2)
      )(hidden)
    return re.search(r'\blength=(\d+)', str(program))[1]

  # Two rows of five positions: on two devices each has two of its own at once.
  assert rounds(1) == '5'
  assert rounds(2) == '3'


def test_bfloat16_is_close(problem):
  hidden, head, targets, _ = problem
  half = [x.astype(jnp.bfloat16) for x in (hidden, head)]
  losses = token_cross_entropy(*half, targets, ALL, 4)
  assert losses.dtype == jnp.float32
  expected = full_losses(hidden, head, targets)
  # Logits of size 10 rounded to 8 bits.
  np.testing.assert_allclose(losses, expected, atol=0.1)
  gradient = jax.grad(
    lambda h: token_cross_entropy(h, half[1], targets, ALL, 4).sum()
  )(half[0])
  assert gradient.dtype == jnp.bfloat16
