"""The contract of Seq2SeqLM: padding, cached decoding, precision, settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt.models.lora import LoraConfig
from lora_opt.models.random_model import random_seq2seq
from tests.models.batches import (
  gradients,
  jitted,
  losses_of,
  pair_batch,
  paths,
  random_adapter,
)

pytestmark = pytest.mark.usefixtures('fast_compile')

START = 258
PAIRS = ([5, 6, 7, 8, 9], [20, 21, 22]), ([30, 31], [40, 41, 42, 43])


@pytest.fixture(scope='module')
def tiny_t5():
  # Near distances have buckets of their own, far ones share.
  return random_seq2seq(
    LoraConfig(rank=4), num_layers=1, num_buckets=4, max_distance=4
  )


def test_padding_has_no_effect(tiny_t5):
  alone = losses_of(tiny_t5, pair_batch(START, *PAIRS))
  padded = pair_batch(START, *PAIRS, lengths=(9, 7))
  padded['encoder_tokens'][:, 5:] = 77
  padded['tokens'][:, 4:] = 77
  together = losses_of(tiny_t5, padded)
  np.testing.assert_allclose(together[:, :4], alone, rtol=1e-5)
  assert (together[:, 4:] == 0).all()


def test_cached_decoding_equals_the_full_forward_pass(tiny_t5):
  lora, batch = random_adapter(tiny_t5), pair_batch(START, *PAIRS)
  full = np.asarray(jitted(tiny_t5, 'logits')(tiny_t5.base, lora, batch))
  # On either side, padding must not be seen.
  inputs = np.array([[5, 6, 7, 8, 9], [99, 99, 99, 30, 31]], np.int32)
  valid = np.array([[True] * 5, [False] * 3 + [True] * 2])
  start = jax.jit(tiny_t5.start_decoding, static_argnums=4)
  step = jitted(tiny_t5, 'decode_step')
  predicted, cache = start(tiny_t5.base, lora, inputs, valid, 4)
  for t in range(4):
    for row, (_, targets) in enumerate(PAIRS):
      if t < len(targets):
        np.testing.assert_allclose(
          predicted[row], full[row, t], rtol=1e-4, atol=1e-5
        )
    if t < 3:
      predicted, cache = step(tiny_t5.base, lora, cache, batch['targets'][:, t])
  assert step._cache_size() == 1
  assert cache.layers.cross.keys.shape == (2, 2, 5, 4, 8)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_no_type_or_rank_is_promoted_silently(tiny_t5, dtype):
  config = LoraConfig('.*', rank=4, dropout=0.1, dtype=dtype)
  model = dataclasses.replace(tiny_t5, dtype=dtype, lora_config=config)
  with (
    jax.numpy_dtype_promotion('strict'),
    jax.numpy_rank_promotion('raise'),
  ):
    lora = jax.eval_shape(model.init, jax.random.key(0))
    batch = pair_batch(START, *PAIRS)
    losses, *_ = jax.eval_shape(gradients(model), model.base, lora, batch)
    logits, _ = jax.eval_shape(
      lambda *a: model.start_decoding(*a, 4),
      *(model.base, lora, jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3), bool)),
    )
  assert losses.dtype == logits.dtype == jnp.float32


def test_execution_settings_do_not_change_the_numbers(tiny_t5):
  batch, lora = pair_batch(START, *PAIRS), random_adapter(tiny_t5)
  changed = dataclasses.replace(tiny_t5, remat='none', unroll=2)
  expected = gradients(tiny_t5)(tiny_t5.base, lora, batch)
  actual = gradients(changed)(tiny_t5.base, lora, batch)
  for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


def test_the_base_has_no_gradient_and_every_adapter_has_one(tiny_t5):
  batch, lora = pair_batch(START, *PAIRS), random_adapter(tiny_t5)
  _, base, adapter = gradients(tiny_t5)(tiny_t5.base, lora, batch)
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(base))
  # One stack of layers at a time, so that none hides behind another.
  for path, leaf in paths(adapter):
    assert (np.abs(leaf).max(axis=(1, 2)) > 0).all(), path


def test_bfloat16_is_close_to_float32(tiny_t5):
  batch, lora = pair_batch(START, *PAIRS), random_adapter(tiny_t5)
  half = dataclasses.replace(
    tiny_t5,
    base=jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny_t5.base),
    dtype='bfloat16',
  )
  # Two stacks of activations rounded to 8 bits.
  np.testing.assert_allclose(
    losses_of(half, batch, lora), losses_of(tiny_t5, batch, lora), atol=0.1
  )


def abstract(tiny_t5, **settings):
  """A model without weights, adapted everywhere."""
  config = dataclasses.replace(tiny_t5.config, **settings)
  return dataclasses.replace(
    tiny_t5,
    config=config,
    base=tiny_t5.family.abstract_base(config),
    lora_config=LoraConfig('.*', rank=2),
  )


def test_every_axis_has_a_logical_name(tiny_t5):
  model = abstract(tiny_t5)
  adapter = jax.eval_shape(model.init, jax.random.key(0))
  for specs, arrays in zip(
    model.logical_axes(), (model.base, adapter), strict=True
  ):
    for (path, spec), (_, array) in zip(
      paths(specs), paths(arrays), strict=True
    ):
      assert len(spec) == array.ndim, path
      assert None not in spec, path


@pytest.mark.parametrize('gated', [True, False])
def test_projections_are_what_has_adapters(tiny_t5, gated):
  model = abstract(tiny_t5, gated_mlp=gated)
  adapter = dict(paths(jax.eval_shape(model.init, jax.random.key(0))))
  shapes = {
    path.removesuffix('/lora_a'): leaf.shape[-2]
    for path, leaf in adapter.items()
    if path.endswith('lora_a')
  }
  expected = model.config.projections
  assert shapes == {path: fan_in for path, (fan_in, _) in expected.items()}


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'start_id': 0}, 'padding token .* has id 258, .* starts with id 0'),
    ({'num_buckets': 5}, 'num_buckets=5 must be even'),
    ({'num_buckets': 8, 'max_distance': 4}, 'max_distance=4 must be above'),
    ({'activation': 'tanh'}, "activation='tanh' must be one of"),
    ({'mlp_dim': 0}, 'mlp_dim: expected a whole number from 1'),
  ],
)
def test_contradictions_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    random_seq2seq(**settings)
