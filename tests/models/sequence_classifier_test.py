"""The contract of SequenceClassifier: packing, padding, types, heads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt.models.disentangled import distance_products
from lora_opt.models.encoder_config import EncoderConfig, RelativePositions
from lora_opt.models.lora import LoraConfig
from lora_opt.models.random_encoder import random_encoder
from tests.models.batches import gradients, jitted, paths, random_adapter

pytestmark = pytest.mark.usefixtures('fast_compile')

FIRST, SECOND = [256, 6, 7, 8, 257], [256, 20, 257]


@pytest.fixture(scope='module')
def model():
  """Relative and absolute positions, token types."""
  return random_encoder(
    LoraConfig(rank=2),
    relative=RelativePositions(span=4, max_distance=16),
    max_length=40,
    remat='none',
  )


def batch_of(rows, segments=2):
  """Rows of examples side by side, padded."""
  length = max(sum(map(len, row)) for row in rows) + 1
  shape, slots = (len(rows), length), (len(rows), segments)
  names = ('tokens', 'token_types', 'positions', 'segment_ids')
  batch = {name: np.zeros(shape, np.int32) for name in names}
  batch |= {n: np.zeros(slots, np.float32) for n in ('labels', 'weights')}
  for r, row in enumerate(rows):
    start = 0
    for s, ids in enumerate(row):
      place = r, slice(start, start + len(ids))
      batch['tokens'][place] = ids
      batch['positions'][place] = np.arange(len(ids))
      batch['segment_ids'][place] = s + 1
      batch['labels'][r, s] = s
      batch['weights'][r, s] = 1
      start += len(ids)
  return batch


@pytest.mark.parametrize('pooling', ['first', 'mean'])
def test_packed_segments_equal_rows_of_their_own(model, pooling):
  config = dataclasses.replace(model.config, pooling=pooling)
  model = dataclasses.replace(model, config=config)
  trainable = random_adapter(model)
  run = jitted(model, 'predict')
  packed = run(model.base, trainable, batch_of([[FIRST, SECOND]]))
  apart = run(model.base, trainable, batch_of([[FIRST], [SECOND]]))
  np.testing.assert_allclose(packed[0, 0], apart[0, 0], atol=1e-5)
  np.testing.assert_allclose(packed[0, 1], apart[1, 0], atol=1e-5)
  assert np.isfinite(apart).all()


def test_padding_has_no_effect(model):
  batch = batch_of([[FIRST], [SECOND]])
  expected = jitted(model, 'pooled')(model.base, None, batch)
  batch['tokens'][batch['segment_ids'] == 0] = 77
  batch['token_types'][batch['segment_ids'] == 0] = 1
  actual = jitted(model, 'pooled')(model.base, None, batch)
  np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize('outputs', [1, 3])
def test_losses_are_cross_entropy_or_squared_error(model, outputs):
  model = dataclasses.replace(model, outputs=outputs)
  trainable, batch = random_adapter(model), batch_of([[FIRST, SECOND]])
  both = jax.jit(
    lambda base: (
      model.predict(base, trainable, batch)[0],
      model.token_losses(base, trainable, batch)[0],
    )
  )
  found, losses = both(model.base)
  expected = -jax.nn.log_softmax(found)[jnp.arange(2), jnp.arange(2)]
  if outputs == 1:
    expected = (found[:, 0] - jnp.array([0.0, 1.0])) ** 2
  np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_the_base_has_no_gradient_and_all_that_is_trained_has_one(model):
  trainable = random_adapter(model)
  _, base, trained = gradients(model)(
    model.base, trainable, batch_of([[FIRST, SECOND]])
  )
  assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(base))
  for path, leaf in paths(trained):
    assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_no_type_or_rank_is_promoted_silently(model, dtype):
  config = LoraConfig(target='.*', rank=2, dropout=0.1, dtype=dtype)
  model = dataclasses.replace(
    model,
    dtype=dtype,
    lora_config=config,
    dropout=0.1,
    head_dropout=0.1,
    remat='projections',
  )
  with (
    jax.numpy_dtype_promotion('strict'),
    jax.numpy_rank_promotion('raise'),
  ):
    trainable = jax.eval_shape(model.init, jax.random.key(0))
    losses = jax.eval_shape(
      lambda t, rng: model.token_losses(
        model.base, t, batch_of([[FIRST]]), rng
      ),
      trainable,
      jax.random.key(0),
    )
  assert losses.dtype == jnp.float32


def test_every_axis_has_a_logical_name(model):
  trees = model.base, model.init(jax.random.key(0))
  for specs, arrays in zip(model.logical_axes(), trees, strict=True):
    for (path, spec), (same, array) in zip(
      paths(specs), paths(arrays), strict=True
    ):
      assert path == same
      assert len(spec) == array.ndim and None not in spec, path


def test_dropout_needs_a_key_and_is_that_of_the_key():
  model = random_encoder(LoraConfig(rank=2), dropout=0.3, head_dropout=0.3)
  batch, trainable = batch_of([[FIRST]]), random_adapter(model)
  run = jitted(model, 'token_losses')
  one, two = (
    run(model.base, trainable, batch, jax.random.key(seed)) for seed in (0, 1)
  )
  again = run(model.base, trainable, batch, jax.random.key(0))
  np.testing.assert_array_equal(one, again)
  assert abs(one - two).max() > 1e-4
  run(model.base, trainable, batch)


def test_products_with_distances_are_their_definition():
  random = np.random.default_rng(0)
  x = random.standard_normal((2, 5, 3, 4)).astype('f4')
  table = random.standard_normal((9, 3, 4)).astype('f4')
  products = distance_products(jnp.asarray(x), jnp.asarray(table))
  for i in range(5):
    for j in range(5):
      expected = np.einsum('bhd,hd->bh', x[:, i], table[4 - (i - j)])
      np.testing.assert_allclose(products[:, :, i, j], expected, atol=1e-5)


def test_what_does_not_fit_is_refused(model):
  with pytest.raises(ValueError, match='came without a trained head'):
    model.predict(model.base, None, batch_of([[FIRST]]))
  with pytest.raises(ValueError, match=r'rows of 41 tokens are too long'):
    model.predict(
      model.base, model.init(jax.random.key(0)), batch_of([[[5] * 40]])
    )
  with pytest.raises(ValueError, match='outputs: expected a whole number'):
    dataclasses.replace(model, outputs=0)
  with pytest.raises(ValueError, match='head_dropout=1'):
    dataclasses.replace(model, head_dropout=1)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_heads': 3}, 'embed_dim=8 must be a multiple of num_heads=3'),
    ({'num_layers': 0}, 'num_layers: expected a whole number'),
    ({'activation': 'mish'}, "activation='mish' must be one of"),
    ({'pooling': 'max'}, "pooling='max'"),
  ],
)
def test_a_config_that_contradicts_itself_is_refused(settings, message):
  sizes = {'embed_dim': 8, 'num_layers': 1, 'num_heads': 2, 'mlp_dim': 8}
  with pytest.raises(ValueError, match=message):
    EncoderConfig(vocab_size=9, **(sizes | settings))


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'terms': ('p2p',)}, 'p2p'),
    ({'span': 1}, 'span: expected a whole number'),
    ({'span': 32, 'max_distance': 16}, 'max_distance=16'),
  ],
)
def test_relative_positions_that_make_no_sense_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    RelativePositions(**({'span': 4} | settings))
