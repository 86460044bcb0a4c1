"""From text to token ids: chat turns, plain likelihood prompts, boundaries.

A *chat* is the whole conversation, rendered by the model's own template and cut
in two. The prompt is the [system turn,] user turn and header of the assistant's
turn. The completion ends with the template's end of turn (for SmolLM2:
`<|im_end|>`). The ids are those of the rendered text, token by token.
lora_opt.data.turns says where it is cut; a template that cannot be cut this way
is refused.

A *plain* prompt is the text itself, after `bos_id` if the model was trained
with it (`add_bos`: Llama, Gemma). The completion follows after one space,
the convention of likelihood evaluation ('Question: ...\\nAnswer:' + ' choice').
If the prompt ends in white space, that white space is used instead and goes
with the completion, where tokenizers expect it.

The boundary: prompt and completion are tokenised as one text. When the ids of
the prompt alone are a prefix of the result, the rest are the completion's ids.
Otherwise a token spans the boundary. A plain text is then tokenised in two
parts, so that the prompt's ids are those that generation starts from. A chat
keeps that token, at the start of the completion.

A special token that is spelled out in a row's own text is encoded as that
special token: clean data of unknown origin first.
"""

import functools
from collections.abc import Sequence

from lora_opt.data.chat_template import PLACE, ChatTemplate
from lora_opt.data.turns import common_length, cut_of, refusal, squeezed
from lora_opt.reading.values import shown


def encode_completions(
  tokenizer,
  prompt: str,
  completions: Sequence[str],
  *,
  chat: bool,
  system: str | None = None,
  end: bool = True,
) -> tuple[list[int], list[list[int]]]:
  """Tokenises one prompt and its possible completions.

  Args:
    tokenizer: see lora_opt.data.tokenizer.Tokenizer.
    prompt: the text of the question.
    completions: the texts that may follow.
    chat: use the tokenizer's chat template.
    system: text of the system turn in a chat. None leaves it to the template
      (SmolLM2's puts in 'You are a helpful AI assistant named SmolLM ...');
      '' sends an empty system turn, the only way to avoid such a text.
    end: end plain completions with the end-of-text token; a chat completion
      always ends its turn.

  Returns:
    The ids of the prompt and, for each completion, its ids.

  Raises:
    ValueError: the tokenizer lacks a chat template or token that is needed, its
      template cannot be cut, or there are no ids to start from.
  """
  asked = [(prompt, completions)]
  return encode_all(tokenizer, asked, chat=chat, system=system, end=end)[0]


def encode_all(
  tokenizer,
  asked: Sequence[tuple[str, Sequence[str]]],
  *,
  chat: bool,
  system: str | None = None,
  end: bool = True,
) -> list[tuple[list[int], list[list[int]]]]:
  """`encode_completions` for several prompts, rendering all chats at once.

  Templates are rendered by another process, and a call to it takes longer than
  rendering one chat.
  """
  if chat:
    return _encode_chats(tokenizer, asked, system)
  return [_encode_plain(tokenizer, *one, end) for one in asked]


def _encode_plain(
  tokenizer, prompt: str, completions: Sequence[str], end: bool
) -> tuple[list[int], list[list[int]]]:
  text, between = _plain_prompt(prompt)
  prompt_ids = list(tokenizer.encode(text)) if text else []
  tail = end_ids(tokenizer) if end else []
  encoded = []
  for completion in completions:
    rest = between + completion
    ids = list(tokenizer.encode(text + rest))
    if ids[: len(prompt_ids)] == prompt_ids:
      ids = ids[len(prompt_ids) :]
    else:
      ids = list(tokenizer.encode(rest))
    encoded.append(ids + tail)
  return opened(tokenizer, prompt_ids), encoded


def encode_prompt(
  tokenizer, prompt: str, *, chat: bool, system: str | None = None
) -> list[int]:
  """The ids of a prompt, from which an answer is generated.

  Args and Raises: as for `encode_completions`.
  """
  return encode_completions(
    tokenizer, prompt, (), chat=chat, system=system, end=False
  )[0]


def frame(
  tokenizer, *, chat: bool, system: str | None = None
) -> tuple[int, int]:
  """How many ids open a prompt, and how many close it.

  The ids between them are the text of the task, which can be truncated.

  Args: as for `encode_completions`.
  """
  return _chat_frame(tokenizer, system) if chat else (int(tokenizer.add_bos), 0)


