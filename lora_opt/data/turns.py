"""How a chat template writes a turn of the assistant, and where to cut it.

A conversation is rendered whole, by the template alone, and then cut into what
the model reads and what it says. Where to cut is learned once from a trial
conversation and checked on every other: for ChatML and the user's turn "Hi"

  opening  <|im_start|>user\\n
           Hi
  closing  <|im_end|>\\n<|im_start|>assistant\\n    the prompt ends here
  lead                              empty; Qwen3 writes empty thoughts
           yes                      the content
  end      <|im_end|>               the completion ends here
  rest     \\n

The prompt is what the template renders to be continued. Where it has no such
rendering, it is what stands before the content, but for spaces: those belong to
the first word (Llama 2: "[/INST]", then " yes </s>"). Where the template marks
the assistant's words by {% generation %}, it has the last word.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from lora_opt.data.chat_rendering import CLOSES, OPENS
from lora_opt.data.chat_template import PLACE
from lora_opt.reading.values import one_line

# Texts that no template changes or writes by itself, without a common
# beginning or end.
_QUESTION, _ANSWER, _NEXT = 'qzxv-question-1', 'kjwy-answer-2', 'hgbn-next-3'


class Cut(NamedTuple):
  """The pieces of a turn, as texts; see the module.

  Attributes:
    opened: Whether prompts are rendered with the assistant's turn opened.
    header: What such a rendering lacks of the assistant's header.
    lead: What the template writes between prompt and content.
    end: What ends a turn; '' if nothing does.
    rest: What a whole rendering has behind that.
    parts: Whether contents are lists of parts.
    opening: What the prompt has before the user's content.
    closing: What it has behind it.
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
    """A message as the template takes it."""
    if self.parts:
      return {'role': role, 'content': [{'type': 'text', 'text': content}]}
    return {'role': role, 'content': content}


@functools.lru_cache(maxsize=8)  # asked for with every example
def cut_of(tokenizer, system: str | None = None) -> Cut:
  """Learns from a trial conversation how the tokenizer's template cuts.

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
    except ValueError as error:  # it may be a template for parts, or for none
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
  """The error of a template that conversations cannot be cut with."""
  place = getattr(tokenizer, 'template_place', PLACE)
  return ValueError(
    f'{place}: its conversations cannot be cut into what the model reads and '
    f'what it says: {reason}. {fix}, or take another template'
  )


class _Trial(NamedTuple):
  """A conversation as it is rendered, whole and up to its prompt."""

  parts: bool
  opened: str
  bare: str
  whole: str
  span: tuple[int, int] | None  # what the template marks as the assistant's
  longer: str | None  # with another turn of the user behind

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
  except ValueError:  # templates may refuse what they were not made for
    longer = None
  return _Trial(parts, opened, bare, whole, (*around, None)[0], longer)


def unmarked(text: str) -> tuple[str, list[tuple[int, int]]]:
  """The text without marks, and the places of what stood between them."""
  before, *blocks = text.split(OPENS)
  spans = []
  for block in blocks:
    inside, _, after = block.partition(CLOSES)
    spans.append((len(before), len(before) + len(inside)))
    before += inside + after
  return before, spans


def _end(tokenizer, trial: _Trial) -> tuple[str, str]:
  """What ends a turn, and what else a conversation's last one has behind it."""
  after = trial.after
  size = len(after)
  marked = trial.span[1] - len(trial.whole) + size if trial.span else 0
  if marked > 0 and after[:marked].strip():
    size = marked
  elif trial.longer is not None and trial.longer.count(_ANSWER) == 1:
    # Every turn ends so, not only the last: Phi-3 ends the text there too.
    size = _common(tokenizer, after, trial.longer.partition(_ANSWER)[2])
    size = size if after[:size].strip() else len(after)
  # Templates put a line break after the end: that is not a part of the answer.
  end = after[:size].rstrip()
  rest = after[len(end) :]
  ids = list(tokenizer.encode(trial.whole))
  if end and rest:
    closed = list(tokenizer.encode(trial.whole[: -len(rest)]))
    if ids[: len(closed)] != closed:  # a token reaches across
      return after, ''
  return end, rest


def _common(tokenizer, first: str, second: str) -> int:
  """Characters of the beginning that two texts share, in whole tokens."""
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
  """A text without its white space, which templates deal with freely."""
  return ''.join(text.split())


def common_length(sequences: Sequence[Sequence[int]]) -> int:
  """Length of the beginning that all sequences share.

  >>> common_length([[1, 2, 3], [1, 2], [1, 2, 4]])
  2
  """
  for place, tokens in enumerate(zip(*sequences, strict=False)):
    if len(set(tokens)) > 1:
      return place
  return min(map(len, sequences))
