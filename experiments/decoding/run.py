"""Is cached generation as fast as `transformers` on the same machine?

SmolLM2-135M-Instruct writes 256 tokens for each of 16 prompts, greedily and
without an early end: once by lora_opt, once by `transformers` generate with
torch on the same dequantised weights, in turn, several times. Needs torch and
transformers. Prints the seconds of every round, the median ratio, and how many
tokens are the same.
"""

import argparse
import time

import jax
import numpy as np
import torch

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


def prompts(tokenizer, rows, length):
  """Token ids (rows, length) padded on the left, and which are real."""
  tokens = np.zeros((rows, length), np.int32)
  valid = np.zeros((rows, length), bool)
  for row in range(rows):
    subject = SUBJECTS[row % len(SUBJECTS)]
    turn = {'role': 'user', 'content': f'Write a long story about {subject}.'}
    text = tokenizer.apply_chat([turn], add_generation_prompt=True)
    ids = tokenizer.encode(text)[-length:]
    tokens[row, length - len(ids) :] = ids
    valid[row, length - len(ids) :] = True
  return tokens, valid


def timed(function):
  began = time.perf_counter()
  result = np.asarray(function())
  return time.perf_counter() - began, result


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument('--rows', type=int, default=16)
  parser.add_argument('--length', type=int, default=64, help='of a prompt')
  parser.add_argument('--new', type=int, default=256, help='tokens written')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--threads', type=int, default=2, help="torch's")
  args = parser.parse_args(argv)
  torch.set_num_threads(args.threads)
  model = smollm2_135m()
  theirs = smollm2_in_torch(model)
  tokens, valid = prompts(model.tokenizer, args.rows, args.length)
  decode = make_decoder(model, args.new, [-1], DATA_PARALLEL.place(model))
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
        min_new_tokens=args.new,
        pad_token_id=0,
      )
    return out[:, args.length :]

  print(f'compiled in {timed(ours)[0]:.1f} s')
  ratios = []
  for number in range(args.rounds):
    our_seconds, our_ids = timed(ours)
    their_seconds, their_ids = timed(transformers)
    ratios.append(our_seconds / their_seconds)
    print(
      f'round {number + 1}: lora_opt {our_seconds:.2f} s, transformers '
      f'{their_seconds:.2f} s, ratio {ratios[-1]:.2f}, '
      f'same tokens {100 * np.mean(our_ids == their_ids):.1f} %',
      flush=True,
    )
  low, middle, high = np.percentile(ratios, [25, 50, 75])
  print(f'time over transformers: {middle:.2f} [{low:.2f}, {high:.2f}]')


if __name__ == '__main__':
  main()
