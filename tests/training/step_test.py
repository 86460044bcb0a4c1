"""The training step: its gradient, its parts, its devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_opt
from lora_opt.devices.partitioning import Partitioner, put
from lora_opt.training.step import (
  clip_by_global_norm,
  make_train_step,
  split_batch,
)
from lora_opt.training.train_state import create_train_state

pytestmark = pytest.mark.usefixtures('fast_compile')


@pytest.fixture(scope='module')
def batch(task, model):
  batches = task.train_batches(model.tokenizer, length=64, batch_size=4, seed=0)
  return next(iter(batches))


def rounded(x, dtype):
  """What bfloat16 can hold, in this type; None changes nothing."""
  return x if dtype is None else x.astype(jnp.bfloat16).astype(dtype)


def run(model, batch, optimizer=None, dtype=None, **settings):
  placement = Partitioner().place(model)
  optimizer = optimizer or optax.sgd(1.0)
  lora = jax.tree.map(
    # Away from B = 0, where the gradient of A vanishes.
    lambda x: rounded(x + 0.01, dtype), model.init(jax.random.key(1))
  )  # fmt: skip
  lora = put(lora, placement.trainable)
  state = create_train_state(lora, optimizer, placement)
  step = make_train_step(model, optimizer, placement, state, **settings)
  start = jax.tree.map(np.asarray, state.lora)
  after, metrics = step(state, model.base, placement.put_rows(batch))
  return start, after, {k: float(v) for k, v in metrics.items()}


def test_sgd_step_is_the_gradient_of_the_mean_loss_of_the_targets(model, batch):
  start, after, metrics = run(model, batch, seed=3)
  rng = jax.random.fold_in(
    jax.random.fold_in(jax.random.key(3), jnp.int32(0)), 0
  )

  def loss(lora):
    losses = model.token_losses(model.base, lora, batch, rng)
    return (losses * batch['weights']).sum() / batch['weights'].sum()

  value, grads = jax.jit(jax.value_and_grad(loss))(start)
  assert metrics['loss'] == pytest.approx(float(value), rel=1e-5)
  assert metrics['target_tokens'] == batch['weights'].sum()
  assert int(after.step) == 1
  for new, old, grad in zip(
    *map(jax.tree.leaves, (after.lora, start, grads)), strict=True
  ):
    # Two float32 programs of the same sums, in other orders.
    np.testing.assert_allclose(new, old - grad, rtol=0, atol=2e-6)


def test_microbatches_do_not_change_the_step(model, batch):
  still = model_without_dropout(model)
  _, whole, metrics = run(still, batch)
  _, parts, part_metrics = run(still, batch, microbatches=4)
  assert part_metrics['loss'] == pytest.approx(metrics['loss'], rel=1e-5)
  for a, b in zip(*map(jax.tree.leaves, (whole, parts)), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


def test_microbatches_are_added_up_in_float32(model, batch):
  """Bfloat16 adapters: 64 parts give what one gives, but for its rounding."""
  still = model_without_dropout(model)
  rows = {name: np.repeat(x, 16, axis=0) for name, x in batch.items()}

  def gradient(dtype, microbatches):
    # What each part gives varies with its row.
    weights = rows['weights'] * np.linspace(0.2, 1.8, 64)[:, None]
    _, after, _ = run(
      still,
      rows | {'weights': weights.astype(np.float32)},
      optax.GradientTransformation(
        lambda p: jax.tree.map(jnp.zeros_like, p),
        lambda g, s, p=None: (jax.tree.map(jnp.zeros_like, g), g),
      ),
      dtype=dtype,
      microbatches=microbatches,
    )
    return jax.tree.map(lambda x: np.asarray(x, np.float64), after.opt_state)

  exact = gradient(jnp.float32, 1)
  parts = gradient(jnp.bfloat16, 64)
  for x, y in zip(*map(jax.tree.leaves, (exact, parts)), strict=True):
    # Each part is rounded to bfloat16 by itself (2^-9), and so is their sum.
    assert np.linalg.norm(x - y) < 2 * 2.0**-9 * np.linalg.norm(x)


def test_the_norm_of_bfloat16_gradients_is_clipped_in_float32():
  grads = {'a': jnp.ones(300_000, jnp.bfloat16), 'b': jnp.ones(3, jnp.bfloat16)}
  clip = clip_by_global_norm(1.0)
  clipped, _ = clip.update(grads, clip.init(grads))
  exact = 1 / np.sqrt(300_003)
  assert clipped['a'].dtype == jnp.bfloat16
  assert float(clipped['a'][0]) == pytest.approx(exact, rel=2**-8)
  same = optax.clip_by_global_norm(1.0)
  plain = {'a': jnp.linspace(0.0, 3.0, 50)}
  for mine, theirs in zip(
    clip.update(plain, clip.init(plain)),
    same.update(plain, same.init(plain)),
    strict=True,
  ):
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)


@pytest.mark.parametrize(
  'optimizer',
  [lora_opt.adamw(1e-3), optax.apply_if_finite(optax.adam(1e-3), 3)],
)
def test_a_step_that_the_optimizer_skips_is_counted(model, batch, optimizer):
  bad = batch | {'weights': batch['weights'] * np.float32('nan')}
  assert run(model, batch, optimizer)[2]['skipped_steps'] == 0
  start, after, metrics = run(model, bad, optimizer)
  assert (metrics['skipped_steps'], metrics['skipped']) == (1, 1)
  jax.tree.map(np.testing.assert_array_equal, after.lora, start)
  assert 'skipped' not in run(model, bad, optax.adam(1e-3))[2]


def model_without_dropout(model):
  import dataclasses

  lora = dataclasses.replace(model.lora_config, dropout=0.0)
  return dataclasses.replace(model, lora_config=lora)


def test_loss_normalizing_factor_divides_the_sum(model, batch):
  _, _, mean = run(model, batch)
  _, _, fixed = run(model, batch, loss_normalizing_factor=10.0)
  expected = mean['loss'] * mean['target_tokens'] / 10
  assert fixed['loss'] == pytest.approx(expected, rel=1e-5)


def test_dropout_differs_by_seed_only(model, batch):
  losses = [run(model, batch, seed=seed)[2]['loss'] for seed in (1, 1, 2)]
  assert losses[0] == losses[1] != losses[2]


def test_split_batch_keeps_every_row_once():
  rows = np.arange(12).reshape(6, 2)
  parts = split_batch({'x': jnp.asarray(rows)}, 3)['x']
  assert parts.shape == (3, 2, 2)
  assert sorted(np.asarray(parts).reshape(6, 2).tolist()) == rows.tolist()


def test_batch_that_does_not_divide_is_refused(model):
  with pytest.raises(ValueError, match='batch_size=3 .* microbatches=2'):
    Partitioner().place(model).check_batch(3, microbatches=2)
