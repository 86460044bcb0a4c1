"""Tasks of multi-turn conversations: the assistant's turns are learned."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

from lora_opt.data import eval_batching, sources
from lora_opt.data.conversation import encode_asked, encode_dialogue
from lora_opt.data.dialogue import Dialogue
from lora_opt.data.examples import Example, Record
from lora_opt.data.messages import read_dialogue
from lora_opt.data.task import Task

TURNS = ('all', 'each', 'last')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversation(Task):
  """Conversations as lists of messages; the loss is on the assistant's turns.

  Rows are `{"messages": [{"role": ..., "content": ...}, ...]}`, or ShareGPT's
  `{"conversations": [{"from": ..., "value": ...}, ...]}`: see
  lora_opt.data.messages. The model learns the answers and the ends of their
  turns, token by token as its chat template writes them: see
  lora_opt.data.conversation. It is evaluated by the likelihood of the answers.

  Args:
    messages: name of the field that holds the messages.
    tools: name of the field that holds the definitions of tools, as a list or
      as JSON text. Rows without this field have no tools. None: there is no
      such field.
    turns: 'all' learns every answer of a conversation in one row. 'each' makes
      each answer an example of its own, after the earlier turns as the
      template writes them at that point: this is right for every template, but
      takes one example per answer. 'last' learns only the last answer.
    system: text of a system turn for rows without one.

  With too_long='truncate' the oldest turns are left out until the rest fits:
  each time a user's turn and all turns up to the next user's. The system turn
  stays. The other fields are those of every Task; `prompt`, `texts` and `chat`
  must not be set.

  >>> row = {'messages': [{'role': 'user', 'content': 'Hi'},
  ...                     {'role': 'assistant', 'content': 'Hello'}]}
  >>> task = Conversation(name='talk', train=[row], eval=[row])
  >>> task.examples('eval')[0].completion
  'Hello'

  Raises:
    ValueError: `turns` is unknown, or a setting for other tasks is given.
  """

  kind: ClassVar[str] = 'conversation'
  choice_lengths: ClassVar[Sequence[int]] = eval_batching.LONG_LENGTHS
  prompt: str = ''
  messages: str = 'messages'
  tools: str | None = None
  turns: str = 'all'

  def __post_init__(self):
    super().__post_init__()
    if self.turns not in TURNS:
      raise ValueError(
        f'task {self.name!r}: turns={self.turns!r} must be one of '
        f'{", ".join(TURNS)}'
      )
    if self.prompt or self.texts is not None or not self.chat:
      raise ValueError(
        f'task {self.name!r}: a conversation has no prompt and no texts, and '
        'is always a chat: leave prompt, texts and chat as they are'
      )

  def source(self, split: str) -> Sequence[sources.Row]:
    """The rows of a split; with turns='each' one row per answer."""
    rows = super().source(split)
    return self._answers(split) if self.turns == 'each' else rows

  def example(self, record: Record) -> Example:
    number = None
    if isinstance(record.row, _Answer):
      number, record = (
        record.row.number,
        dataclasses.replace(record, row=record.row.row),
      )
    dialogue = self._read(record)
    if number is not None:
      dialogue = dialogue.up_to(dialogue.learned[number])
    elif self.turns == 'last':
      dialogue = dialogue.up_to(dialogue.learned[-1])
    return _example(dialogue, record.row)

  def shorter(self, example: Example) -> Example | None:
    (dialogue,) = example.dialogues
    dialogue = dialogue.shorter()
    return None if dialogue is None else _example(dialogue, example.row)

  def encode_scored(
    self, example: Example, tokenizer
  ) -> tuple[list[int], list[list[int]], list[list[bool]]]:
    (dialogue,) = example.dialogues
    try:
      ids, learned = encode_dialogue(tokenizer, dialogue)
    except ValueError as error:
      raise ValueError(f'{dialogue.place}: {error}') from None
    first = learned.index(True)
    return ids[:first], [ids[first:]], [learned[first:]]

  def encode_prompt(self, example: Example, tokenizer) -> list[int]:
    """Token ids of the prompt for generating the last answer."""
    (dialogue,) = example.dialogues
    return encode_asked(tokenizer, dialogue)

  def encode_all(
    self, examples: Sequence[Example], tokenizer
  ) -> list[tuple[list[int], list[int]]]:
    raise ValueError(
      f'task {self.name!r} has conversations of several turns, which only '
      'decoders read'
    )

  def facts(self) -> dict[str, Any]:
    return super().facts() | {'turns': self.turns}

  def _read(self, record: Record) -> Dialogue:
    return read_dialogue(
      record, self.messages, tools=self.tools, system=self.system
    )

  @functools.cached_property
  def _by_answer(self) -> dict[str, '_Answers']:
    return {}

  def _answers(self, split: str) -> '_Answers':
    if split not in self._by_answer:
      self._by_answer[split] = _Answers(self, split)
    return self._by_answer[split]

  def count(self, rows: Sequence[sources.Row], index: int, split: str) -> int:
    """The number of learned answers of a row; 1 if the row cannot be used."""
    try:
      record = Record(rows[index], rows, index, split)
      return len(self._read(record).learned)
    except ValueError:  # raised again where bad rows are handled
      return 1


def _example(dialogue: Dialogue, row: sources.Row) -> Example:
  answers = dialogue.answers()
  return Example(
    dialogue.prompt(),
    answers[-1],
    ('\n'.join(answers),),
    0,
    row,
    dialogues=(dialogue,),
  )


class _Answer(dict):
  """A row, with the number of one of its learned answers."""

  def __init__(self, row: sources.Row, number: int):
    super().__init__(row)
    self.row, self.number = row, number


class _Answers(Sequence):
  """The rows of a source, each repeated once per learned answer."""

  def __init__(self, task: Conversation, split: str):
    self._rows = task.train if split == 'train' else task.eval
    self._places = [
      (row, number)
      for row in range(len(self._rows))
      for number in range(task.count(self._rows, row, split))
    ]

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> sources.Row:
    row, number = self._places[index]
    found = self._rows[row]
    return _Answer(found, number) if isinstance(found, dict) else found

  def where(self, index: int) -> str:
    """Where the row comes from."""
    return sources.where(self._rows, self._places[index][0])

  def facts(self) -> dict[str, Any]:
    """The facts of the source."""
    return sources.describe(self._rows)
