"""What all tasks share: splits, checks, token ids and batches."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import grain

from lora_opt.data import batching, encoding, eval_batching, forms, sources
from lora_opt.data.examples import Example, Examples, Record, Template
from lora_opt.data.overlap import overlap

SPLITS = ('train', 'eval')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """What all tasks share; lora_opt.data.tasks has the three kinds.

  Attributes:
    name: what reports call the task.
    train, eval: the two sources: those of lora_opt.data.sources, or any
      sequence of dicts.
    prompt: text with field names in braces.
    chat: put the prompt as a user's turn of the model's chat template, and the
      completion as the assistant's. False gives plain text. See
      lora_opt.data.encoding for both forms and for the boundary.
    system: text of the system turn. None leaves it to the template (SmolLM2's
      has a text of its own), '' is an empty turn.
    packing: put several training examples into a row.
    too_long: what to do with examples longer than a row: 'drop', 'truncate' or
      'error', see lora_opt.data.batching.encode_split.
    metrics: those of lora_opt.evaluation.metrics, or what offers the same; the
      first is the headline. None given: those usual for the kind of task.
  """

  kind: ClassVar[str]
  name: str
  train: Sequence[sources.Row]
  eval: Sequence[sources.Row]
  prompt: str
  chat: bool = True
  system: str | None = None
  packing: bool = True
  too_long: str = 'drop'
  metrics: Sequence[Any] = ()

  def __post_init__(self):
    Template(self.prompt)
    batching.check_policy(self.too_long)

  @property
  def metric(self) -> str:
    """The name of what `score` or the choices measure."""
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
      ValueError: no such split, or no row in it; asking for an example whose
        row lacks a field or holds a wrong value.
    """
    return Examples(self.source(split), self.example, split)

  def validate(self) -> None:
    """Looks at every row of both splits, before any training.

    Raises:
      ValueError: the first row that cannot be used: its place, the field and
        what was found; or training and evaluation generate the same rows.
    """
    for split in SPLITS:
      for _ in self.examples(split):
        pass
    shared = getattr(self.train, 'shared_rows', lambda other: 0)(self.eval)
    if shared:
      raise ValueError(
        f'task {self.name!r}: train {self.train!r} and eval {self.eval!r} '
        f'generate {shared} rows from the same seeds (row i has seed + i). '
        'Set the seeds further apart'
      )

  def overlap(self) -> tuple[int, ...]:
    """Evaluation examples that also stand in train: see data.overlap."""
    return overlap(self)

  def example(self, record: Record) -> Example:
    """Makes an example of one row: every kind of task has its own way."""
    raise AssertionError(f'{type(self).__name__} must make examples')

  def encode(self, example: Example, tokenizer) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the completion to be learned.

    The completion ends with the end of turn (chat) or, for generation, with
    the end-of-text token. The ids of a choice are those that
    `encode_choices` gives for it: training raises what evaluation measures.
    """
    prompt_ids, (completion_ids,) = encoding.encode_completions(
      tokenizer,
      example.prompt,
      [example.completion],
      chat=self.chat,
      system=self.system,
      end=self.kind == 'generation',
    )
    return prompt_ids, completion_ids

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
    """Batches to train on, of a form that lora_opt.data.forms has."""
    return forms.find(form).train_batches(
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
    form: str = 'decoder',
    indices: Sequence[int] | None = None,
  ) -> grain.IterDataset:
    """Batches for the loss, of a form that lora_opt.data.forms has."""
    return forms.find(form).eval_batches(
      self,
      tokenizer,
      length=length,
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
    """Choices to compare, of a form that lora_opt.data.forms has."""
    return forms.find(form).choice_batches(
      self, tokenizer, batch_size=batch_size, indices=indices
    )

  def prompt_batches(
    self,
    tokenizer,
    *,
    batch_size: int,
    form: str = 'decoder',
    indices: Sequence[int] | None = None,
  ) -> Iterator[eval_batching.PromptBatch]:
    """Prompts to continue, of a form that lora_opt.data.forms has."""
    return forms.find(form).prompt_batches(
      self, tokenizer, batch_size=batch_size, indices=indices
    )
