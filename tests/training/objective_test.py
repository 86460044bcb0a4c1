"""DPO: its numbers, and that packing, parts and types do not change them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_opt
from lora_opt.data import tasks
from lora_opt.data.preference_batching import EncodedPreference
from lora_opt.devices.partitioning import Partitioner, put
from lora_opt.models import LoraConfig, random_model
from lora_opt.reading import parts
from lora_opt.training.objective import DPO
from lora_opt.training.step import make_train_step
from lora_opt.training.train_state import create_train_state

pytestmark = pytest.mark.usefixtures('fast_compile')

ROWS = [
  {'prompt': 'Two and two?', 'chosen': 'Four', 'rejected': 'Five, or six'},
  {'prompt': 'Hi', 'chosen': 'Hello there', 'rejected': 'No'},
  {'prompt': 'A colour?', 'chosen': 'Red', 'rejected': 'Seven'},
  {'prompt': 'é?', 'chosen': 'ü', 'rejected': 'Nothing'},
]
TASK = tasks.Preference(name='pairs', train=ROWS, eval=ROWS)


@pytest.fixture(scope='module')
def still():
  return random_model(LoraConfig(rank=2), num_layers=1, remat='none')


def trained(model, seed=1):
  """An adapter away from B = 0."""
  lora = model.init(jax.random.key(seed))
  return jax.tree.map(lambda x: x + jnp.asarray(0.02, x.dtype), lora)


def batches(model, length, batch_size, task=TASK):
  stream = task.train_batches(
    model.tokenizer, length=length, batch_size=batch_size, seed=0
  )
  return next(iter(stream))


def one_by_one(model, lora):
  """Log-likelihoods (pairs, 2, 2) of each text alone: adapted, base."""
  compute = jax.jit(model.token_losses)
  found = []
  for example in TASK.examples('train'):
    encoded = EncodedPreference.of(TASK, example, model.tokenizer)
    row = []
    for segment in encoded.segments():
      batch = {k: v[None] for k, v in type(segment).row([segment], 64).items()}
      row.append(
        [
          -np.sum(np.float64(compute(model.base, x, batch)) * batch['weights'])
          for x in (lora, None)
        ]
      )
    found.append(row)
  return np.array(found)


def expected(likelihoods, beta, smooth=0.0):
  """Equation 7 in float64."""
  rewards = beta * (likelihoods[..., 0] - likelihoods[..., 1])
  margin = rewards[:, 0] - rewards[:, 1]
  losses = (1 - smooth) * np.log1p(np.exp(-margin))
  return losses + smooth * np.log1p(np.exp(margin)), margin, rewards


@pytest.mark.parametrize('smooth', [0.0, 0.2])
def test_the_loss_is_that_of_the_paper_of_texts_alone(still, smooth):
  lora = trained(still)
  losses, margins, rewards = expected(one_by_one(still, lora), 0.5, smooth)
  assert np.ptp(margins) > 0.01
  batch = batches(still, 256, 1)
  assert batch['counts'].sum() == 4
  assert batch['segment_ids'].max() == 8
  total, sums = jax.jit(functools.partial(DPO(0.5, smooth), still))(
    lora, still.base, batch, jax.random.key(0)
  )
  # Sums of some 40 losses of tokens in float32.
  assert float(total) == pytest.approx(losses.sum(), abs=1e-5)
  near = functools.partial(pytest.approx, abs=4e-5)
  assert float(sums['rewards/margin']) == near(margins.sum())
  assert float(sums['rewards/chosen']) == near(rewards[:, 0].sum())
  assert float(sums['rewards/rejected']) == near(rewards[:, 1].sum())
  assert float(sums['rewards/accuracy']) == np.sum(margins > 0)


def step_of(model, batch, optimizer=None, partitioner=None, **settings):
  placement = (partitioner or Partitioner()).place(model)
  optimizer = optimizer or optax.sgd(1.0)
  lora = put(trained(model), placement.trainable)
  state = create_train_state(lora, optimizer, placement)
  step = make_train_step(
    model, optimizer, placement, state, objective=DPO(0.5), **settings
  )
  base = put(model.base, placement.base)
  after, metrics = step(state, base, placement.put_rows(batch))
  return jax.device_get(after.lora), {k: float(v) for k, v in metrics.items()}


def test_neither_packing_nor_parts_change_a_step(still):
  whole, metrics = step_of(still, batches(still, 256, 1))
  alone = dataclasses.replace(TASK, packing=False)
  apart = batches(still, 64, 4, alone)
  assert np.all(apart['counts'].sum(axis=1) == 1)
  parts, others = step_of(still, apart, microbatches=4)
  assert others['loss'] == pytest.approx(metrics['loss'], rel=1e-5)
  for name in DPO.metrics:
    assert others[name] == pytest.approx(metrics[name], abs=1e-5)
  for a, b in zip(*map(jax.tree.leaves, (whole, parts)), strict=True):
    # Gradients: sums of float32 in other orders.
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


@pytest.mark.long
def test_bfloat16_says_nearly_the_same(still):
  narrow = dataclasses.replace(still, dtype='bfloat16')
  batch = batches(still, 256, 1)
  lora = trained(still)
  total, found = (
    jax.jit(functools.partial(DPO(0.5), model))(
      lora, model.base, batch, jax.random.key(0)
    )[0]
    for model in (still, narrow)
  )
  # Likelihoods of 40 tokens, of logits with 8 bits.
  assert float(found) == pytest.approx(float(total), abs=0.05)


def test_dropout_is_of_the_adapter_alone():
  model = random_model(
    LoraConfig(rank=2, dropout=0.5), num_layers=1, remat='none'
  )
  fresh = model.init(jax.random.key(0))
  total, sums = jax.jit(functools.partial(DPO(), model))(
    fresh, model.base, batches(model, 256, 1), jax.random.key(0)
  )
  assert float(total) == pytest.approx(4 * np.log(2), abs=1e-5)
  assert float(sums['rewards/accuracy']) == 2


@pytest.mark.parametrize(
  ('settings', 'problem'),
  [
    ({'beta': 0}, 'beta'),
    ({'beta': float('nan')}, 'beta'),
    ({'label_smoothing': -0.1}, 'label_smoothing'),
    ({'label_smoothing': 0.5}, 'must be below 0.5'),
  ],
)
def test_bad_settings(settings, problem):
  with pytest.raises(ValueError, match=problem):
    DPO(**settings)


def test_tasks_and_objectives_that_do_not_go_together(task):
  parts.check_objective(DPO(), TASK)
  parts.check_objective(None, task)
  both = tasks.Mixture(name='both', tasks=(task, TASK))
  for wrong, of in ((None, TASK), (DPO(), task), (None, both), (DPO(), both)):
    with pytest.raises(ValueError, match=r'OBJECTIVE=@objective.DPO\(\)'):
      parts.check_objective(wrong, of)


@pytest.mark.long
@pytest.mark.parametrize('name', sorted(lora_opt.optimizers.__all__))
def test_every_optimizer_takes_a_step(still, name):
  before = trained(still)
  # The one that goes around another takes that, and no learning rate.
  argument = lora_opt.adamw(1e-2) if name == 'balanced' else 1e-2
  optimizer = getattr(lora_opt, name)(argument)
  after, metrics = step_of(still, batches(still, 256, 1), optimizer)
  assert np.isfinite(metrics['loss']) and metrics['grad_norm'] > 0
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after, before)
  assert max(jax.tree.leaves(moved)) > 0
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after))
