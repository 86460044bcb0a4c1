"""What ends a generated text: tokens, sequences of tokens, or texts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lora_opt.data.turns import common_length, cut_of


@dataclasses.dataclass(frozen=True, eq=False)
class Stops:
  """What ends an answer, and how to extract the answer from tokens.

  Attributes:
    tokenizer: See lora_opt.data.tokenizer.
    ids: Tokens that each end an answer; at least one.
    sequences: Sequences of tokens that end an answer, such as an end of turn
      that consists of several tokens.
    texts: Texts that end an answer, however they are tokenised.
    lead: Text that a template writes before the assistant's words. It is not
      part of the answer.
  """

  tokenizer: Any
  ids: tuple[int, ...]
  sequences: tuple[tuple[int, ...], ...] = ()
  texts: tuple[str, ...] = ()
  lead: str = ''

  def text(self, ids: Sequence[int]) -> str:
    """Extracts the text of the answer from the tokens."""
    ids = [int(token) for token in ids]
    ends = [place for place, token in enumerate(ids) if token in self.ids]
    ids = ids[: min(ends, default=len(ids))]
    lead = list(self.tokenizer.encode(self.lead)) if self.lead.strip() else []
    if ids[: len(lead)] == lead:
      text = self.tokenizer.decode(ids[len(lead) :])
    else:  # the lead may be tokenised differently here
      text = self.tokenizer.decode(ids)
      if lead and text.lstrip().startswith(self.lead.strip()):
        text = text.lstrip().removeprefix(self.lead.strip()).lstrip()
    return before_first(text, self.texts)


def stops_of(tokenizer, *, chat: bool, system: str | None = None) -> Stops:
  """Finds out what ends an answer.

  Args:
    tokenizer: See lora_opt.data.tokenizer.
    chat: Whether the end of a turn ends it too.
    system: Text of the system turn of a chat.

  Raises:
    ValueError: Nothing ends an answer.
  """
  ids = [tokenizer.eos_id, *getattr(tokenizer, 'end_ids', ())]
  sequences, texts, lead = [], [], ''
  if chat:
    cut = cut_of(tokenizer, system)
    lead, end = cut.lead, cut.end.strip()
    turn = list(tokenizer.encode(cut.end))
    if end and (len(turn) == 1 or turn[-1] in tokenizer.special_ids):
      ids.append(turn[-1])
    elif end:
      texts.append(end)
      answer, whole = (tokenizer.encode('a' + x) for x in ('', cut.end))
      within = list(whole)[common_length([answer, whole]) :]
      sequences = dict.fromkeys(map(tuple, (turn, within)))
  ids = tuple(dict.fromkeys(i for i in ids if i is not None))
  if not ids and sequences:
    ids = (-1,)  # no token has this id: only the sequences end an answer
  if not ids:
    raise ValueError(
      'the tokenizer has neither an end-of-text token (eos_id) nor a chat '
      'template that ends a turn, so that no answer could end'
    )
  return Stops(
    tokenizer,
    ids,
    tuple({tuple(s): None for s in sequences if s}),
    tuple(texts),
    lead,
  )


def before_first(text: str, stops: Sequence[str]) -> str:
  """The text before the first occurrence of any of `stops`.

  >>> before_first('four\\n\\nQuestion: five', ['Question', '\\n\\n'])
  'four'
  """
  ends = [text.find(stop) for stop in stops if stop and stop in text]
  return text[: min(ends)] if ends else text
