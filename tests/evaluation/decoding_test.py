"""Cached greedy decoding writes what the whole model would, token by token."""

import jax
import numpy as np
import pytest

from lora_opt.data.eval_batching import pad_prompts
from lora_opt.data.tasks import Generation
from lora_opt.evaluation.decoding import make_greedy_decoder

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
  decode = make_greedy_decoder(model, NEW, end_id=-1, placement=placement)
  lora = moved(model)
  out = np.asarray(decode(model.base, lora, batch.tokens, batch.valid))
  for row, index in enumerate(batch.example):
    if index >= 0:
      ids = batch.tokens[row][batch.valid[row]].tolist()
      assert out[row].tolist() == written_without_cache(model, lora, ids, NEW)


def test_a_row_that_ended_stays_ended_and_others_go_on(model, placement):
  tokens = np.array([[5, 6], [7, 8]], np.int32)
  valid = np.ones((2, 2), bool)
  lora = moved(model)
  free = np.asarray(
    make_greedy_decoder(model, NEW, end_id=-1, placement=placement)(
      model.base, lora, tokens, valid
    )
  )
  # Whatever the first row writes first ends it; the second goes its way.
  end = int(free[0, 0])
  out = np.asarray(
    make_greedy_decoder(model, NEW, end, placement)(
      model.base, lora, tokens, valid
    )
  )
  assert out[0].tolist() == [end] * NEW
  second = free[1].tolist()
  stop = second.index(end) if end in second else NEW
  assert out[1].tolist() == second[:stop] + [end] * (NEW - stop)
