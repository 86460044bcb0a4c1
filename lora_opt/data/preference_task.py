"""Preference tasks: which of two answers to one prompt was chosen."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from lora_opt.data import encoding, eval_batching
from lora_opt.data.conversation import encode_asked, encode_dialogue
from lora_opt.data.dialogue import Dialogue, Message, transcript
from lora_opt.data.examples import Example, Record, Template
from lora_opt.data.messages import (
  read_messages,
  read_transcript,
  with_system,
)
from lora_opt.data.task import Task
from lora_opt.data.turns import common_length
from lora_opt.reading.values import shown

_APART = 'Let the two answers of a row be one turn each'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference(Task):
  """Two answers to one prompt, one of which was chosen: for DPO.

  A row has one of these forms, told apart by the types of its fields:

    prompt: a text; chosen and rejected: texts
    prompt: a list of messages; chosen and rejected: lists of further messages
    chosen and rejected: whole conversations with the same beginning

  With `transcripts`, rows have the form of Anthropic's HH: chosen and rejected
  are texts "\\n\\nHuman: ...\\n\\nAssistant: ..." with the same beginning. For
  messages see lora_opt.data.messages. The answers that are compared start at
  the first message in which the two conversations differ.

  Args:
    prompt: text with field names in braces, used as the user's turn; or a
      single field that holds messages. Not used if chosen and rejected are
      whole conversations.
    chosen, rejected: names of the fields with the answers.
    transcripts: whether these fields hold whole conversations as text.

  The task is trained and evaluated with `lora_opt.training.objective.DPO`. The
  other fields are those of every Task.

  >>> row = {'prompt': 'Two and two?', 'chosen': 'Four', 'rejected': 'Five'}
  >>> task = Preference(name='sums', train=[row], eval=[row])
  >>> task.examples('eval')[0].choices
  ('Four', 'Five')
  """

  kind: ClassVar[str] = 'preference'
  choice_lengths: ClassVar[Sequence[int]] = eval_batching.LONG_LENGTHS
  prompt: str = '{prompt}'
  chosen: str = 'chosen'
  rejected: str = 'rejected'
  transcripts: bool = False

  def __post_init__(self):
    super().__post_init__()
    if not self.chat and self.transcripts:
      raise ValueError(
        f'task {self.name!r}: transcripts become turns of a chat: leave chat '
        'as it is'
      )

  def example(self, record: Record) -> Example:
    both = [record.field(name) for name in (self.chosen, self.rejected)]
    if self.transcripts:
      found = [
        read_transcript(record, name) for name in (self.chosen, self.rejected)
      ]
    elif any(isinstance(answer, list | tuple) for answer in both):
      found = [
        read_messages(record, name)[0] for name in (self.chosen, self.rejected)
      ]
      if all(messages[0]['role'] == 'assistant' for messages in found):
        asked = self._asked(record)
        found = [(*asked, *messages) for messages in found]
    else:
      return self._of_texts(record)
    if not self.chat:
      raise record.error(
        f'field {self.chosen!r} has messages, which are a chat: leave chat of '
        'the task as it is'
      )
    return self._of_dialogues(record, found)

  def shorter(self, example: Example) -> Example | None:
    both = [dialogue.shorter() for dialogue in example.dialogues]
    for old, new in zip(example.dialogues, both, strict=True):
      if new is None or len(new.learned) != len(old.learned):
        return None
    return _example(tuple(both), example.row)

  def encode_scored(
    self, example: Example, tokenizer
  ) -> tuple[list[int], list[list[int]], list[list[bool]]]:
    if not example.dialogues:
      prompt, answers = encoding.encode_completions(
        tokenizer,
        example.prompt,
        example.choices,
        chat=False,
        end=True,
      )
      return prompt, answers, [[True] * len(ids) for ids in answers]
    try:
      both = [
        encode_dialogue(tokenizer, dialogue, _APART)
        for dialogue in example.dialogues
      ]
    except ValueError as error:
      raise ValueError(f'{example.dialogues[0].place}: {error}') from None
    size = min(
      common_length([ids for ids, _ in both]),
      *(learned.index(True) for _, learned in both),
    )
    return (
      both[0][0][:size],
      [ids[size:] for ids, _ in both],
      [learned[size:] for _, learned in both],
    )

  def encode_prompt(self, example: Example, tokenizer) -> list[int]:
    if not example.dialogues:
      return super().encode_prompt(example, tokenizer)
    first = example.dialogues[0]
    return encode_asked(tokenizer, first.up_to(first.learned[0]))

  def encode_all(
    self, examples: Sequence[Example], tokenizer
  ) -> list[tuple[list[int], list[int]]]:
    raise ValueError(
      f'task {self.name!r} has pairs of answers, which only decoders compare'
    )

  def _asked(self, record: Record) -> tuple[Message, ...]:
    """The prompt as messages."""
    fields = Template(self.prompt).fields
    if len(fields) == 1 and not isinstance(record.field(fields[0]), str):
      return read_messages(record, fields[0])[0]
    return ({'role': 'user', 'content': record.fill(self.prompt)},)

  def _of_texts(self, record: Record) -> Example:
    texts = [record.text(name) for name in (self.chosen, self.rejected)]
    for name, text in zip((self.chosen, self.rejected), texts, strict=True):
      if not text.strip():
        raise record.error(f'field {name!r} is empty')
    if texts[0] == texts[1]:
      raise record.error(
        f'{self.chosen!r} and {self.rejected!r} are the same: {shown(texts[0])}'
      )
    asked = self._asked(record)
    if not self.chat:
      return Example(asked[0]['content'], texts[0], tuple(texts), 0, record.row)
    found = [(*asked, {'role': 'assistant', 'content': t}) for t in texts]
    return self._of_dialogues(record, found)

  def _of_dialogues(
    self, record: Record, both: Sequence[tuple[Message, ...]]
  ) -> Example:
    pairs = enumerate(zip(*both, strict=False))
    differing = (place for place, (a, b) in pairs if a != b)
    size = next(differing, min(map(len, both)))
    dialogues = []
    for name, messages in zip((self.chosen, self.rejected), both, strict=True):
      rest = [m['role'] == 'assistant' for m in messages[size:]]
      if not any(rest) or not rest[0] or not size:
        raise record.error(
          f'{self.chosen!r} and {self.rejected!r} must begin with the same '
          'prompt and go on with two answers of the assistant; '
          f'{name!r} does not from message {size} on'
        )
      learned = (*[False] * size, *rest)
      last = max(place for place, is_one in enumerate(learned) if is_one)
      dialogue = Dialogue(
        tuple(messages[: last + 1]), learned[: last + 1], None, record.place
      )
      dialogues.append(with_system(dialogue, self.system))
    return _example(tuple(dialogues), record.row)


def _example(dialogues: tuple[Dialogue, ...], row: Any) -> Example:
  first = dialogues[0]
  answers = tuple('\n'.join(dialogue.answers()) for dialogue in dialogues)
  asked = first.messages[: first.learned[0]]
  prompt = asked[0]['content'] if len(asked) == 1 else transcript(asked)
  return Example(prompt, answers[0], answers, 0, row, dialogues=dialogues)
