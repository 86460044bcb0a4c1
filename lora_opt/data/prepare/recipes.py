"""Recipes: for each data set, the publisher's files and our fields.

There is one entry per data set. `splits` names the files of each split,
relative to the raw folder in the publisher's layout. If a set is distributed in
several layouts, they are listed as alternatives and the first that exists is
used. `test` is what scores are reported on. For sets whose test labels were
never published (GLUE and others), that is the development set.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lora_opt.data.prepare import natural_instructions, readers, rows

Files = tuple[str, ...]


def _no_more(*paths: pathlib.Path) -> Iterator[pathlib.Path]:
  yield from paths


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How one data set is prepared.

  Attributes:
    splits: the alternatives for each split; the files of one alternative are
      read together.
    read: yields the raw rows of those files, with their places.
    row: makes a row from a raw one, or raises an error that says what is wrong.
    fields: our fields and their types: 'text', 'texts', 'int', 'float' or
      'bool'.
    homepage: where the files come from.
    licence: as the publisher declares it.
    all_files: all files that `read` opens, for the checksums.
  """

  splits: Mapping[str, Sequence[Files]]
  read: Callable[..., readers.Placed]
  row: Callable[[Any], dict[str, Any]]
  fields: Mapping[str, str]
  homepage: str
  licence: str
  all_files: Callable[..., Iterator[pathlib.Path]] = _no_more


def _splits(**files: str | Sequence[str]) -> dict[str, list[Files]]:
  """One file per split, or alternatives for it."""
  return {
    split: [(f,) for f in ([names] if isinstance(names, str) else names)]
    for split, names in files.items()
  }


CHOICE = {'question': 'text', 'choices': 'texts', 'answer': 'int'}
PROBLEM = {'question': 'text', 'answer': 'text', 'final': 'text'}
PAIR = {'sentence1': 'text', 'sentence2': 'text', 'label': 'int'}
ENTAILS = ('entailment', 'not_entailment')
INSTRUCTION = {'question': 'text', 'output': 'text', 'answer': 'text'}
COMMONSENSE = (
  'boolq', 'piqa', 'social_i_qa', 'hellaswag', 'winogrande', 'ARC-Easy',
  'ARC-Challenge', 'openbookqa',
)  # fmt: skip
ADAPTERS = 'https://github.com/AGI-Edgerunners/LLM-Adapters'
ADAPTERS_LICENCE = "ODC-By; each part under its own set's licence"
GLUE = 'https://gluebenchmark.com/tasks'
OPENBOOK = 'OpenBookQA-V1-Sep2018/Data/Main'
ARC = 'https://allenai.org/data/arc'


def _arc(name: str) -> Recipe:
  folder = f'ARC-V1-Feb2018-2/{name}/{name}'
  return Recipe(
    _splits(
      train=(f'{folder}-Train.jsonl', f'{name}-Train.jsonl'),
      validation=(f'{folder}-Dev.jsonl', f'{name}-Dev.jsonl'),
      test=(f'{folder}-Test.jsonl', f'{name}-Test.jsonl'),
    ),
    readers.json_lines,
    rows.lettered,
    CHOICE,
    ARC,
    'CC BY-SA 4.0',
  )


def _glue(
  folder: str,
  row: Callable[[Any], dict[str, Any]],
  fields: Mapping[str, str],
  read: Callable[..., readers.Placed] = readers.table,
  **splits: Sequence[str],
) -> Recipe:
  splits = splits or {'train': ['train.tsv'], 'test': ['dev.tsv']}
  found = {
    split: [f'{folder}/{name}' for name in names] + list(names)
    for split, names in splits.items()
  }
  return Recipe(
    _splits(**found), read, row, fields, GLUE, 'each set under its own licence'
  )


def _labelled(folder: str, part: str, train: str, test: str) -> Recipe:
  """A set of JSON lines with a second file of labels."""
  files = {
    split: [
      (f'{place}{name}.jsonl', f'{place}{name}-labels.lst')
      for place in (folder, '')
    ]
    for split, name in (('train', train), ('test', test))
  }
  return Recipe(
    files,
    readers.json_lines_with_labels,
    getattr(rows, part),
    CHOICE,
    f'https://leaderboard.allenai.org/{part}',
    {'piqa': 'AFL-3.0', 'siqa': 'CC BY 4.0'}[part],
  )


