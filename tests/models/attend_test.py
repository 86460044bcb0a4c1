"""Every implementation of attention against the plain one."""

import functools
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt.models import attend as attend_module
from lora_opt.models import blockwise, splash
from lora_opt.models.attend import attend
from lora_opt.models.offset_bias import OffsetBias
from lora_opt.models.visibility import Visibility

HEADS, WIDTH = 4, 16
# Two examples and padding, cut by blocks of 32 and by whole lanes of 128 alike.
LENGTH, FIRST, SECOND = 150, 70, 60


pytestmark = pytest.mark.usefixtures('fast_compile')


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
  """Rows of these tests have several blocks."""
  kernels = tuple(
    functools.partial(each, block=32)
    for each in (blockwise.forward, blockwise.backward)
  )
  for name in ('blockwise', 'blockwise on CPUs'):
    monkeypatch.setitem(attend_module._KERNELS, name, kernels)


def segments(rows=2):
  ids = np.zeros((rows, LENGTH), np.int32)
  ids[:, :FIRST], ids[:, FIRST : FIRST + SECOND] = 1, 2
  return jnp.array(ids)


def positions():
  count = [*range(FIRST), *range(SECOND), *[0] * (LENGTH - FIRST - SECOND)]
  return jnp.array([count, count], jnp.int32)


def branched():
  """The first example has a prefix of 20 and two continuations of 25."""
  branches, count = np.zeros((2, LENGTH), np.int32), np.array(positions())
  branches[:, 20:45], branches[:, 45:70] = 1, 2
  count[:, 45:70] = count[:, 20:45]
  return {'branches': jnp.array(branches), 'positions': jnp.array(count)}


def arrays(dtype='float32', kv_heads=HEADS, length=LENGTH, seed=0):
  keys = jax.random.split(jax.random.key(seed), 4)
  heads = (HEADS, kv_heads, kv_heads, HEADS)
  return [
    jax.random.normal(key, (2, length, n, WIDTH)).astype(dtype)
    for key, n in zip(keys, heads, strict=True)
  ]


def results(implementation, q, k, v, weights, seen, **settings):
  """What attention returns, and its gradients of q, k and v."""

  def loss(q, k, v):
    out = attend(q, k, v, seen, implementation=implementation, **settings)
    # Padding has no loss.
    counted = (seen.segments > 0)[:, :, None, None]
    product = (out * weights).astype(jnp.float32)
    return jnp.where(counted, product, 0).sum(), out

  gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
  (_, out), gradients = gradient(q, k, v)
  return [out, *gradients]


CASES = {
  'causal': ({}, {}),
  'window': ({'positions': positions()}, {'window': 40}),
  'scale': ({}, {'scale': 0.1}),
  'softcap, window': (
    {'positions': positions()},
    {'softcap': 1.5, 'scale': 0.5, 'window': 40},
  ),
  'both ways': ({'causal': False}, {}),
  'branches': (branched(), {}),
  'branches, window': (branched(), {'window': 12}),
  'bias': ({'causal': False}, {'bias': True}),
}
# Heads that share keys: all of their own otherwise.
KV_HEADS = {'causal': 2, 'window': 1, 'softcap, window': 2}
BY_SPLASH = ('causal', 'window', 'scale', 'softcap, window', 'both ways')
BY_FLASH = ('causal', 'scale', 'both ways')
WAYS = [
  *[('blockwise', case) for case in CASES],
  *[('splash', case) for case in BY_SPLASH],
  *[('flash', case) for case in BY_FLASH],
]


def settings_of(case):
  seen, settings = CASES[case]
  if settings.get('bias'):
    values = jax.random.normal(jax.random.key(9), (HEADS, 2 * LENGTH - 1))
    settings = {'bias': OffsetBias(values)}
  return Visibility(segments(), **seen), settings


@pytest.mark.parametrize(('implementation', 'case'), WAYS)
def test_is_the_plain_one_up_to_rounding(implementation, case):
  seen, settings = settings_of(case)
  given = arrays(kv_heads=KV_HEADS.get(case, HEADS))
  actual = results(implementation, *given, seen, **settings)
  expected = results('plain', *given, seen, **settings)
  real = np.asarray(seen.segments) > 0
  for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
    assert a.dtype == e.dtype and np.isfinite(a).all()
    # What padding puts out is nobody's; gradients there are 0.
    a, e = (x[real] if i == 0 else x for x in map(np.asarray, (a, e)))
    # Sums of at most 150 terms of about 1, in another order.
    np.testing.assert_allclose(a, e, rtol=0, atol=150 * 2**-23 * abs(e).max())


