"""The training data: the same examples for both sides.

Case `padded`: 8 x 128 tokens; every row is full, and all tokens but the first
are targets.
Tasks of real examples: for transformers, batches of 8 that are padded to the
longest, as its Trainer does; for lora_opt, packed into 2 rows of 512, as its
main job does.
"""

import pathlib
from collections.abc import Iterator

import numpy as np

from lora_opt.data import sources
from lora_opt.data.tasks import Generation

ROWS, LENGTH = 8, 128
PACKED_ROWS, PACKED_LENGTH = 2, 512
PADDED = 'padded'


def task(data_dir: str, name: str) -> Generation:
  """A task of JSON lines with question and answer, such as gsm8k."""
  rows = sources.JsonLines(f'{name}/train.jsonl', folder=data_dir)
  return Generation(
    name=name, train=rows, eval=rows, prompt='{question}', answer='answer'
  )


def random_tokens(vocab_size: int) -> np.ndarray:
  """Token ids (ROWS, LENGTH)."""
  return np.random.default_rng(0).integers(
    vocab_size, size=(ROWS, LENGTH), dtype=np.int32
  )


def packed_batches(case: str, data_dir: str, model) -> Iterator[dict]:
  """Yields the batches that lora_opt trains on."""
  if case == PADDED:
    tokens = random_tokens(model.config.vocab_size)
    ones = np.ones_like(tokens)
    batch = {
      'tokens': tokens,
      'targets': np.roll(tokens, -1, axis=1),
      'weights': ones.astype(np.float32),
      'segment_ids': ones,
      'positions': np.cumsum(ones, axis=1, dtype=np.int32) - 1,
    }
    # The last token has no next one; the same is true in transformers.
    batch['weights'][:, -1] = 0
    while True:
      yield batch
  yield from task(data_dir, case).train_batches(
    model.tokenizer, length=PACKED_LENGTH, batch_size=PACKED_ROWS, seed=0
  )


def write_padded_batches(
  path: pathlib.Path, case: str, data_dir: str, model, count: int
) -> None:
  """Writes transformers' batches: `count` arrays of ids, labels and mask."""
  arrays = {}
  for number in range(count):
    if case == PADDED:
      examples = [(row, 0) for row in random_tokens(model.config.vocab_size)]
    else:
      examples = list(_examples(task(data_dir, case), model, number))
    width = max(len(ids) for ids, _ in examples)
    ids = np.zeros((len(examples), width), np.int64)
    labels = np.full_like(ids, -100)
    mask = np.zeros_like(ids)
    for row, (tokens, prompt_length) in enumerate(examples):
      ids[row, : len(tokens)] = tokens
      labels[row, prompt_length : len(tokens)] = tokens[prompt_length:]
      mask[row, : len(tokens)] = 1
    for name, array in (('ids', ids), ('labels', labels), ('mask', mask)):
      arrays[f'{name}_{number}'] = array
  np.savez(path, **arrays)


def _examples(task, model, number):
  """Ids and prompt length of a random batch's examples that fit a row."""
  examples = task.examples('train')
  order = np.random.default_rng(0).permutation(len(examples))
  for index in order[number * ROWS : (number + 1) * ROWS]:
    prompt, completion = task.encode(examples[int(index)], model.tokenizer)
    if len(prompt) + len(completion) <= PACKED_LENGTH:
      yield [*prompt, *completion], len(prompt)
