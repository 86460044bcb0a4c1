"""The frozen linear probe: logistic regression on MiniLM's own embeddings.

    python -m experiments.minilm_glue.probe DATA_DIR sst2 sentence
    python -m experiments.minilm_glue.probe DATA_DIR mrpc sentence1 sentence2

DATA_DIR holds a folder of the given name with train.jsonl and test.jsonl. A
pair of sentences goes through the tokenizer's template, as in training.
"""

import argparse

import jax
import numpy as np
import tqdm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

from lora_opt.data import sources, tasks
from lora_opt.evaluation.bootstrap import bootstrap_interval
from lora_opt.models import SequenceClassifier, minilm_l6


def embed(
  model: SequenceClassifier, task: tasks.Task, split: str, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Means of the last hidden states, and labels, of the first examples."""
  pooled = jax.jit(model.pooled)
  batches = list(
    task.label_batches(
      model.tokenizer,
      split=split,
      batch_size=32,
      longest=128,
      indices=range(min(count, len(task.examples(split)))),
    )
  )
  rows, labels = [], []
  for batch in tqdm.tqdm(batches, desc=split):
    real = batch.example >= 0
    found = np.asarray(pooled(model.base, None, batch.arrays))[:, 0]
    rows.append(found[real])
    labels.append(batch.arrays['labels'][real, 0])
  return np.concatenate(rows), np.concatenate(labels).astype(int)


def main() -> None:
  """Prints accuracy and F1 on the test split."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('data_dir')
  parser.add_argument('name')
  parser.add_argument('texts', nargs='+', help='one field or two')
  parser.add_argument('--train_examples', type=int, default=10_000)
  arguments = parser.parse_args()

  def source(split):
    file = f'{arguments.name}/{split}.jsonl'
    return sources.JsonLines(file, arguments.data_dir)

  task = tasks.Classification(
    name=arguments.name,
    train=source('train'),
    eval=source('test'),
    prompt='',
    texts=arguments.texts,
    label_names=('0', '1'),
  )
  model = minilm_l6()
  train = embed(model, task, 'train', arguments.train_examples)
  rows, labels = embed(model, task, 'eval', 10**9)
  scale = StandardScaler().fit(train[0])
  probe = LogisticRegression(max_iter=2000).fit(
    scale.transform(train[0]), train[1]
  )
  found = probe.predict(scale.transform(rows))
  right = found == labels
  low, high = bootstrap_interval(right)
  print(
    f'{arguments.name}: accuracy {right.mean():.3f} [{low:.3f}, {high:.3f}], '
    f'F1 {f1_score(labels, found):.3f} on {len(labels)} examples; '
    f'trained on {len(train[1])}'
  )


if __name__ == '__main__':
  main()
