"""What does SmolLM2 score, without training, on six sets of questions?

Every question of the test files is scored by the likelihood of its choices.
Predictions are appended to OUT/<set>.jsonl as they are made; when started
again, the same command continues after the last one. At the end of a set, its
scores go to OUT/scores.json, from which `experiments.zero_shot.table` writes
the table.
"""

import argparse
import json
import pathlib
import time

from experiments.zero_shot import questions
from lora_opt.devices.partitioning import DATA_PARALLEL
from lora_opt.evaluation import metrics
from lora_opt.evaluation.evaluate import Evaluator
from lora_opt.models import smollm2_135m

CHUNK = 250  # questions between two writes
METRICS = (
  metrics.accuracy(),
  metrics.accuracy_per_token(),
  metrics.accuracy_per_byte(),
)


def predict(evaluator, model, name, source, path):
  """Appends the predictions that the file lacks, and returns all."""
  done = _whole_lines(path)
  for start in range(len(done), len(source), CHUNK):
    some = [source[i] for i in range(start, min(start + CHUNK, len(source)))]
    began = time.monotonic()
    evaluate = evaluator(model, questions.task(name, some))
    predictions = evaluate(model.base, None)['predictions']
    with path.open('a', encoding='utf-8') as file:
      file.writelines(
        json.dumps(p, ensure_ascii=False) + '\n' for p in predictions
      )
    done += predictions
    seconds = time.monotonic() - began
    print(f'{name}: {len(done)}/{len(source)}, {seconds:.0f} s', flush=True)
  return done


def _whole_lines(path):
  """The predictions of an earlier run, without an incomplete last line."""
  if not path.exists():
    return []
  text = path.read_text(encoding='utf-8')
  whole = text[: text.rfind('\n') + 1]
  path.write_text(whole, encoding='utf-8')
  return [json.loads(line) for line in whole.splitlines()]


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument('data_dir', help='has <set>/test.jsonl')
  parser.add_argument('--sets', nargs='+', default=list(questions.PROMPTS))
  parser.add_argument('--out', default='runs/zero_shot', type=pathlib.Path)
  args = parser.parse_args(argv)
  args.out.mkdir(parents=True, exist_ok=True)
  model = smollm2_135m()
  placement = DATA_PARALLEL.place(model)

  def evaluator(model, task):
    return Evaluator(model, task, placement, batch_size=4)

  for name in args.sets:
    source = questions.rows(args.data_dir, name)
    path = questions.predictions_file(args.out, name)
    predictions = predict(evaluator, model, name, source, path)
    scores_file = args.out / 'scores.json'
    scores = (
      json.loads(scores_file.read_text(encoding='utf-8'))
      if scores_file.exists()
      else {}
    )
    scores[name] = {
      'num_examples': len(predictions),
      **metrics.score_all(METRICS, predictions),
    }
    scores_file.write_text(
      json.dumps(scores, indent=1) + '\n', encoding='utf-8'
    )
    print(f'{name}: {json.dumps(scores[name])}', flush=True)


if __name__ == '__main__':
  main()
