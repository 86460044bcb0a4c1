"""Do transformers and torch choose as we do, question by question?

The Llama class of transformers gets the same dequantised weights. It scores one
choice after the other as a whole text, without packing or shared prefixes, and
tokenised by transformers. Needs torch and transformers. Reads OUT/<set>.jsonl
of `experiments.zero_shot.run`, compares the first questions of each set, prints
a row for each, writes OUT/agreement.json, and exits non-zero if a choice
differs.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

from experiments.smollm2_torch import smollm2_in_torch
from experiments.zero_shot import questions
from lora_opt.models import smollm2_135m


def log_likelihood(model, tokenizer, prompt, choice):
  """The log-likelihood of a choice, and its number of tokens."""
  start = tokenizer(prompt)['input_ids']
  ids = tokenizer(f'{prompt} {choice}')['input_ids']
  assert ids[: len(start)] == start, 'a token reaches across the boundary'
  with torch.no_grad():
    logits = model(torch.tensor([ids[:-1]])).logits[0].double()
  steps = torch.log_softmax(logits[len(start) - 1 :], -1)
  taken = steps[torch.arange(len(steps)), torch.tensor(ids[len(start) :])]
  return float(taken.sum()), len(steps)


def choose(model, tokenizer, question):
  """Log-likelihoods, and the best choices in total, per token and per byte."""
  prompt, choices = question['prompt'], question['choices']
  found = [log_likelihood(model, tokenizer, prompt, c) for c in choices]
  sums = np.array([total for total, _ in found])
  tokens = np.array([count for _, count in found])
  sizes = np.array([len(choice.encode()) for choice in choices])
  return sums, [int(np.argmax(sums / n)) for n in (1, tokens, sizes)]


def compare(model, tokenizer, predictions):
  """Number of questions that differ, and largest log-likelihood difference."""
  differ, largest = 0, 0.0
  for ours in predictions:
    sums, choices = choose(model, tokenizer, ours)
    fields = ('choice', 'choice_per_token', 'choice_per_byte')
    differ += choices != [ours[field] for field in fields]
    largest = max(largest, np.abs(sums - ours['log_likelihoods']).max())
  return {
    'questions': len(predictions),
    'differ': differ,
    'largest_difference': float(largest),
  }


def hugging_face_tokenizer(model):
  """The same tokenizer, read by transformers from its file."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'tokenizer.json'
    model.tokenizer.core.save(str(path))
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument('--questions', type=int, default=100)
  parser.add_argument('--sets', nargs='+', default=list(questions.PROMPTS))
  parser.add_argument('--out', default='runs/zero_shot', type=pathlib.Path)
  args = parser.parse_args(argv)
  ours = smollm2_135m()
  theirs, tokenizer = smollm2_in_torch(ours), hugging_face_tokenizer(ours)
  agreement_file = args.out / 'agreement.json'
  agreement = {}
  if agreement_file.exists():
    agreement = json.loads(agreement_file.read_text(encoding='utf-8'))
  for name in args.sets:
    path = questions.predictions_file(args.out, name)
    lines = path.read_text(encoding='utf-8').splitlines()[: args.questions]
    predictions = [json.loads(line) for line in lines]
    agreement[name] = compare(theirs, tokenizer, predictions)
    agreement_file.write_text(
      json.dumps(agreement, indent=1) + '\n', encoding='utf-8'
    )
    print(f'{name}: {json.dumps(agreement[name])}', flush=True)
  sys.exit(int(any(a['differ'] for a in agreement.values())))


if __name__ == '__main__':
  main()
