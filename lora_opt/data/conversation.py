"""Token ids of conversations of several turns, and which ids are learned.

A conversation is rendered as a whole and tokenised once. For each learned
answer, two more renderings show where it is in the whole. The rendering of all
messages before it, with the assistant's turn opened, ends where the answer
begins. The rendering of all messages up to and including it ends where the
answer ends. Both must be prefixes of the whole, so that what is learned is
what the model reads and writes when it is asked:

  whole     <user>Hi<eos><assistant>Hello<eos><user>Bye<eos><assistant>Ciao<eos>
  answer 1  <user>Hi<eos><assistant>            the model reads up to here
            <user>Hi<eos><assistant>Hello<eos>  and learns up to here

A template that writes a turn differently once other turns follow (Qwen 3 leaves
out thoughts, gpt-oss ends only the last turn with <|return|>) is refused: each
turn must then be an example of its own (`turns='each'` of the task). If the
template marks the assistant's words by {% generation %}, text that it does not
mark is not learned.
"""

import re
from collections.abc import Sequence

from lora_opt.data.chat_template import PLACE, ChatTemplate
from lora_opt.data.dialogue import Dialogue, Message
from lora_opt.data.encoding import end_ids, opened
from lora_opt.data.messages import tool_names
from lora_opt.data.turns import Cut, cut_of, refusal, squeezed, unmarked
from lora_opt.reading.values import one_line, shown

_WORD = re.compile('[A-Za-z0-9]+')
_APART = (
  'Let each turn be an example of its own, as the model is asked for it '
  "(turns='each' on the task), learn the last one alone (turns='last')"
)
_OTHERWISE = 'Write the rows as the template takes them'


def encode_dialogue(
  tokenizer, dialogue: Dialogue, apart: str = _APART
) -> tuple[list[int], list[bool]]:
  """Token ids of a conversation up to its last learned answer.

  Args:
    tokenizer: see lora_opt.data.tokenizer.Tokenizer.
    dialogue: must have an answer that is learned.
    apart: advice for the error message if several answers cannot be learned
      together.

  Returns:
    The ids, and for each whether it is learned. Learned are the answers, what
    ends their turns, and what the template writes between the header of a turn
    and its answer. The first id is never learned.

  Raises:
    ValueError: The template rejects the messages, does not write them
      unchanged, or writes a turn differently once other turns follow.
  """
  cut = _cut(tokenizer)
  places = dialogue.learned
  if not cut.end and len(places) > 1:
    raise refusal(
      tokenizer,
      'it does not end a turn, so that no answer but the last would end',
      apart,
    )
  messages = _as_template_takes(dialogue.messages[: places[-1] + 1], cut)
  asked = [(messages[:i], cut.opened) for i in places]
  asked += [(messages[: i + 1], False) for i in places]
  found = [unmarked(text) for text in _render(tokenizer, asked, dialogue)]
  texts = [text for text, _ in found]
  whole, marks = found[-1]
  _check_read(tokenizer, dialogue, whole)
  spans = [
    _span(tokenizer, cut, dialogue, index, whole, read, said, apart)
    for index, read, said in zip(
      places, texts[: len(places)], texts[len(places) :], strict=True
    )
  ]
  text = whole[: spans[-1][1]]
  if marks:
    spans = _within(tokenizer, spans, marks)
  ids, trained = _learned(tokenizer, text, spans)
  if not cut.end:
    ids, trained = ids + end_ids(tokenizer), [*trained, True]
  return ids, trained


def encode_asked(tokenizer, dialogue: Dialogue) -> list[int]:
  """Token ids of the prompt for generating the last learned answer.

  Args and Raises: as for `encode_dialogue`.
  """
  cut = _cut(tokenizer)
  last = dialogue.learned[-1]
  messages = _as_template_takes(dialogue.messages[:last], cut)
  asked = [(messages, cut.opened)]
  ((text, _),) = map(unmarked, _render(tokenizer, asked, dialogue))
  return list(tokenizer.encode(text + cut.header)) or opened(tokenizer, [])


def _cut(tokenizer) -> Cut:
  if tokenizer.chat_template is None:
    place = getattr(tokenizer, 'template_place', PLACE)
    missing = ChatTemplate(None, place).missing
    raise ValueError(f'{missing}, and conversations need one')
  return cut_of(tokenizer)


def _as_template_takes(messages: Sequence[Message], cut: Cut) -> list[Message]:
  return [{**m, **cut.message(m['role'], m['content'])} for m in messages]


def _render(tokenizer, asked: list[tuple], dialogue: Dialogue) -> list[str]:
  if dialogue.tools:
    asked = [(*one, dialogue.tools) for one in asked]
  return tokenizer.apply_chats(asked, marked=True)