@functools.lru_cache(maxsize=8)  # called for every example
def _chat_frame(tokenizer, system: str | None) -> tuple[int, int]:
  cut = cut_of(tokenizer, system)
  opening, closing = map(tokenizer.encode, (cut.opening, cut.closing))
  return len(opening), len(closing)


def opened(tokenizer, ids: Sequence[int]) -> list[int]:
  """Prepends the token that opens the model's texts to the ids of a text.

  It is added only if `add_bos` is set, and never twice. Without ids, the result
  is a single token to start from: bos_id, or else eos_id.

  Raises:
    ValueError: there are no ids, and no token to start from.
  """
  if not ids:
    first = [tokenizer.bos_id, tokenizer.eos_id]
    first = [token for token in first if token is not None][:1]
    if not first:
      raise ValueError(
        'an empty prompt needs a token to start from, and this tokenizer has '
        'neither bos_id nor eos_id: give the task a prompt'
      )
    return first
  if tokenizer.add_bos and ids[0] != tokenizer.bos_id:
    return [tokenizer.bos_id, *ids]
  return list(ids)


def _encode_chats(
  tokenizer, asked: Sequence[tuple[str, Sequence[str]]], system: str | None
) -> list[tuple[list[int], list[list[int]]]]:
  if tokenizer.chat_template is None:
    place = getattr(tokenizer, 'template_place', PLACE)
    missing = ChatTemplate(None, place).missing
    raise ValueError(f'{missing}: set chat=False on the task')
  cut = cut_of(tokenizer, system)
  first = [] if system is None else [cut.message('system', system)]
  chats = []
  for prompt, completions in asked:
    messages = [*first, cut.message('user', prompt)]
    chats.append((messages, cut.opened))
    for completion in completions:
      answer = cut.message('assistant', completion)
      chats.append(([*messages, answer], False))
  texts = iter(_rendered(tokenizer, chats))
  return [
    _cut_chat(tokenizer, cut, next(texts), [(c, next(texts)) for c in answers])
    for _, answers in asked
  ]


def _rendered(tokenizer, chats: Sequence[tuple[list, bool]]) -> Sequence[str]:
  """Renders all chats at once, or one by one if that exceeds the limits."""
  try:
    return tokenizer.apply_chats(chats)
  except ValueError:
    return [tokenizer.apply_chats([chat])[0] for chat in chats]


def _cut_chat(
  tokenizer, cut, text: str, answered: Sequence[tuple[str, str]]
) -> tuple[list[int], list[list[int]]]:
  """The ids of a rendered prompt, and for each answer the ids that follow."""
  text += cut.header
  prompt_ids = list(tokenizer.encode(text))
  tail = [] if cut.end else end_ids(tokenizer)
  rows = [
    list(tokenizer.encode(_closed(tokenizer, cut, text, whole, completion)))
    for completion, whole in answered
  ]
  # Shorter than the prompt only if a token spans its end.
  size = common_length([prompt_ids, *rows])
  start = prompt_ids[:size] or opened(tokenizer, [])
  return start, [row[size:] + tail for row in rows]


def _closed(tokenizer, cut, text: str, whole: str, completion: str) -> str:
  """Checks a rendered conversation, and cuts it after its end of turn."""
  after = cut.end + cut.rest
  said = whole[len(text) : len(whole) - len(after)]
  fits = len(whole) >= len(text) + len(after)
  if not (fits and whole.startswith(text) and whole.endswith(after)):
    raise refusal(
      tokenizer,
      f'with the answer {shown(completion)} it writes something else around '
      'it than with another answer',
    )
  if squeezed(completion) not in squeezed(said):
    raise refusal(
      tokenizer,
      f'it turns the answer {shown(completion)} into {shown(said)}',
    )
  return whole[: len(whole) - len(cut.rest)]


def _plain_prompt(prompt: str) -> tuple[str, str]:
  """The prompt without trailing white space, and the separator after it."""
  text = prompt.rstrip()
  if not text:
    return '', ''
  return text, prompt[len(text) :] or ' '


def end_ids(tokenizer) -> list[int]:
  """The end-of-text token, as a list of one id.

  Raises:
    ValueError: the tokenizer has none.
  """
  if tokenizer.eos_id is None:
    raise ValueError(
      'the tokenizer has no end-of-text token (eos_id), so that no answer '
      'could end: use a chat template or set eos_id'
    )
  return [tokenizer.eos_id]