@pytest.mark.parametrize('implementation', ['blockwise', 'splash', 'flash'])
def test_bfloat16_differs_by_its_rounding(implementation):
  seen, settings = settings_of('causal')
  given = arrays('bfloat16')
  exact = [x.astype(jnp.float32) for x in given]
  expected = results('plain', *exact, seen)
  plain = results('plain', *given, seen)
  actual = results(implementation, *given, seen, **settings)
  real = np.asarray(seen.segments) > 0
  for a, p, e in zip(actual, plain, expected, strict=True):
    assert a.dtype == jnp.bfloat16
    a, p, e = (np.asarray(x, np.float32)[real] for x in (a, p, e))
    # A value in it has 8 bits; weights, scaled queries, scores and results are
    # each rounded once, as by the plain one, or once more.
    error, limit = (np.linalg.norm(x - e) / np.linalg.norm(e) for x in (a, p))
    assert error < max(2 * limit, 2**-7)


@pytest.mark.parametrize(
  ('implementation', 'case'),
  [
    *itertools.product(['plain', 'blockwise', 'splash'], ['window', 'causal']),
    ('flash', 'causal'),
    ('flash', 'both ways'),
  ],
)
def test_nothing_leaks_between_examples(implementation, case):
  seen, settings = settings_of(case)
  q, k, v, _ = arrays()
  first = (jnp.arange(LENGTH) < FIRST)[None, :, None, None]

  def loss(q, k, v):
    out = attend(q, k, v, seen, implementation=implementation, **settings)
    return jnp.where(first, out, 0).sum()

  for x in jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v):
    assert np.any(x[:, :FIRST]) and not np.any(x[:, FIRST:])


@pytest.mark.parametrize('implementation', ['blockwise', 'splash'])
def test_a_window_that_depends_on_the_layer(implementation):
  seen = Visibility(segments(), positions=positions())
  given = arrays()

  @jax.jit
  def layers(flags):
    def layer(_, windowed):
      return None, attend(
        *given[:3],
        seen,
        window=40,
        windowed=windowed,
        implementation=implementation,
      )

    return jax.lax.scan(layer, None, flags)[1]

  with_window, without = layers(jnp.array([True, False]))
  real = np.asarray(seen.segments) > 0
  for actual, settings in ((with_window, {'window': 40}), (without, {})):
    expected = attend(*given[:3], seen, implementation='plain', **settings)
    np.testing.assert_allclose(actual[real], expected[real], rtol=0, atol=2e-6)


@pytest.mark.parametrize('implementation', ['blockwise', 'splash'])
def test_other_keys_than_queries(implementation):
  """As the decoder of T5 sees its encoder; padding may see nobody."""
  queries, keys = segments()[:, :90], segments() + (segments() == 0) * 3
  seen = Visibility(queries, keys, causal=False)
  q, k, v, weights = arrays()
  given = q[:, :90], k, v, weights[:, :90]
  actual = results(implementation, *given, seen)
  expected = results('plain', *given, seen)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=0, atol=150 * 2**-23 * abs(e).max())


def test_who_sees_nobody_gets_nothing_from_blockwise():
  ones = jnp.ones((1, 8), jnp.int32)
  seen = Visibility(2 * ones, ones, causal=False)
  x = jnp.ones((1, 8, 1, WIDTH))
  out = attend(x, x, x, seen, implementation='blockwise')
  assert not np.any(out)


def test_short_rows_are_plain_on_accelerators_alone():
  def program(length, platform):
    shapes = [
      jax.ShapeDtypeStruct((2, length, HEADS, WIDTH), 'float32')
      for _ in range(3)
    ]
    seen = Visibility(jnp.ones((2, length), jnp.int32))
    traced = jax.jit(lambda *x: attend(*x, seen)).trace(*shapes)
    return traced.lower(lowering_platforms=(platform,)).as_text()

  short, long = attend_module.SHORT, attend_module.SHORT + 128
  scores = f'2x{HEADS}x{short}x{short}xf32'
  assert scores in program(short, 'tpu')
  for case in ((short, 'cpu'), (long, 'cpu'), (long, 'tpu')):
    assert f'{case[0]}x{case[0]}x' not in program(*case)


