"""Starts at which a factor cannot move: they train as others do.

Where one factor is zero the gradient of the other vanishes; where a direction
is missing in both, both rest. A method that divides by factors can freeze
there without a word, or leap.
"""

import jax.numpy as jnp
import optax
import pytest

from tests.core import problems


def start(kind, dtype):
  """mixed_tree with all sites deficient in one way."""
  tree = problems.mixed_tree(dtype, zero_b=False)

  def site(x):
    a, b = x['lora_a'], x['lora_b']
    if kind == 'B = 0':
      b = 0 * b
    elif kind == 'A = 0':
      a = 0 * a
    elif kind == 'B of rank one':
      b = b.at[..., 1:, :].set(b[..., :1, :])
    elif kind == 'A of rank one':
      a = a.at[..., :, 1:].set(a[..., :, :1])
    return {'lora_a': a, 'lora_b': b}

  return {
    'layers': {k: site(v) for k, v in tree['layers'].items()},
    'head': site(tree['head']),
    'tail': site(tree['tail']),
  }


KINDS = ['B = 0', 'A = 0', 'B of rank one', 'A of rank one']
DTYPES = [
  jnp.float32,
  jnp.bfloat16,
  pytest.param(jnp.float16, marks=pytest.mark.long),
]


def relative_losses(name, dtype, steps, method):
  """{start: last loss / first loss}, with a decaying learning rate."""
  rate = optax.cosine_decay_schedule(problems.RATES[name], steps)
  trainer, last = (
    problems.Trainer(problems.recipe(name, rate, method=method)),
    {},
  )
  for kind in ['full rank', *KINDS]:
    # Targets of rank one: at B = 0 the gradient has not all directions.
    params, _, first, end = trainer.train(start(kind, dtype), steps, rank=1)
    assert problems.is_finite(params), kind
    last[kind] = end / first
  return last


def floor_of(dtype):
  """What 16 bits resolve; float32 is at 1e-5 to 1e-6 after 300 steps."""
  return 1e-4 if dtype == jnp.float32 else 3e-3


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', ['lora_rite', 'lora_rite low memory'])
def test_lora_rite_trains_as_from_full_rank(name, dtype, method):
  last = relative_losses(name, dtype, 300, method)
  if name == 'lora_rite low memory':
    # The first step leaves directions in A that are rounding alone. They count,
    # so B grows there and the pair gets ill-conditioned: what is found from the
    # momentum then no longer resolves the last factors. One of ten
    # perturbations by 1e-7 ends near 0.07, not at 1e-5.
    assert last.pop('A of rank one') < 0.2, last
  assert all(last[kind] < floor_of(dtype) for kind in last), last


@pytest.mark.parametrize('dtype', DTYPES)
def test_reflora_does_not_freeze(dtype, method):
  """B deficient, as LoRA starts: no worse than full rank.

  A deficient: Adam behind S sees gradients of a badly conditioned problem and
  takes more steps.
  """
  last = relative_losses('reflora', dtype, 1000, method)
  floor = floor_of(dtype)
  for kind in ('B = 0', 'B of rank one'):
    assert last[kind] < max(1.5 * last['full rank'], floor), last
  for kind in ('A = 0', 'A of rank one'):
    assert last[kind] < max(10 * floor, 1e-3), last


@pytest.mark.parametrize('dtype', DTYPES)
def test_real_refactoring_trains_as_from_full_rank(dtype, method):
  last = relative_losses('reflora real', dtype, 300, method)
  assert all(last[kind] < floor_of(dtype) for kind in last), last
