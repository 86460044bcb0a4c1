"""Two SeqIO tasks on bytes: copying a word, and writing it in capitals."""

import random

import seqio
import tensorflow as tf

FEATURES = {
  name: seqio.Feature(seqio.ByteVocabulary(), add_eos=True)
  for name in ('inputs', 'targets')
}


def words(split, shuffle_files=False, seed=None):
  """Random words; the validation split is a different sequence."""
  del shuffle_files, seed
  source = random.Random(split)
  count = {'train': 20000, 'validation': 64}[split]
  letters = 'abcdefghijklmnopqrstuvwxyz'
  return tf.data.Dataset.from_tensor_slices(
    [''.join(source.choices(letters, k=6)) for _ in range(count)]
  )


def exact_match(targets, predictions):
  hits = [x == y for x, y in zip(targets, predictions, strict=True)]
  return {'exact_match': 100.0 * sum(hits) / len(hits)}


def add_task(name, change):
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(
      words, ['train', 'validation'],
      num_input_examples={'train': 20000, 'validation': 64},
    ),
    preprocessors=[
      seqio.map_over_dataset(lambda x: {'inputs': x, 'targets': change(x)}),
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos,
    ],
    output_features=FEATURES,
    metric_fns=[exact_match],
  )  # fmt: skip


add_task('copy_word', lambda x: x)
add_task('upper_word', tf.strings.upper)
