"""What all tasks share: splits, checks, token ids and batches."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import grain
from absl import logging

from lora_opt.data import (
  batching,
  encoding,
  eval_batching,
  forms,
  sources,
  stops,
  text_batching,
)
from lora_opt.data.examples import (
  BadRows,
  Example,
  Examples,
  Record,
  Template,
)
from lora_opt.data.overlap import overlap
from lora_opt.reading import values

SPLITS = ('train', 'eval')
ON_BAD = ('error', 'skip')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """What all tasks share; `lora_opt.data.tasks` has the kinds of tasks.

  Attributes:
    name: name of the task in reports.
    train, eval: the two sources: those of lora_opt.data.sources, or any
      sequence of dicts.
    prompt: text with field names in braces.
    texts: names of the one or two fields that an encoder reads, combined by its
      tokenizer's own template. None: it reads the prompt.
    chat: use the prompt as the user's turn of the model's chat template, and
      the completion as the assistant's turn. False gives plain text. See
      lora_opt.data.encoding for both forms and for the boundary between prompt
      and completion.
    system: text of the system turn. None leaves it to the template (SmolLM2's
      has a default text), '' is an empty turn.
    packing: put several training examples into a row.
    too_long: what to do with examples longer than a row: 'drop', 'truncate' or
      'error', see lora_opt.data.batching.encode_split.
    on_bad: what to do with rows that cannot be used (not JSON, not UTF-8, a
      field that is missing, empty, of a wrong type or too long): 'error' raises
      an error for the first, 'skip' leaves all of them out and counts them.
    max_characters: limit on the number of characters of an example's prompt and
      completions together. The length of the prompt times the number of choices
      may be ten times as much. A row beyond these limits cannot be used. Texts
      that are far longer than any row of tokens only cost time: tokenizing a
      million characters takes seconds.
    leave_out_overlap: evaluate without the questions that also occur in the
      training split.
    metrics: metrics of lora_opt.evaluation.metrics, or objects with the same
      interface; the first is the headline metric. If there are none, those
      usual for the kind of task are used.
  """

  kind: ClassVar[str]
  choice_lengths: ClassVar[Sequence[int]] = eval_batching.LENGTHS
  name: str
  train: Sequence[sources.Row]
  eval: Sequence[sources.Row]
  prompt: str
  chat: bool = True
  system: str | None = None
  packing: bool = True
  too_long: str = 'drop'
  on_bad: str = 'error'
  max_characters: int = 10**6
  leave_out_overlap: bool = False
  metrics: Sequence[Any] = ()
  texts: Sequence[str] | None = None

  def __post_init__(self):
    Template(self.prompt)
    batching.check_policy(self.too_long)
    fields = self.texts
    if fields is not None and (
      isinstance(fields, str) or len(fields) not in (1, 2)
    ):
      raise ValueError(
        f'task {self.name!r}: texts must name one field or two, found '
        f'{fields!r}'
      )
    if self.on_bad not in ON_BAD:
      raise ValueError(
        f'task {self.name!r}: on_bad={self.on_bad!r} must be one of '
        f'{", ".join(ON_BAD)}'
      )
    values.integer(
      self.max_characters, f'task {self.name!r}: max_characters', least=1
    )

  @property
  def metric(self) -> str:
    """The name of the metric that `score` or the choices give."""
    return 'accuracy'

  def source(self, split: str) -> Sequence[sources.Row]:
    """The rows of split 'train' or 'eval'."""
    if split not in SPLITS:
      raise ValueError(
        f'task {self.name!r} has no split {split!r}; it has train and eval'
      )
    return self.train if split == 'train' else self.eval

  def examples(self, split: str) -> Examples:
    """The examples of split 'train' or 'eval', by index.

    Raises:
      ValueError: there is no such split, or no row in it. Accessing an example
        whose row cannot be used raises it too, unless on_bad='skip' left it
        out.
    """
    examples = self._rows[split].examples
    if split == 'eval' and self.leave_out_overlap:
      return examples.without(self._overlap)
    return examples

  def validate(self, splits: Sequence[str] = SPLITS) -> None:
    """Checks every row of these splits, before anything is computed.

    Raises:
      ValueError: a row cannot be used; the message says for the first one where
        it is, the field and what was found. With on_bad='skip', raised only if
        no row can be used. Or training and evaluation generate the same rows.
    """
    for split in splits:
      examples, bad = self._rows[split]
      if bad.count:
        logging.warning(
          'task %r: %d of %d %s rows cannot be used and are left out: %s',
          self.name,
          bad.count,
          len(examples.source),
          split,
          '; '.join(bad.first),
        )
      elif self.on_bad == 'error':
        for _ in examples:
          pass
    shared = getattr(self.train, 'shared_rows', lambda other: 0)(self.eval)
    if shared and len(splits) > 1:
      raise ValueError(
        f'task {self.name!r}: train {self.train!r} and eval {self.eval!r} '
        f'generate {shared} rows from the same seeds (row i has seed + i). '
        'Set the seeds further apart'
      )

  def overlap(self) -> list[int]:
    """Indices of the evaluation examples that also occur in train.

    Empty with `leave_out_overlap`. See lora_opt.data.overlap.
    """
    return [] if self.leave_out_overlap else self._overlap

  def facts(self) -> dict[str, Any]:
    """Describes the data of the task, for the record of a run.

    Returns:
      A JSON-able dict: where the rows of both splits come from (checksums,
      versions, counts), how many of them are used, how many cannot be used, and
      how many evaluation examples also occur in train.
    """
    facts: dict[str, Any] = {'task': self.name, 'kind': self.kind}
    for split in SPLITS:
      _, bad = self._rows[split]
      facts[split] = {
        **sources.describe(self.source(split)),
        'examples': len(self.examples(split)),
        'bad_rows': bad.count,
        'first_bad_rows': list(bad.first),
      }
    facts['overlap'] = len(self._overlap)
    facts['overlap_left_out'] = self.leave_out_overlap
    return facts

  @functools.cached_property
  def _rows(self) -> '_Splits':
    return _Splits(self)

  @functools.cached_property
  def _overlap(self) -> list[int]:
    return overlap(*(self._rows[split].examples for split in SPLITS))

  def look_ahead(self, split: str) -> None:
    """Called before the rows of a split are read one by one.

    Tasks override it for work that is faster on all rows at once.
    """

  def example(self, record: Record) -> Example:
    """Makes an example from one row; every kind of task must define this."""
    raise AssertionError(f'{type(self).__name__} must make examples')

  def whole_example(self, record: Record) -> Example:
    """Makes an example with its encoder texts, and checks its length."""
    example = self.example(record)
    if self.texts is not None:
      texts = tuple(record.text(field) for field in self.texts)
      example = dataclasses.replace(example, texts=texts)
    size, most = example.characters(), self.max_characters
    # The prompt is tokenized with each of the choices.
    if size > most or len(example.prompt) * len(example.choices) > 10 * most:
      choices = f', {len(example.choices)} choices' if example.choices else ''
      raise record.error(
        f'{size:,} characters{choices}, more than max_characters={most:,} of '
        'the task allows'
      )
    return example

  def encode(self, example: Example, tokenizer) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the completion to be learned.

    The completion ends with the end of turn (chat) or, for generation, with
    the end-of-text token. The ids of a choice are the same as those from
    `encode_choices`, so training raises the quantity that evaluation measures.
    """
    return self.encode_all([example], tokenizer)[0]

  def encode_all(
    self, examples: Sequence[Example], tokenizer
  ) -> list[tuple[list[int], list[int]]]:
    """Like `encode`, for several examples; faster than one at a time."""
    found = encoding.encode_all(
      tokenizer,
      [(example.prompt, [example.completion]) for example in examples],
      chat=self.chat,
      system=self.system,
      end=self.kind == 'generation',
    )
    return [(prompt, completion) for prompt, (completion,) in found]

  def encode_choices(
    self, example: Example, tokenizer
  ) -> tuple[list[int], list[list[int]]]:
    """Token ids of the prompt and of every choice."""
    return encoding.encode_completions(
      tokenizer,
      example.prompt,
      example.choices,
      chat=self.chat,
      system=self.system,
      end=False,
    )

  def unscored(
    self,
    example: Example,
    encode_choices: Callable[[Example], tuple[list[int], list[list[int]]]],
  ) -> list[int]:
    """How many ids at the start of each choice are read but not scored.

    Args:
      example: an example with choices.
      encode_choices: returns the ids of prompt and choices, as the form of
        batches encodes them.
    """
    return [0] * len(example.choices)

  def encode_scored(
    self, example: Example, tokenizer
  ) -> tuple[list[int], list[list[int]], list[list[bool]]]:
    """Token ids of prompt and choices, and which choice ids are scored."""

    def encode(example):
      return self.encode_choices(example, tokenizer)

    prompt, choices = encode(example)
    unscored = self.unscored(example, encode)
    return (
      prompt,
      choices,
      [
        [place >= read for place in range(len(ids))]
        for ids, read in zip(choices, unscored, strict=True)
      ],
    )

  def shorter(self, example: Example) -> Example | None:
    """The example without the part that is dropped first if it is too long.

    None: its token ids are cut instead, see `packing.Encoded.truncated`.
    """
    del example
    return None

  def encode_prompt(self, example: Example, tokenizer) -> list[int]:
    """Token ids of the prompt that an answer is generated from."""
    return encoding.encode_prompt(
      tokenizer, example.prompt, chat=self.chat, system=self.system
    )

  def frame(self, tokenizer) -> tuple[int, int]:
    """How many ids open and how many close a prompt; see `encoding.frame`."""
    return encoding.frame(tokenizer, chat=self.chat, system=self.system)

  def stops(self, tokenizer) -> stops.Stops:
    """What ends a generated completion: end of text, end of turn.

    Raises:
      ValueError: nothing ends a completion.
    """
    try:
      return stops.stops_of(tokenizer, chat=self.chat, system=self.system)
    except ValueError as error:
      raise ValueError(f'task {self.name!r}: {error}') from None

  def score(self, example: Example, prediction_text: str) -> float:
    """1 if the text is the right completion, else 0."""
    return float(prediction_text.strip() == example.completion.strip())

  def train_batches(
    self,
    tokenizer,
    *,
    length: int,
    batch_size: int,
    seed: int,
    form: str = 'decoder',
    rows: Sequence[int] | None = None,
    workers: int = 0,
  ) -> grain.IterDataset:
    """Batches to train on, in a form of lora_opt.data.forms."""
    return forms.of_task(form, self).train_batches(
      self,
      tokenizer,
      length=length,
      batch_size=batch_size,
      seed=seed,
      rows=rows,
      packing=self.packing,
      workers=workers,
    )

  def eval_batches(
    self,
    tokenizer,
    *,
    length: int,
    batch_size: int,
    longest: int = 0,
    form: str = 'decoder',
    indices: Sequence[int] | None = None,
  ) -> grain.IterDataset:
    """Batches for the loss, in a form of lora_opt.data.forms.

    Rows are made longer, up to `longest` positions, if an example needs it.
    """
    return forms.find(form).eval_batches(
      self,
      tokenizer,
      length=length,
      longest=longest,
      batch_size=batch_size,
      packing=self.packing,
      indices=indices,
    )

  def choice_batches(
    self,
    tokenizer,
    *,
    batch_size: int,
    form: str = 'decoder',
    indices: Sequence[int] | None = None,
  ) -> Iterator[eval_batching.ChoiceBatch]:
    """Choices to compare, in a form of lora_opt.data.forms."""
    return forms.of_task(form, self).choice_batches(
      self,
      tokenizer,
      batch_size=batch_size,
      lengths=self.choice_lengths,
      indices=indices,
    )

  def prompt_batches(
    self,
    tokenizer,
    *,
    batch_size: int,
    form: str = 'decoder',
    indices: Sequence[int] | None = None,
  ) -> Iterator[eval_batching.PromptBatch]:
    """Prompts to continue, in a form of lora_opt.data.forms."""
    return forms.find(form).prompt_batches(
      self, tokenizer, batch_size=batch_size, indices=indices
    )

  def label_batches(
    self,
    tokenizer,
    *,
    batch_size: int,
    longest: int,
    split: str = 'eval',
    form: str = 'encoder',
    indices: Sequence[int] | None = None,
  ) -> Iterator[text_batching.LabelBatch]:
    """Texts to label, in a form of lora_opt.data.forms."""
    return forms.find(form).label_batches(
      self,
      tokenizer,
      split,
      batch_size=batch_size,
      longest=longest,
      indices=indices,
    )


class _Checked(NamedTuple):
  """The rows of a split that are used, and what is wrong with the others."""

  examples: Examples
  bad: BadRows


class _Splits(dict):
  """The splits of a task, each checked when it is first accessed."""

  def __init__(self, task: Task):
    super().__init__()
    self._task = task

  def __missing__(self, split: str) -> _Checked:
    task = self._task
    task.look_ahead(split)
    examples = Examples(task.source(split), task.whole_example, split)
    skip = task.on_bad == 'skip'
    self[split] = _Checked(
      *(examples.usable() if skip else (examples, BadRows()))
    )
    return self[split]
