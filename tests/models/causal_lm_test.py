"""The contract of CausalLM: packing, branches, padding, cache, precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt.models.lora import LoraConfig
from lora_opt.models.random_model import random_model
from tests.models.batches import (
  gradients,
  jitted,
  losses_of,
  paths,
  random_adapter,
  row_batch,
)

pytestmark = pytest.mark.usefixtures('fast_compile')

# Between them every option of the decoder that a cache, a type or the name of
# an axis could miss.
GEMMA = {  # with the caps of the second, the rest of the third
  'norm': 'rms_plus_one',
  'post_norms': True,
  'qk_norm': True,
  'activation': 'gelu_tanh',
  'scale_embedding': True,
  'attention_scale': 0.5,
  'attention_softcap': 1.5,
  'logit_softcap': 2.5,
  'window': 3,
  'windowed_layers': (True, False),
  'local_rope_theta': 10.0,
  'unrotated_layers': (False, True),  # of SmolLM3
}
PHI3 = {
  'fused_qkv': True,
  'fused_gate': True,
  'rotary_dim': 4,
  'rope_divisors': (1.0, 2.0),
  'long_rope_divisors': (3.0, 5.0),
  'rope_context': 4,
  'rope_gain': 1.5,
}
GPT2 = {
  'norm': 'layer',
  'activation': 'gelu',
  'gated_mlp': False,
  'attention_bias': True,
  'mlp_bias': True,
  'fused_qkv': True,
  'learned_positions': True,
  'window': 3,
  'windowed_layers': (True, True),
}
families = pytest.mark.parametrize(
  'options', [{}, GEMMA, PHI3, GPT2], ids=['llama', 'gemma', 'phi3', 'gpt2']
)


def with_options(options):
  """A model with adapters on everything, embedding and head too."""
  return random_model(LoraConfig('.*', rank=4), **options)


FIRST, SECOND, THIRD = [5, 6, 7, 8, 9], [20, 21, 22], [30, 31, 32, 33]


def test_packed_segments_equal_separate_rows(tiny):
  separate = losses_of(tiny, row_batch(FIRST, SECOND))
  packed = row_batch(FIRST + SECOND, length=10)
  packed['positions'][0, 5:8] = range(3)
  packed['segment_ids'][0, 5:8] = 2
  packed['targets'][0, 4] = 0
  together = losses_of(tiny, packed)[0]
  np.testing.assert_allclose(together[:5], separate[0], rtol=1e-5)
  np.testing.assert_allclose(together[5:8], separate[1, :3], rtol=1e-5)


@pytest.mark.parametrize('options', [{}, GEMMA], ids=['llama', 'gemma'])
def test_branches_equal_separate_rows(options):
  tiny = random_model(**options)
  separate = losses_of(tiny, row_batch(FIRST + SECOND, FIRST + THIRD))
  branched = row_batch(FIRST + SECOND + THIRD)
  branched['positions'][0, 8:] = range(5, 9)
  branched['branches'] = np.array([[0] * 5 + [1] * 3 + [2] * 4], np.int32)
  branched['targets'][0, 7] = 0
  together = losses_of(tiny, branched)[0]
  np.testing.assert_allclose(together[:8], separate[0, :8], rtol=1e-5)
  np.testing.assert_allclose(together[8:], separate[1, 5:], rtol=1e-5)


def test_padding_has_no_effect(tiny):
  alone = losses_of(tiny, row_batch(FIRST))[0]
  padded = row_batch(FIRST, length=11)
  padded['tokens'][0, 5:] = 77
  together = losses_of(tiny, padded)[0]
  np.testing.assert_allclose(together[:5], alone, rtol=1e-5)
  assert np.isfinite(together).all()


@families
def test_cached_decoding_equals_the_full_forward_pass(options):
  tiny = with_options(options)
  lora = random_adapter(tiny)
  rows, prompts = [FIRST + SECOND, SECOND + THIRD + [40]], (5, 3)
  full = np.asarray(jitted(tiny, 'logits')(tiny.base, lora, row_batch(*rows)))
  width, steps = max(prompts), 3
  tokens, valid = np.full((2, width), 99, np.int32), np.zeros((2, width), bool)
  for r, (row, size) in enumerate(zip(rows, prompts, strict=True)):
    tokens[r, width - size :] = row[:size]
    valid[r, width - size :] = True
  start = jax.jit(tiny.start_decoding, static_argnums=4)
  step = jitted(tiny, 'decode_step')
  predicted, cache = start(tiny.base, lora, tokens, valid, steps)
  for done in range(steps + 1):
    expected = [full[r, prompts[r] - 1 + done] for r in range(2)]
    np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-5)
    if done < steps:
      following = [rows[r][prompts[r] + done] for r in range(2)]
      predicted, cache = step(tiny.base, lora, cache, jnp.array(following))
  assert step._cache_size() == 1


@families
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_no_type_or_rank_is_promoted_silently(options, dtype):
  config = LoraConfig('.*', rank=4, dropout=0.1, dtype=dtype)
  model = random_model(config, dtype=dtype, **options)
  with (
    jax.numpy_dtype_promotion('strict'),
    jax.numpy_rank_promotion('raise'),
  ):
    lora = jax.eval_shape(model.init, jax.random.key(0))
    losses, *_ = jax.eval_shape(
      gradients(model), model.base, lora, row_batch(FIRST)
    )
  assert losses.dtype == jnp.float32


@pytest.mark.parametrize(
  'settings', [{'remat': 'full', 'unroll': 2}, {'remat': 'none'}]
)
def test_execution_settings_do_not_change_the_numbers(tiny, settings):
  batch, lora = row_batch(FIRST, SECOND), random_adapter(tiny)
  changed = dataclasses.replace(tiny, **settings)
  expected = gradients(tiny)(tiny.base, lora, batch)
  actual = gradients(changed)(tiny.base, lora, batch)
  for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


@families
def test_bfloat16_is_close_to_float32(options):
  tiny = with_options(options)
  batch, lora = row_batch(FIRST, SECOND), random_adapter(tiny)
  half = dataclasses.replace(
    tiny,
    base=jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.base),
    dtype='bfloat16',
  )
  losses, _, gradient = gradients(half)(half.base, lora, batch)
  # Two layers of activations rounded to 8 bits.
  np.testing.assert_allclose(losses, losses_of(tiny, batch, lora), atol=0.1)
  assert losses.dtype == np.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {losses.dtype}


@families
def test_every_adapter_has_names_outside(options, tmp_path):
  model = with_options(options)
  lora = random_adapter(model)
  model.export(tmp_path, lora)
  back = model.load_adapter(tmp_path)
  for ours, theirs in zip(*map(jax.tree.leaves, (back, lora)), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_compute_and_storage_types_are_apart(tiny):
  batch = row_batch(FIRST, SECOND)
  narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.base)
  rounded = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
  program = jitted(tiny, 'token_losses')
  np.testing.assert_allclose(
    program(narrow, None, batch), program(rounded, None, batch), rtol=1e-5
  )


def test_weights_are_stored_in_the_type_asked_for():
  model = random_model(dtype='float32', param_dtype='bfloat16', num_layers=1)
  stored = {leaf.dtype for leaf in jax.tree.leaves(model.base)}
  assert stored == {np.dtype(jnp.bfloat16)}


@families
def test_every_axis_has_a_logical_name(options):
  tiny = with_options(options | {'tie_embeddings': False})
  adapter = jax.eval_shape(tiny.init, jax.random.key(0))
  for specs, arrays in zip(
    tiny.logical_axes(), (tiny.base, adapter), strict=True
  ):
    for (path, spec), (_, array) in zip(
      paths(specs), paths(arrays), strict=True
    ):
      assert len(spec) == array.ndim, path
      assert None not in spec, path
      assert len(set(spec)) == len(spec), path
  base, lora = tiny.logical_axes()
  down = lora['layers']['mlp']['down']
  assert tuple(down['lora_a']) == ('layers', 'mlp', 'lora_rank')
  assert tuple(down['lora_b']) == ('layers', 'lora_rank', 'embed')
  assert tuple(base['head']['table']) == ('vocab', 'embed')


def test_base_is_an_argument_of_the_compiled_program(tiny):
  batch = row_batch(FIRST)
  louder = dataclasses.replace(
    tiny, base=jax.tree.map(lambda x: x * 1.5, tiny.base)
  )
  program = jitted(tiny, 'token_losses')
  expected = losses_of(louder, batch)
  np.testing.assert_allclose(
    program(louder.base, None, batch), expected, rtol=1e-5
  )
  assert abs(expected - losses_of(tiny, batch)).max() > 0.01