def test_blocks_without_a_segment_in_common_are_not_visited():
  """What stands there would spoil the sums if it was."""
  seen = Visibility(segments())
  q, k, v, _ = arrays()
  # The second example is all in blocks 2 to 4 of 32, the first in 0 to 2.
  spoiled = v.at[:, :32].set(jnp.nan)
  expected = attend(q, k, v, seen, implementation='plain')
  for x in (v, spoiled):
    actual = attend(q, k, x, seen, implementation='blockwise')[:, 96:130]
    np.testing.assert_allclose(actual, expected[:, 96:130], rtol=0, atol=2e-6)


def test_what_a_kernel_cannot_do_is_refused_by_name():
  q, k, v, _ = arrays()
  seen = Visibility(segments(), **branched())
  for name in ('splash', 'flash'):
    with pytest.raises(ValueError, match=f"'{name}': segments branch; take"):
      attend(q, k, v, seen, implementation=name)
  with pytest.raises(ValueError, match="'flash': scores are capped; take"):
    attend(q, k, v, Visibility(segments()), softcap=5.0, implementation='flash')
  dense = jnp.zeros((1, HEADS, LENGTH, LENGTH))
  with pytest.raises(ValueError, match="attention='blockwise': scores have a"):
    attend(q, k, v, seen, bias=dense, implementation='blockwise')
  with pytest.raises(ValueError, match="attention='some' must be one of auto"):
    attend_module.check_implementation('some')


def test_relative_biases_of_long_rows_are_frozen():
  q, k, v, _ = arrays()
  seen = Visibility(segments())

  def loss(values):
    bias = OffsetBias(values)
    return attend(q, k, v, seen, bias=bias, implementation='blockwise').sum()

  with pytest.raises(ValueError, match="take attention='plain'"):
    jax.grad(loss)(jnp.ones((HEADS, 2 * LENGTH - 1)))


def test_biases_of_a_block_are_those_of_all():
  bias = OffsetBias(jnp.arange(2 * 2 * 10 - 2.0).reshape(2, 19))
  whole = bias.of_all(10)[0]
  for i in range(3):
    for j in range(3):
      expected = whole[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
      rows, columns = expected.shape[1:]
      actual = bias.of_block(jnp.int32(i), jnp.int32(j), 4)
      np.testing.assert_array_equal(actual[:, :rows, :columns], expected)


@pytest.mark.long
def test_on_a_mesh_every_device_attends_to_its_own():
  code = 'from tests.models import attend_on_a_mesh as it; it.compare()'
  # In a process of its own, which has eight devices.
  run = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert run.returncode == 0, run.stderr


@pytest.mark.parametrize('window', [None, 1, 5, 8, 19])
def test_blocks_of_a_mask_are_known_by_their_distance(window):
  from jax.experimental.pallas.ops.tpu import splash_attention

  settings, kind = {}, splash_attention.CausalMask
  if window is not None:
    settings = {'window_size': (window - 1, 0), 'offset': 0}
    kind = splash_attention.LocalMask
  quick = splash._by_distance(kind, window or 0)((32, 32), **settings)
  exact = kind((32, 32), **settings)
  starts = range(0, 32, 4)
  for row, column in itertools.product(starts, starts):
    block = slice(row, row + 4), slice(column, column + 4)
    np.testing.assert_array_equal(quick[block], exact[block])


def test_masks_of_all_pairs_of_blocks_never_exist_together():
  """They are the same in all layers, but not worth the memory."""
  q, k, v, _ = arrays()
  seen = Visibility(segments())

  @jax.checkpoint
  def layer(x, _):
    return attend(x, k, v, seen, implementation='blockwise'), None

  def loss(q):
    return jax.lax.scan(layer, q, None, length=2)[0].sum()

  program = str(jax.make_jaxpr(jax.grad(loss))(q))
  blocks = -(-LENGTH // 32)
  assert f'[{blocks},2,{HEADS}' in program
  assert f'[{blocks},{blocks},' not in program


def test_memory_grows_with_the_length_here_too():
  def needed(length):
    x = jax.ShapeDtypeStruct((1, length, 2, WIDTH), 'float32')
    seen = Visibility(jnp.ones((1, length), jnp.int32))
    gradient = jax.jit(jax.grad(lambda *x: attend(*x, seen).sum(), (0, 1, 2)))
    compiled = gradient.lower(x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # Four times, and less for what a block needs at any length.
  assert needed(4096) <= 4 * needed(1024)
