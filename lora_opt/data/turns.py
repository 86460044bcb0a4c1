"""How a chat template writes a turn of the assistant, and where to cut it.

The template alone renders a whole conversation, which is then cut into what the
model reads and what it says. Where to cut is found once from a trial
conversation and checked on every other one. For ChatML and the user's turn "Hi"
the pieces are:

  opening  <|im_start|>user\\n
           Hi
  closing  <|im_end|>\\n<|im_start|>assistant\\n    the prompt ends here
  lead                              empty; Qwen3 writes an empty thinking block
           yes                      the content
  end      <|im_end|>               the completion ends here
  rest     \\n

The prompt is what the template renders with the assistant's turn opened. If it
has no such rendering, the prompt is everything before the content, except for
spaces, which belong to the first word (Llama 2: "[/INST]", then " yes </s>").
If the template marks the assistant's words by {% generation %}, these marks
decide.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from lora_opt.data.chat_rendering import CLOSES, OPENS
from lora_opt.data.chat_template import PLACE
from lora_opt.reading.values import one_line

# Texts that no template changes or writes by itself. No two of them begin or
# end alike.
_QUESTION, _ANSWER, _NEXT = 'qzxv-question-1', 'kjwy-answer-2', 'hgbn-next-3'


class Cut(NamedTuple):
  """The pieces of a turn, as texts; see the module docstring.

  Attributes:
    opened: Whether prompts are rendered with the assistant's turn opened.
    header: The part of the assistant's header that a rendered prompt lacks.
    lead: What the template writes between prompt and content.
    end: What ends a turn; '' if nothing does.
    rest: What follows `end` in the rendering of a whole conversation.
    parts: Whether contents are lists of parts.
    opening: What the prompt has before the user's content.
    closing: What the prompt has after the user's content.
  """

  opened: bool
  header: str
  lead: str
  end: str
  rest: str
  parts: bool
  opening: str
  closing: str

  def message(self, role: str, content: str) -> dict:
    """A message in the form that the template takes."""
    if self.parts:
      return {'role': role, 'content': [{'type': 'text', 'text': content}]}
    return {'role': role, 'content': content}


@functools.lru_cache(maxsize=8)  # called for every example
def cut_of(tokenizer, system: str | None = None) -> Cut:
  """Finds from a trial conversation where to cut what the template writes.

  Args:
    tokenizer: See lora_opt.data.tokenizer.
    system: Text of the system turn; None for none.

  Raises:
    ValueError: There is no template, or conversations cannot be cut.
  """
  trial, problem = None, None
  for parts in (False, True):
    try:
      trial = _trial(tokenizer, system, parts=parts)
    except ValueError as error:  # the template may take only one of the forms
      problem = problem or error
      continue
    if trial.complete:
      break
  if trial is None:
    raise problem
  if not trial.complete:
    raise refusal(
      tokenizer,
      'it does not write the texts of the user and of the assistant once and '
      'unchanged',
    )
  whole, answer = trial.whole, trial.whole.index(_ANSWER)
  opened = whole[:answer].startswith(trial.opened)
  prompt = trial.opened if opened else trial.bare
  if not whole[:answer].startswith(prompt):
    raise refusal(
      tokenizer,
      f'a rendered conversation ({one_line(whole, 200)!r}) does not begin '
      f'with its rendered prompt ({one_line(prompt, 200)!r})',
    )
  between = whole[len(prompt) : answer]
  header = ''
  if trial.span is not None:
    header = between[: max(0, trial.span[0] - len(prompt))]
  elif between.strip() and (not opened or trial.opened == trial.bare):
    header = between.rstrip(' ')
  end, rest = _end(tokenizer, trial)
  opening, _, closing = (prompt + header).partition(_QUESTION)
  lead = between[len(header) :]
  return Cut(opened, header, lead, end, rest, trial.parts, opening, closing)


def refusal(
  tokenizer, reason: str, fix: str = 'Set chat=False on the task'
) -> ValueError:
  """The error for a template whose conversations cannot be cut."""
  place = getattr(tokenizer, 'template_place', PLACE)
  return ValueError(
    f'{place}: its conversations cannot be cut into what the model reads and '
    f'what it says: {reason}. {fix}, or take another template'
  )


class _Trial(NamedTuple):
  """The renderings of a conversation: the whole, and only its prompt."""

  parts: bool
  opened: str
  bare: str
  whole: str
  span: tuple[int, int] | None  # what the template marks as the assistant's
  longer: str | None  # the whole with another user turn after it

  @property
  def complete(self) -> bool:
    texts = (self.opened, self.bare, self.whole)
    asked = all(text.count(_QUESTION) == 1 for text in texts)
    return asked and self.whole.count(_ANSWER) == 1

  @property
  def after(self) -> str:
    """What follows the answer."""
    return self.whole.partition(_ANSWER)[2]


def _trial(tokenizer, system: str | None, *, parts: bool) -> _Trial:
  shape = Cut(False, '', '', '', '', parts, '', '')
  prompt = [shape.message('user', _QUESTION)]
  if system is not None:
    prompt.insert(0, shape.message('system', system))
  turns = [*prompt, shape.message('assistant', _ANSWER)]
  asked = [(prompt, True), (prompt, False), (turns, False)]
  found = tokenizer.apply_chats(asked, marked=True)
  (opened, _), (bare, _), (whole, spans) = map(unmarked, found)
  answer = whole.find(_ANSWER)
  around = [span for span in spans if span[0] <= answer < span[1]]
  try:
    more = [*turns, shape.message('user', _NEXT)]
    (longer,) = tokenizer.apply_chats([(more, False)])
  except ValueError:  # the template may not support such a conversation
    longer = None
  return _Trial(parts, opened, bare, whole, (*around, None)[0], longer)


def unmarked(text: str) -> tuple[str, list[tuple[int, int]]]:
  """The text without marks, and the spans of what was between the marks."""
  before, *blocks = text.split(OPENS)
  spans = []
  for block in blocks:
    inside, _, after = block.partition(CLOSES)
    spans.append((len(before), len(before) + len(inside)))
    before += inside + after
  return before, spans


def _end(tokenizer, trial: _Trial) -> tuple[str, str]:
  """What ends a turn, and what the last turn has after that end."""
  after = trial.after
  size = len(after)
  marked = trial.span[1] - len(trial.whole) + size if trial.span else 0
  if marked > 0 and after[:marked].strip():
    size = marked
  elif trial.longer is not None and trial.longer.count(_ANSWER) == 1:
    # What ends every turn, not only the last: Phi-3 ends that with the end of
    # the text as well.
    size = _common(tokenizer, after, trial.longer.partition(_ANSWER)[2])
    size = size if after[:size].strip() else len(after)
  # Templates put a line break after the end, which is not part of the answer.
  end = after[:size].rstrip()
  rest = after[len(end) :]
  ids = list(tokenizer.encode(trial.whole))
  if end and rest:
    closed = list(tokenizer.encode(trial.whole[: -len(rest)]))
    if ids[: len(closed)] != closed:  # a token spans the boundary
      return after, ''
  return end, rest


def _common(tokenizer, first: str, second: str) -> int:
  """Length in characters of two texts' common prefix, in whole tokens."""
  pairs = zip(first, second, strict=False)
  size = next(
    (i for i, (a, b) in enumerate(pairs) if a != b),
    min(len(first), len(second)),
  )
  ids = [list(tokenizer.encode(text)) for text in (first, second)]
  while size:
    part = list(tokenizer.encode(first[:size]))
    if all(whole[: len(part)] == part for whole in ids):
      break
    size -= 1
  return size


def squeezed(text: str) -> str:
  """A text without its white space, which templates change freely."""
  return ''.join(text.split())


def common_length(sequences: Sequence[Sequence[int]]) -> int:
  """Length of the common prefix of all sequences.

  >>> common_length([[1, 2, 3], [1, 2], [1, 2, 4]])
  2
  """
  for place, tokens in enumerate(zip(*sequences, strict=False)):
    if len(set(tokens)) > 1:
      return place
  return min(map(len, sequences))
