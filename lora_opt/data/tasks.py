"""Tasks: where questions come from, how they are asked, how answers score.

A task is a frozen dataclass with plain fields, so that a configuration can set
up any data set without code:

>>> task = MultipleChoice(
...   name='sky',
...   train=[{'question': 'Sky?', 'choices': ['blue', 'red'], 'answer': 0}],
...   eval=[{'question': 'Grass?', 'choices': ['red', 'green'], 'answer': 1}],
...   chat=False,
... )
>>> task.examples('eval')[0].completion
'green'

`MultipleChoice`, `Classification` and `Completion` are scored by likelihood,
`Generation` by what the model writes, a `Conversation` of several turns by
the likelihood of its answers, and a `Preference` by which of two answers gained
in likelihood. Encoders take `Classification` and `Regression`, with labels and
numbers instead of words. Image models take `ImageClassification`, text-to-image
models `SubjectGeneration`. What all tasks have in common (sources, prompt, chat
or plain text, batches) is in lora_opt.data.task.Task.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from absl import logging

from lora_opt.data import extraction, source_labels
from lora_opt.data.conversation_task import Conversation
from lora_opt.data.examples import Example, Record, Template
from lora_opt.data.extraction import (
  after_hashes,
  first_match,
  gsm8k,
  last_number,
  llm_adapters,
  same_number,
)
from lora_opt.data.image_task import ImageClassification
from lora_opt.data.mixture import Mixture
from lora_opt.data.preference_task import Preference
from lora_opt.data.subject_task import SubjectGeneration
from lora_opt.data.task import SPLITS, Task
from lora_opt.reading import values
from lora_opt.reading.patterns import check_pattern
from lora_opt.reading.values import shown

__all__ = [
  'Classification',
  'Completion',
  'Conversation',
  'FillBlank',
  'Generation',
  'ImageClassification',
  'Mixture',
  'MultipleChoice',
  'Preference',
  'Regression',
  'SubjectGeneration',
  'Task',
  'after_hashes',
  'first_match',
  'gsm8k',
  'last_number',
  'llm_adapters',
  'same_number',
]


_LARGEST = 3.4e38  # labels are float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultipleChoice(Task):
  """One question, several possible answers, scored by their likelihood.

  Args:
    question, choices, answer: names of the fields that hold the question, the
      list of choices and the index of the right one. In `prompt`, {question}
      stands for the first; all other fields are called by their own names.

  The default prompt is the usual one for zero-shot likelihood evaluation. The
  other fields are those of every Task.
  """

  kind: ClassVar[str] = 'choice'
  prompt: str = 'Question: {question}\nAnswer:'
  question: str = 'question'
  choices: str = 'choices'
  answer: str = 'answer'

  def example(self, record: Record) -> Example:
    choices = record.texts(self.choices)
    answer = record.field(self.answer)
    if isinstance(answer, bool) or not isinstance(answer, int):
      raise record.error(
        f'field {self.answer!r} must be the index of a choice, found '
        f'{type(answer).__name__} {shown(answer)}'
      )
    if not 0 <= answer < len(choices):
      raise record.error(
        f'field {self.answer!r} is {shown(answer)}, but there are '
        f'{len(choices)} choices (0 to {len(choices) - 1})'
      )
    prompt = record.fill(self.prompt, question=self.question)
    return Example(prompt, choices[answer], choices, answer, record.row)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FillBlank(MultipleChoice):
  """A sentence with a blank, scored by the likelihood of what follows it.

  Each option is put into the blank and read, and only the rest of the
  sentence is scored. This is the partial evaluation of Trinh and Le 2018, which
  lm-evaluation-harness uses for WinoGrande. Training learns option and rest.

  Args:
    after: name of the field with the text after the blank; `prompt` is the text
      before it.

  >>> row = {'before': 'I ate ', 'after': ' up.', 'answer': 1}
  >>> rows = [row | {'choices': ['rocks', 'rice']}]
  >>> task = FillBlank(name='food', train=rows, eval=rows, chat=False)
  >>> task.examples('eval')[0].choices
  ('rocks up.', 'rice up.')

  References:
    Trinh and Le 2018, A Simple Method for Commonsense Reasoning.
  """

  prompt: str = '{before}'
  after: str = 'after'

  def example(self, record: Record) -> Example:
    example = super().example(record)
    after = record.text(self.after)
    if not isinstance(record.field(self.after), str):
      raise record.error(f'field {self.after!r} must be text, found {after}')
    if not after.strip():
      raise record.error(f'field {self.after!r} is empty: nothing to score')
    choices = tuple(option + after for option in example.choices)
    return dataclasses.replace(
      example, choices=choices, completion=choices[example.answer]
    )

  def unscored(self, example: Example, encode_choices) -> list[int]:
    after = example.row[self.after]
    options = [choice.removesuffix(after) for choice in example.choices]
    alone = dataclasses.replace(example, choices=tuple(options))
    _, whole = encode_choices(example)
    _, parts = encode_choices(alone)
    return [_common(*ids) for ids in zip(whole, parts, strict=True)]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
  """Length of the common prefix of two sequences."""
  pairs = enumerate(zip(first, second, strict=False))
  differing = (i for i, (a, b) in pairs if a != b)
  return next(differing, min(len(first), len(second)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Task):
  """Text with one of a few labels, given as words and scored by likelihood.

  Args:
    prompt: for example 'Review: {sentence}\\nSentiment:'.
    label: name of the field that holds the label: its index, its name, or
      (with two labels) False or True.
    label_names: the words for labels 0, 1, ...
    classes: names of the labels in the config.json of an encoder, in the same
      order; None for the words. A head that has the same names in another order
      is reordered to match, and so are the label numbers of a source that names
      them, as TFDS and `datasets` do. A source whose names differ from these is
      refused. If no classes are given and its names differ from the words, a
      warning is logged.

  The other fields are those of every Task.
  """

  kind: ClassVar[str] = 'classification'
  label: str = 'label'
  label_names: Sequence[str]
  classes: Sequence[str] | None = None

  def __post_init__(self):
    super().__post_init__()
    for field in ('label_names', 'classes'):
      names = getattr(self, field)
      if names is None and field == 'classes':
        continue
      if (
        isinstance(names, str)
        or len(set(names)) != len(names)
        or len(names) < 2
      ):
        raise ValueError(
          f'task {self.name!r}: {field} must be two or more different words, '
          f'found {names!r}'
        )
    if self.classes is not None and len(self.classes) != len(self.label_names):
      raise ValueError(
        f'task {self.name!r}: classes={self.classes!r} must name as many '
        f'labels as label_names={self.label_names!r}'
      )

  @property
  def class_names(self) -> tuple[str, ...]:
    """The names of the labels in config.json, in the order of the labels."""
    return tuple(self.classes or self.label_names)

  def validate(self, splits: Sequence[str] = SPLITS) -> None:
    super().validate(splits)
    for split in splits:
      source = self.source(split)
      names = source_labels.names_in(source, self.label)
      if names is not None and self._order(source) is None:
        logging.warning(
          'task %r: %s calls the labels %s, in this order; the words %s are '
          'taken for them in theirs. Give classes=%r to have that checked',
          self.name,
          getattr(source, 'title', split),
          ', '.join(names),
          ', '.join(self.label_names),
          names,
        )

  @functools.cached_property
  def _orders(self) -> dict[int, tuple[Any, Sequence[int] | None]]:
    return {}

  def _order(self, source: Any) -> Sequence[int] | None:
    """See `source_labels.order_in`."""
    if id(source) not in self._orders:
      order = source_labels.order_in(
        source, self.label, self.label_names, self.classes, self.name
      )
      self._orders[id(source)] = source, order
    return self._orders[id(source)][1]

  def example(self, record: Record) -> Example:
    names = tuple(self.label_names)
    answer = self._label(record, names)
    prompt = record.fill(self.prompt)
    return Example(prompt, names[answer], names, answer, record.row)

  def _label(self, record: Record, names: Sequence[str]) -> int:
    label = record.field(self.label)
    if isinstance(label, str) and label in names:
      return names.index(label)
    if isinstance(label, bool) and len(names) == 2:
      return int(label)
    if isinstance(label, bool) or not isinstance(label, int):
      raise record.error(
        f'field {self.label!r} must be a label, one of {", ".join(names)} or '
        f'its index, found {type(label).__name__} {shown(label)}'
      )
    if not 0 <= label < len(names):
      raise record.error(
        f'field {self.label!r} is {shown(label)}, but there are {len(names)} '
        f'labels: 0 to {len(names) - 1} ({", ".join(names)})'
      )
    order = self._order(record.source)
    return label if order is None else order.index(label)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(Task):
  """Text with a number, such as the similarity of two sentences; for encoders.

  Args:
    prompt: the text, if `texts` does not name its fields.
    number: name of the field that holds the number.

  The other fields are those of every Task.
  """

  kind: ClassVar[str] = 'regression'
  prompt: str = ''
  number: str = 'score'

  @property
  def metric(self) -> str:
    """The first of the metrics of a regression."""
    return 'pearson'

  def example(self, record: Record) -> Example:
    found = record.field(self.number)
    try:
      number = values.number(found, '', -_LARGEST, _LARGEST)
    except ValueError:
      raise record.error(
        f'field {self.number!r} must be a number, found '
        f'{type(found).__name__} {shown(found)}'
      ) from None
    prompt = record.fill(self.prompt)
    return Example(prompt, f'{number:g}', row=record.row, number=number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion(Task):
  """A text that the model learns to write, judged by its likelihood alone.

  Nothing is decoded, so evaluation costs a hundredth of that of a `Generation`.
  It also distinguishes between models that would all write the text wrong. The
  metric is `lora_opt.evaluation.metrics.likelihood`.

  Args:
    prompt, completion: texts with field names in braces: what the model is
      given, and what it learns to write.

  The other fields are those of every Task.
  """

  kind: ClassVar[str] = 'choice'
  prompt: str = '{question}'
  completion: str = '{answer}'

  def __post_init__(self):
    super().__post_init__()
    Template(self.completion)

  def example(self, record: Record) -> Example:
    completion = _completion(record, self.completion)
    prompt = record.fill(self.prompt)
    return Example(prompt, completion, (completion,), 0, record.row)


def _completion(record: Record, template: str) -> str:
  completion = record.fill(template)
  if not completion.strip():
    raise record.error(f'the completion {template!r} is empty')
  return completion


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation(Task):
  """A question that the model answers in its own words.

  Args:
    prompt, completion: texts with field names in braces: what the model is
      given, and what it learns to write.
    answer: name of the field with the reference answer. None extracts it from
      the completion.
    references: name of the field with all correct completions, a list of texts,
      for metrics that compare with the best of them.
    extract: finds the answer in a text: a regular expression (the last match
      counts, its first group if it has one; the search may take a second) or a
      function of the text that returns None if there is no answer
      (`after_hashes`, `last_number`). None uses the whole text.
    scorer: function of the extracted answer and the row that returns a score
      between 0 and 1. None uses the scorer of a procedural source, which must
      be a safe one; without such a source, it compares with the reference
      answer, ignoring white space at both ends.

  The other fields are those of every Task.
  """

  kind: ClassVar[str] = 'generation'
  prompt: str = '{question}'
  completion: str = '{answer}'
  answer: str | None = None
  references: str | None = None
  extract: str | Callable[[str], str | None] | None = None
  scorer: Callable[[str, Mapping[str, Any]], float] | None = None

  def __post_init__(self):
    super().__post_init__()
    Template(self.completion)
    if isinstance(self.extract, str):
      check_pattern(self.extract, f'task {self.name!r}: extract')
    if self.scorer is None:
      getattr(self.eval, 'check_scored', lambda: None)()

  @property
  def metric(self) -> str:
    """'exact_match', or 'score' with a scorer, which may give part marks."""
    return 'score' if self._scorer else 'exact_match'

  @property
  def _scorer(self) -> Callable[[str, Mapping[str, Any]], float] | None:
    return self.scorer or getattr(self.eval, 'score', None)

  def example(self, record: Record) -> Example:
    completion = _completion(record, self.completion)
    if self.answer is not None:
      record.text(self.answer)
    elif not self._scorer and self._extract(completion) is None:
      raise record.error(
        f'extract={self.extract!r} finds no answer in {shown(completion)}'
      )
    return Example(
      record.fill(self.prompt),
      completion,
      row=record.row,
      references=self._references(record),
    )

  def _references(self, record: Record) -> tuple[str, ...]:
    if self.references is None:
      return ()
    return record.texts(self.references, at_least=1)

  def score(self, example: Example, prediction_text: str) -> float:
    """How good the prediction is, between 0 and 1.

    A text of more than 200,000 characters scores 0.
    """
    if len(prediction_text) > extraction.LONGEST:
      return 0.0
    prediction = self._extract(prediction_text)
    if prediction is None:
      return 0.0
    if self._scorer:
      return float(self._scorer(prediction, example.row))
    return float(prediction == self._reference(example))

  def _reference(self, example: Example) -> str | None:
    if self.answer is None:
      return self._extract(example.completion)
    reference = str(example.row[self.answer]).strip()
    return extraction.spelled_alike(self.extract, reference)

  def _extract(self, text: str) -> str | None:
    if self.extract is None:
      return text.strip()
    if callable(self.extract):
      return self.extract(text)
    return extraction.find(self.extract, text, last=True)
