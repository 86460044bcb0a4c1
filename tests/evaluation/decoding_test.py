"""Cached decoding writes what the whole model would, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt.data.eval_batching import pad_prompts
from lora_opt.data.tasks import Generation
from lora_opt.evaluation.decoding import Sampling, make_decoder

pytestmark = pytest.mark.usefixtures('fast_compile')

NEW = 6


def moved(model):
  """Adapters away from their start, where the update is zero."""
  lora = model.init(jax.random.key(3))
  return jax.tree.map(lambda x: x + 0.05, lora)


def written_without_cache(model, lora, ids, count):
  logits = jax.jit(model.logits)
  total = len(ids) + count
  out = []
  for _ in range(count):
    seen = ids + out
    row = np.zeros((1, total), np.int32)
    row[0, : len(seen)] = seen
    segments = (np.arange(total) < len(seen)).astype(np.int32)[None]
    batch = {
      'tokens': row,
      'positions': np.arange(total, dtype=np.int32)[None],
      'segment_ids': segments,
    }
    last = logits(model.base, lora, batch)[0, len(seen) - 1]
    out.append(int(np.argmax(last)))
  return out


def test_cached_decoding_is_decoding(model, placement):
  prompts = ['one', 'a longer prompt', 'z']
  task = Generation(
    name='x',
    train=[{'question': 'q', 'answer': 'a'}],
    eval=[{'question': p, 'answer': 'a'} for p in prompts],
    chat=False,
  )
  (batch,) = pad_prompts(task, model.tokenizer, batch_size=4)
  # An id that is never written: every row goes to the end.
  decode = make_decoder(model, NEW, [-1], placement)
  lora = moved(model)
  out = np.asarray(
    decode(model.base, lora, batch.tokens, batch.valid, batch.example)
  )
  assert out[list(batch.example).index(-1)].tolist() == [-1] * NEW
  for row, index in enumerate(batch.example):
    if index >= 0:
      ids = batch.tokens[row][batch.valid[row]].tolist()
      assert out[row].tolist() == written_without_cache(model, lora, ids, NEW)


def test_a_row_that_ended_stays_ended_and_others_go_on(model, placement):
  tokens = np.array([[5, 6], [7, 8]], np.int32)
  valid, rows = np.ones((2, 2), bool), np.arange(2)
  lora = moved(model)

  def written(*end_ids):
    decode = make_decoder(model, NEW, end_ids, placement)
    return np.asarray(decode(model.base, lora, tokens, valid, rows))

  free = written(-1)
  # Whatever the first row writes first ends it; the second goes its way.
  end = int(free[0, 0])
  out = written(end, -1)
  assert out[0].tolist() == [end] * NEW
  second = free[1].tolist()
  stop = second.index(end) if end in second else NEW
  assert out[1].tolist() == second[:stop] + [end] * (NEW - stop)


def test_several_tokens_end_a_row_one_after_the_other(model, placement):
  tokens = np.array([[5, 6], [7, 8]], np.int32)
  valid, rows = np.ones((2, 2), bool), np.arange(2)
  lora = moved(model)

  def written(*sequences):
    decode = make_decoder(model, NEW, [-1], placement, end_sequences=sequences)
    return np.asarray(decode(model.base, lora, tokens, valid, rows))

  free = written().tolist()
  for size in (1, 2, NEW):
    out = written(free[0][1 : 1 + size], (1,) * 99)
    # What it begins with does not count, nor what is not yet written.
    starts = range(NEW - size + 1)
    for row, whole in zip(out.tolist(), free, strict=True):
      wanted = free[0][1 : 1 + size]
      found = [i + size for i in starts if whole[i : i + size] == wanted]
      end = min(found, default=NEW)
      assert row == whole[:end] + [-1] * (NEW - end)


def frequencies(sampling, logits, draws=4000):
  """How often each token is drawn."""
  keys = jax.random.split(jax.random.key(1), draws)
  rows = jnp.broadcast_to(jnp.asarray(logits)[None], (draws, len(logits)))
  tokens = np.asarray(jax.jit(sampling.pick)(rows, keys))
  return np.bincount(tokens, minlength=len(logits)) / draws


CHANCES = np.array([0.05, 0.4, 0.3, 0.15, 0.1])


@pytest.mark.parametrize(
  ('settings', 'kept', 'power'),
  [
    ({'temperature': 1.0}, [0, 1, 2, 3, 4], 1),
    ({'temperature': 0.5}, [0, 1, 2, 3, 4], 2),
    ({'temperature': 1.0, 'top_k': 2}, [1, 2], 1),
    ({'temperature': 1.0, 'top_k': 9}, [0, 1, 2, 3, 4], 1),
    ({'temperature': 1.0, 'top_p': 0.65}, [1, 2], 1),
    ({'temperature': 1.0, 'top_p': 0.75}, [1, 2, 3], 1),
    ({'temperature': 1.0, 'top_p': 1e-6}, [1], 1),
    # Of the three that top_k leaves, the first two have 0.82 together.
    ({'temperature': 1.0, 'top_k': 3, 'top_p': 0.8}, [1, 2], 1),
    ({'temperature': 0.0, 'top_k': 3}, [1], 1),
  ],
)
def test_tokens_are_drawn_by_their_chances(settings, kept, power):
  expected = np.zeros(5)
  expected[kept] = CHANCES[kept] ** power
  expected /= expected.sum()
  found = frequencies(Sampling(**settings), np.log(CHANCES).astype(np.float32))
  # Four standard deviations of 4000 draws at chance 1/2.
  np.testing.assert_allclose(found, expected, atol=4 * 0.5 / 4000**0.5)
  assert set(np.flatnonzero(found)) == set(kept)


def test_an_example_draws_the_same_in_every_batch(model, placement):
  tokens = np.array([[5, 6], [5, 6], [7, 8]], np.int32)
  valid = np.ones((3, 2), bool)

  def sampled(order, seed):
    sampling = Sampling(temperature=1.5, top_p=0.95, seed=seed)
    decode = make_decoder(model, 12, [-1], placement, sampling)
    rows = np.array(order)
    out = decode(model.base, moved(model), tokens[rows], valid, rows)
    return {row: ids.tolist() for row, ids in zip(order, out, strict=True)}

  first = sampled([0, 1, 2], seed=0)
  assert first == sampled([2, 0, 1], seed=0)
  assert first != sampled([0, 1, 2], seed=1)
  assert first[0] != first[1]


@pytest.mark.parametrize(
  'wrong', [{'temperature': -1.0}, {'top_k': 0}, {'top_p': 0.0}]
)
def test_settings_out_of_range_are_refused(wrong):
  with pytest.raises(ValueError, match=next(iter(wrong))):
    Sampling(**wrong)
