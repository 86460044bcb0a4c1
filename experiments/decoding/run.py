"""Is cached generation as fast as `transformers` on the same machine?

SmolLM2-135M-Instruct continues 16 prompts of different lengths greedily. It is
run by lora_opt and by the `generate` of transformers, with torch on the same
dequantised weights, in turn, several times. `full` generates all tokens of
every row. `ending` stops each row at its end, and the batch when the last row
has ended. Needs torch and transformers.
"""

import argparse
import pathlib
import time

import jax
import numpy as np
import torch

from experiments import results
from experiments.decoding.table import table
from experiments.smollm2_torch import smollm2_in_torch
from lora_opt.devices.partitioning import DATA_PARALLEL
from lora_opt.evaluation.decoding import make_decoder
from lora_opt.models import smollm2_135m

SUBJECTS = (
  'a lighthouse', 'two rivers', 'the first bicycle', 'an old violin',
  'bread', 'a comet', 'the honey bee', 'a bridge in winter', 'tea',
  'a lost letter', 'the moon', 'glass', 'a desert town', 'whales',
  'a clockmaker', 'snow',
)  # fmt: skip


FOLDER = pathlib.Path(__file__).parent
# Added 0, 1 or 2 times to an instruction, so that lengths differ.
DETAIL = ' It should be told by somebody who was there, and in plain words.'


def prompts(tokenizer, rows, length):
  """Token ids (rows, length), padded on the left, and a mask of real ones."""
  tokens = np.zeros((rows, length), np.int32)
  valid = np.zeros((rows, length), bool)
  for row in range(rows):
    subject = SUBJECTS[row % len(SUBJECTS)]
    asked = f'Write a long story about {subject}.' + row % 3 * DETAIL
    turn = {'role': 'user', 'content': asked}
    text = tokenizer.apply_chat([turn], add_generation_prompt=True)
    ids = tokenizer.encode(text)[-length:]
    tokens[row, length - len(ids) :] = ids
    valid[row, length - len(ids) :] = True
  return tokens, valid


def timed(function):
  began = time.perf_counter()
  result = np.asarray(function())
  return time.perf_counter() - began, result


def measure(model, theirs, args, ending: bool) -> dict:
  """Times both sides in turn, and compares their tokens."""
  tokens, valid = prompts(model.tokenizer, args.rows, args.length)
  end = model.tokenizer.eos_id
  placement = DATA_PARALLEL.place(model)
  decode = make_decoder(model, args.new, [end if ending else -1], placement)
  rows = np.arange(args.rows, dtype=np.int32)
  inputs = {
    'input_ids': torch.tensor(tokens, dtype=torch.long),
    'attention_mask': torch.tensor(valid, dtype=torch.long),
  }

  def ours():
    return jax.block_until_ready(decode(model.base, None, tokens, valid, rows))

  def transformers():
    with torch.no_grad():
      out = theirs.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=args.new,
        min_new_tokens=None if ending else args.new,
        eos_token_id=end if ending else None,
        pad_token_id=end,
      )
    out = np.asarray(out[:, args.length :])
    room = [(0, 0), (0, args.new - out.shape[1])]
    return np.pad(out, room, constant_values=end)

  first, _ = timed(ours)
  seconds, ids = {'ours': [], 'theirs': []}, {}
  for number in range(args.rounds):
    sides = [('ours', ours), ('theirs', transformers)]
    for name, side in sides if number % 2 else sides[::-1]:
      spent, ids[name] = timed(side)
      seconds[name].append(spent)
  ratios = np.divide(seconds['theirs'], seconds['ours'])
  return {
    'case': 'ending' if ending else 'full',
    'rows': args.rows,
    'new': args.new,
    'first': first,
    'ours': float(np.median(seconds['ours'])),
    'theirs': float(np.median(seconds['theirs'])),
    'ratio': float(np.median(ratios)),
    'lowest': float(ratios.min()),
    'highest': float(ratios.max()),
    'same': float(np.mean(ids['ours'] == ids['theirs'])),
  }


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument('--rows', type=int, default=16)
  parser.add_argument('--length', type=int, default=64, help='of a prompt')
  parser.add_argument('--new', type=int, default=256, help='tokens written')
  parser.add_argument('--cases', nargs='+', default=['full', 'ending'])
  parser.add_argument('--dtypes', nargs='+', default=['float32', 'bfloat16'])
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--threads', type=int, default=2, help="torch's")
  parser.add_argument('--out', type=pathlib.Path, default=FOLDER)
  args = parser.parse_args(argv)
  torch.set_num_threads(args.threads)
  found = []
  for dtype in args.dtypes:
    model = smollm2_135m(dtype=dtype)
    theirs = smollm2_in_torch(smollm2_135m()).to(getattr(torch, dtype))
    for case in args.cases:
      row = measure(model, theirs, args, case == 'ending')
      found.append({'dtype': dtype, **row})
      print(table(found), flush=True)
      results.save_rows(args.out / 'results.jsonl', found)


if __name__ == '__main__':
  main()
