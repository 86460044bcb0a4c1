"""Are answers scored faster than by lm-eval's own class for transformers?

SmolLM2-135M-Instruct scores every choice of some questions by its likelihood.
This compares the evaluation of lora_opt, in whose rows the choices of a
question share its prompt, with the class `HFLM` of lm-eval with torch, which
reads the prompt again for every choice. Both get the same token ids and the
same dequantised weights, and take turns. Needs torch, transformers and lm-eval.
"""

import argparse
import pathlib
import time

import jax
import numpy as np
import torch
import tqdm
import transformers
from lm_eval.models.huggingface import HFLM

from experiments import results
from experiments.scoring.table import table
from experiments.smollm2_torch import smollm2_in_torch
from experiments.zero_shot import questions
from lora_opt.devices.partitioning import DATA_PARALLEL
from lora_opt.evaluation.evaluate import Evaluator
from lora_opt.models import smollm2_135m

FOLDER = pathlib.Path(__file__).parent


def theirs(model, dtype: str, batch_size: int) -> HFLM:
  """Makes lm-eval's model with the same weights and token ids."""
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=model.tokenizer.core, eos_token='<|im_end|>'
  )
  network = smollm2_in_torch(model).to(getattr(torch, dtype))
  return HFLM(
    pretrained=network,
    tokenizer=tokenizer,
    batch_size=batch_size,
    device='cpu',
  )


def pairs(task, tokenizer) -> list:
  """The inputs of `HFLM`: prompts with choices, as texts and as token ids."""
  asked = []
  for example in task.examples('eval'):
    prompt, rests, _ = task.encode_scored(example, tokenizer)
    for choice, rest in zip(example.choices, rests, strict=True):
      asked.append(((example.prompt, choice), list(prompt), list(rest)))
  return asked


def saved(model, task, batch_size: int) -> float:
  """The ratio of the products that `HFLM` computes to those that are needed.

  It multiplies every token of every pair, and the padding of its batches, with
  the layers and with the vocabulary. It is enough to multiply every prompt and
  choice once with the layers, and the tokens of choices with the vocabulary.
  (Products within attention are left out on both sides.)
  """
  vocabulary = model.config.vocab_size * model.config.embed_dim
  whole = sum(x.size for x in jax.tree.leaves(model.base)) - vocabulary
  prompts, choices, pairs = 0, 0, []
  for example in task.examples('eval'):
    prompt, rests, _ = task.encode_scored(example, model.tokenizer)
    prompts += len(prompt)
    choices += sum(map(len, rests))
    pairs += [len(prompt) + len(rest) - 1 for rest in rests]
  pairs.sort(reverse=True)
  batches = [
    pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)
  ]
  tokens = sum(batch[0] * len(batch) for batch in batches)
  needed = (prompts + choices) * whole + choices * vocabulary
  return tokens * (whole + vocabulary) / needed


def timed(function):
  began = time.perf_counter()
  result = function()
  return time.perf_counter() - began, result


def measure(model, peer, task, rounds: int, batch_size: int) -> dict:
  """Times both sides in turn, and compares their answers."""
  evaluate = Evaluator(model, task, DATA_PARALLEL.place(model), batch_size=4)
  asked = pairs(task, model.tokenizer)

  def ours():
    found = evaluate(model.base, None)['predictions']
    return np.concatenate([p['log_likelihoods'] for p in found])

  def other():
    # The method behind its cache of results, so that every round scores.
    found = peer._loglikelihood_tokens(asked, disable_tqdm=True)
    return np.array([likelihood for likelihood, _ in found])

  compiling, _ = timed(ours)
  seconds = {'ours': [], 'theirs': []}
  for number in tqdm.trange(rounds, desc=task.name):
    sides = [('ours', ours), ('theirs', other)]
    answers = {}
    for name, side in sides if number % 2 else sides[::-1]:
      spent, answers[name] = timed(side)
      seconds[name].append(spent)
  ratios = np.divide(seconds['theirs'], seconds['ours'])
  apart = np.abs(answers['ours'] - answers['theirs'])
  return {
    'set': task.name,
    'questions': len(task.examples('eval')),
    'choices': len(asked),
    'ours': float(np.median(seconds['ours'])),
    'theirs': float(np.median(seconds['theirs'])),
    'first': compiling,
    'ratio': float(np.median(ratios)),
    'lowest': float(ratios.min()),
    'highest': float(ratios.max()),
    'apart': float(apart.max()),
    'saved': saved(model, task, batch_size),
  }


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument('data_dir', help='has <set>/test.jsonl')
  parser.add_argument('--sets', nargs='+', default=['hellaswag', 'arc_easy'])
  parser.add_argument('--questions', type=int, default=100)
  parser.add_argument('--dtypes', nargs='+', default=['float32', 'bfloat16'])
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--batch_size', type=int, default=16, help="lm-eval's")
  parser.add_argument('--out', type=pathlib.Path, default=FOLDER)
  args = parser.parse_args(argv)
  torch.set_num_threads(2)
  rows = []
  for dtype in args.dtypes:
    model = smollm2_135m(dtype=dtype)
    peer = theirs(smollm2_135m(), dtype, args.batch_size)
    for name in args.sets:
      source = questions.rows(args.data_dir, name)
      some = [source[i] for i in range(min(args.questions, len(source)))]
      task = questions.task(name, some)
      found = measure(model, peer, task, args.rounds, args.batch_size)
      rows.append({'dtype': dtype, **found})
      print(table(rows), flush=True)
  results.save_rows(args.out / 'results.jsonl', rows)


if __name__ == '__main__':
  main()
