"""Adapters: where they sit, how they start, what they compute."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt.models.lora import LoraConfig
from lora_opt.models.random_model import random_model
from lora_opt.models.start import pissa
from tests.models.batches import (
  gradients,
  jitted,
  losses_of,
  paths,
  random_adapter,
  row_batch,
)

pytestmark = pytest.mark.usefixtures('fast_compile')

BATCH = row_batch([5, 6, 7, 8, 9], [20, 21, 22])


def logits(model, base, lora):
  return np.asarray(jitted(model, 'logits')(base, lora, BATCH))


def test_default_covers_every_projection_in_the_agreed_layout(tiny):
  shapes = {
    path: leaf.shape for path, leaf in paths(tiny.init(jax.random.key(0)))
  }
  assert shapes == {
    f'{path}/{factor}': shape
    for path, (fan_in, fan_out) in tiny.config.projections.items()
    if path.startswith('layers/')
    for factor, shape in (
      ('lora_a', (2, fan_in, 4)),
      ('lora_b', (2, 4, fan_out)),
    )
  }


def test_target_selects_by_the_whole_path(tiny):
  config = LoraConfig('.*/(q|down)', rank=2)
  model = dataclasses.replace(tiny, lora_config=config)
  adapter = paths(model.init(jax.random.key(0)))
  assert {path.rpartition('/')[0] for path, _ in adapter} == {
    'layers/attention/q',
    'layers/mlp/down',
  }


def test_start_is_the_base_model(tiny):
  lora = tiny.init(jax.random.key(3))
  np.testing.assert_array_equal(
    logits(tiny, tiny.base, lora), logits(tiny, tiny.base, None)
  )


def test_initial_factors(tiny):
  lora = tiny.init(jax.random.key(0))
  a, b = (lora['layers']['mlp']['down'][f] for f in ('lora_a', 'lora_b'))
  assert not b.any()
  bound = 64**-0.5
  assert 0.9 * bound < abs(a).max() <= bound
  # Layers, sites and keys do not share their random numbers.
  assert not np.array_equal(a[0], a[1])
  other = tiny.init(jax.random.key(1))['layers']['mlp']['down']['lora_a']
  assert not np.array_equal(a, other)
  again = tiny.init(jax.random.key(0))['layers']['mlp']['down']['lora_a']
  np.testing.assert_array_equal(a, again)


def test_initializers_and_dtype_are_settings(tiny):
  config = LoraConfig(
    rank=4,
    init_a=jax.nn.initializers.orthogonal(),
    init_b=jax.nn.initializers.ones,
    dtype='bfloat16',
  )
  model = dataclasses.replace(tiny, lora_config=config)
  q = model.init(jax.random.key(0))['layers']['attention']['q']
  assert q['lora_a'].dtype == q['lora_b'].dtype == jnp.bfloat16
  assert (q['lora_b'] == 1).all()
  a = np.asarray(q['lora_a'][0], np.float32)
  np.testing.assert_allclose(a.T @ a, np.eye(4), atol=0.02)


@pytest.mark.parametrize('rslora', [False, True])
def test_adapter_is_a_change_of_the_weights(tiny, rslora):
  config = LoraConfig(rank=4, alpha=6, rslora=rslora)
  model = dataclasses.replace(tiny, lora_config=config)
  lora = random_adapter(model)
  scale = 3.0 if rslora else 1.5
  merged = jax.tree.map(lambda x: x, model.base)
  for path in model.lora_config.sites(model.config.projections):
    _, part, name = path.split('/')
    site = lora['layers'][part][name]
    kernel = merged['layers'][part][name]['kernel']
    delta = np.asarray(site['lora_a']) @ np.asarray(site['lora_b'])
    merged['layers'][part][name]['kernel'] = kernel + scale * delta
  actual = logits(model, model.base, lora)
  np.testing.assert_allclose(actual, logits(model, merged, None), atol=1e-4)
  assert abs(actual - logits(model, model.base, None)).max() > 0.1


def test_gradient_is_the_slope(tiny):
  lora, direction = random_adapter(tiny), random_adapter(tiny, seed=7)
  _, _, gradient = gradients(tiny)(tiny.base, lora, BATCH)
  pairs = zip(*map(jax.tree.leaves, (gradient, direction)), strict=True)
  slope = sum(np.vdot(g, d) for g, d in pairs)

  def loss(step):
    moved = jax.tree.map(lambda x, d: x + step * d, lora, direction)
    return losses_of(tiny, BATCH, moved).sum(dtype=np.float64)

  # Central difference: error h^2 plus float32 rounding 1e-7 / h.
  h = 1e-2
  np.testing.assert_allclose(slope, (loss(h) - loss(-h)) / (2 * h), rtol=1e-2)


def test_no_gradient_for_the_base(tiny):
  _, base, lora = gradients(tiny)(tiny.base, random_adapter(tiny), BATCH)
  assert not any(leaf.any() for leaf in jax.tree.leaves(base))
  assert all(leaf.any() for leaf in jax.tree.leaves(lora))


def test_dropout_only_with_a_key(tiny):
  config = LoraConfig(rank=4, dropout=0.5)
  model = dataclasses.replace(tiny, lora_config=config)
  lora = random_adapter(model)

  def losses(rng):
    return np.asarray(
      jitted(model, 'token_losses')(model.base, lora, BATCH, rng)
    )

  plain = dataclasses.replace(model, lora_config=LoraConfig(rank=4))
  without = losses_of(plain, BATCH, lora)
  np.testing.assert_array_equal(losses(None), without)
  first = losses(jax.random.key(0))
  np.testing.assert_array_equal(first, losses(jax.random.key(0)))
  assert abs(first - without).max() > 1e-3
  assert abs(first - losses(jax.random.key(1))).max() > 1e-3


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'rank': 0}, 'LoRA rank: expected a whole number'),
    ({'dropout': 1.0}, r'dropout=1.0 must be in \[0, 1\)'),
    ({'dtype': 'half'}, "dtype='half' must be one of float32, bfloat16"),
    ({'target': '('}, r"target='\(' is not a regular expression"),
  ],
)
def test_bad_settings_are_named(settings, message):
  with pytest.raises(ValueError, match=message):
    LoraConfig(**settings)


def test_target_without_a_match_lists_the_projections():
  with pytest.raises(ValueError, match=r'matches no projection.*attention/q,'):
    random_model(LoraConfig('q_proj', rank=2))


def test_rank_above_a_dimension_names_the_site():
  with pytest.raises(
    ValueError, match='rank=17 is larger than fan_out=16 of layers/attention/k'
  ):
    random_model(LoraConfig(rank=17))


@pytest.mark.parametrize('settings', [{'dora': True}, {'start': pissa}])
def test_tables_take_plain_adapters_only(settings):
  with pytest.raises(ValueError, match='head takes a plain adapter only: lea'):
    random_model(LoraConfig('.*/q|head', rank=2, **settings))