RECIPES: Mapping[str, Recipe] = {
  'gsm8k': Recipe(
    _splits(
      train=('grade_school_math/data/train.jsonl', 'train.jsonl'),
      test=('grade_school_math/data/test.jsonl', 'test.jsonl'),
    ),
    readers.json_lines,
    rows.gsm8k,
    PROBLEM,
    'https://github.com/openai/grade-school-math',
    'MIT',
  ),
  'arc_easy': _arc('ARC-Easy'),
  'arc_challenge': _arc('ARC-Challenge'),
  'openbookqa': Recipe(
    _splits(
      **{
        split: (
          f'OpenBookQA-V1-Sep2018/Data/Main/{file}.jsonl',
          f'{file}.jsonl',
        )
        for split, file in (
          ('train', 'train'),
          ('validation', 'dev'),
          ('test', 'test'),
        )
      }
    ),
    readers.json_lines,
    rows.lettered,
    CHOICE,
    'https://allenai.org/data/open-book-qa',
    'Apache-2.0',
  ),
  'hellaswag': Recipe(
    _splits(
      train=('data/hellaswag_train.jsonl', 'hellaswag_train.jsonl'),
      test=('data/hellaswag_val.jsonl', 'hellaswag_val.jsonl'),
    ),
    readers.json_lines,
    rows.hellaswag,
    CHOICE,
    'https://github.com/rowanz/hellaswag',
    'MIT',
  ),
  'boolq': Recipe(
    _splits(train='train.jsonl', test='dev.jsonl'),
    readers.json_lines,
    rows.boolq,
    {'passage': 'text', 'question': 'text', 'answer': 'bool'},
    'https://github.com/google-research-datasets/boolean-questions',
    'CC BY-SA 3.0',
  ),
  'piqa': _labelled('physicaliqa-train-dev/', 'piqa', 'train', 'dev'),
  'siqa': _labelled('socialiqa-train-dev/', 'siqa', 'train', 'dev'),
  'winogrande': Recipe(
    _splits(
      train=('winogrande_1.1/train_xl.jsonl', 'train_xl.jsonl'),
      test=('winogrande_1.1/dev.jsonl', 'dev.jsonl'),
    ),
    readers.json_lines,
    rows.winogrande,
    {'before': 'text', 'after': 'text', **CHOICE},
    'https://winogrande.allenai.org',
    'CC BY 4.0',
  ),
  'commonsense_170k': Recipe(
    _splits(
      train=('ft-training_set/commonsense_170k.json', 'commonsense_170k.json'),
      **{
        name.lower().replace('-', '_'): (
          f'dataset/{name}/test.json',
          f'{name}/test.json',
        )
        for name in COMMONSENSE
      },
    ),
    readers.json_list,
    rows.instruction,
    INSTRUCTION,
    ADAPTERS,
    ADAPTERS_LICENCE,
  ),
  'math_10k': Recipe(
    _splits(train=('ft-training_set/math_10k.json', 'math_10k.json')),
    readers.json_list,
    rows.worked_problem,
    PROBLEM,
    ADAPTERS,
    ADAPTERS_LICENCE,
  ),
  'addsub': Recipe(
    _splits(test=('dataset/AddSub/AddSub.json', 'AddSub.json')),
    readers.json_list,
    rows.arithmetic,
    PROBLEM,
    ADAPTERS,
    'not declared (Hosseini et al. 2014)',
  ),
  'multiarith': Recipe(
    _splits(test=('dataset/MultiArith/MultiArith.json', 'MultiArith.json')),
    readers.json_list,
    rows.arithmetic,
    PROBLEM,
    ADAPTERS,
    'not declared (Roy and Roth 2015)',
  ),
  'svamp': Recipe(
    _splits(test='SVAMP.json'),
    readers.json_list,
    rows.svamp,
    PROBLEM,
    'https://github.com/arkilpatel/SVAMP',
    'MIT',
  ),
  'aqua': Recipe(
    _splits(train='train.json', validation='dev.json', test='test.json'),
    readers.json_lines,
    rows.aqua,
    PROBLEM,
    'https://github.com/google-deepmind/AQuA',
    'Apache-2.0',
  ),
  'super_ni': Recipe(
    _splits(
      train='splits/default/train_tasks.txt',
      test='splits/default/test_tasks.txt',
    ),
    natural_instructions.read,
    natural_instructions.row,
    {
      'task': 'text',
      'categories': 'texts',
      'definition': 'text',
      'example_inputs': 'texts',
      'example_outputs': 'texts',
      'example_explanations': 'texts',
      'input': 'text',
      'outputs': 'texts',
    },
    'https://github.com/allenai/natural-instructions',
    'Apache-2.0; each task under the licence of its source',
    natural_instructions.files,
  ),
  'cola': _glue(
    'CoLA', rows.cola, {'sentence': 'text', 'label': 'int'}, readers.bare_table
  ),
  'sst2': _glue(
    'SST-2',
    rows.columns(sentence='sentence', label='label'),
    {'sentence': 'text', 'label': 'int'},
  ),
  'mrpc': _glue(
    'MRPC',
    rows.columns(sentence1='#1 String', sentence2='#2 String', label='Quality'),
    PAIR,
    train=['train.tsv', 'msr_paraphrase_train.txt'],
    test=['dev.tsv', 'msr_paraphrase_test.txt'],
  ),
  'stsb': _glue(
    'STS-B',
    rows.columns(sentence1='sentence1', sentence2='sentence2', score='score'),
    {'sentence1': 'text', 'sentence2': 'text', 'score': 'float'},
  ),
  'qqp': _glue(
    'QQP',
    rows.columns(
      question1='question1', question2='question2', label='is_duplicate'
    ),
    {'question1': 'text', 'question2': 'text', 'label': 'int'},
  ),
  'mnli': _glue(
    'MNLI',
    rows.named(
      ('entailment', 'neutral', 'contradiction'),
      premise='sentence1',
      hypothesis='sentence2',
      label='gold_label',
    ),
    {'premise': 'text', 'hypothesis': 'text', 'label': 'int'},
    train=['train.tsv'],
    test_matched=['dev_matched.tsv'],
    test_mismatched=['dev_mismatched.tsv'],
  ),
  'qnli': _glue(
    'QNLI',
    rows.named(
      ENTAILS, question='question', sentence='sentence', label='label'
    ),
    {'question': 'text', 'sentence': 'text', 'label': 'int'},
  ),
  'rte': _glue(
    'RTE',
    rows.named(
      ENTAILS, sentence1='sentence1', sentence2='sentence2', label='label'
    ),
    PAIR,
  ),
  'wnli': _glue(
    'WNLI',
    rows.columns(sentence1='sentence1', sentence2='sentence2', label='label'),
    PAIR,
  ),
}