def _span(
  tokenizer,
  cut: Cut,
  dialogue: Dialogue,
  index: int,
  whole: str,
  read: str,
  said: str,
  apart: str,
) -> tuple[int, int]:
  """Finds where an answer begins in the text, and where its turn ends.

  Args:
    tokenizer: For error messages.
    cut: How its template is cut.
    dialogue: The conversation.
    index: Index of the answer's message.
    whole: The rendered conversation.
    read: The rendered messages before the answer.
    said: The rendered messages up to and including the answer.
    apart: See `encode_dialogue`.
  """
  read += cut.header
  kept = said.endswith(cut.rest)
  said = said[: len(said) - len(cut.rest)]
  for text, what in ((read, 'before it'), (said, 'up to it')):
    if not kept or not whole.startswith(text):
      raise refusal(
        tokenizer,
        f'of message {index} it writes what stands {what} as '
        f'{one_line(text[-160:], 200)!r}, and otherwise in the whole '
        'conversation',
        apart,
      )
  _check_said(tokenizer, dialogue.messages[index], whole[len(read) : len(said)])
  return len(read), len(said)


def _check_said(tokenizer, message: Message, said: str) -> None:
  """Raises ValueError if a part of an answer is not in the learned text."""
  written = squeezed(said)
  texts = [message['content']]
  texts += [message.get(n, '') for n in ('reasoning_content', 'thinking')]
  for call in message.get('tool_calls', ()):
    texts += [call['function']['name'], *call['function']['arguments']]
  for text in texts:
    if squeezed(text) not in written:
      raise refusal(
        tokenizer,
        f'it turns {shown(text)} of an answer into {shown(said, 200)}',
        _OTHERWISE,
      )


def _check_read(tokenizer, dialogue: Dialogue, whole: str) -> None:
  """Raises ValueError if the template leaves out a message or a tool."""
  lost = [name for name in tool_names(dialogue) if name not in whole]
  for name in lost:
    raise refusal(
      tokenizer,
      f'it does not write the tool {shown(name)} that is defined',
      _OTHERWISE,
    )
  for index, message in enumerate(dialogue.messages):
    # The longest word: it stays the same however a text is quoted.
    word = max(_WORD.findall(message['content']), key=len, default='')
    if message['role'] != 'assistant' and word not in whole:
      raise refusal(
        tokenizer,
        f'it leaves out message {index}, of the role {message["role"]}',
        _OTHERWISE,
      )


def _within(
  tokenizer, spans: list[tuple[int, int]], marks: list[tuple[int, int]]
) -> list[tuple[int, int]]:
  """The parts of the spans that the template marks as the assistant's words."""
  found = [
    (max(start, first), min(end, last))
    for start, end in spans
    for first, last in marks
    if max(start, first) < min(end, last)
  ]
  if not found:
    raise refusal(
      tokenizer, 'it marks none of the answers by {% generation %}', _OTHERWISE
    )
  return found


def _learned(
  tokenizer, text: str, spans: Sequence[tuple[int, int]]
) -> tuple[list[int], list[bool]]:
  """The ids of a text, and whether each is, even partly, inside a span."""
  ids = list(tokenizer.encode(text))
  places = _Places(tokenizer, text, ids)
  trained = [False] * len(ids)
  for start, end in spans:
    for place in range(places.first(start), places.behind(end)):
      trained[place] = True
  if trained[0]:  # nothing to predict it from
    ids, trained = opened(tokenizer, []) + ids, [False, *trained]
  return ids, trained


class _Places:
  """Maps positions in a text to the indices of its tokens."""

  def __init__(self, tokenizer, text: str, ids: list[int]):
    self._tokenizer, self._text, self._ids = tokenizer, text, ids
    self._offsets: list[tuple[int, int]] | None = None

  def first(self, place: int) -> int:
    """The index of the token that contains, or begins at, a character."""
    exact = self._between(place)
    if exact is not None:
      return exact
    return sum(end <= place for _, end in self._whole_offsets())

  def behind(self, place: int) -> int:
    """The index of the first token that begins at or after a character."""
    exact = self._between(place)
    if exact is not None:
      return exact
    return sum(start < place for start, _ in self._whole_offsets())

  def _between(self, place: int) -> int | None:
    """The number of tokens before a character; None if one spans across."""
    if place == len(self._text):
      return len(self._ids)
    part = list(self._tokenizer.encode(self._text[:place]))
    return len(part) if self._ids[: len(part)] == part else None

  def _whole_offsets(self) -> list[tuple[int, int]]:
    if self._offsets is None:
      self._offsets = self._tokenizer.offsets(self._text)
    return self._offsets
