"""From text to token ids: chat turns, plain likelihood prompts, boundaries.

A *chat* prompt is the model's own template: [system turn,] user turn, and the
header of the assistant's turn. The completion follows at once and ends with
the template's end of turn (for SmolLM2: `<|im_end|>`).

A *plain* prompt is the text itself, behind `bos_id` where the model was trained
with it (`add_bos`: Llama, Gemma). The completion follows after one space,
the convention of likelihood evaluation ('Question: ...\\nAnswer:' + ' choice').
If the prompt ends in white space, that white space is used instead and goes
with the completion, where tokenizers expect it.

The boundary: prompt and completion are tokenised as one text. When the ids of
the prompt alone are a prefix of the result, the rest are the completion's ids.
When they are not, because a token would reach across the boundary, both are
tokenised apart: the prompt's ids are then those that generation starts from.

Special tokens that a row's own text spells out are taken for what they spell:
clean data of unknown origin first.
"""

import functools
from collections.abc import Sequence

_MARK = 'lora-opt-completion-mark'


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
      '' sends an empty system turn, the only way to have no such text there.
    end: end plain completions with the end-of-text token; a chat completion
      always ends its turn.

  Returns:
    The ids of the prompt and, for each completion, its ids.

  Raises:
    ValueError: the tokenizer lacks what is asked for, or there are no ids to
      start from.
  """
  if chat:
    text, between = _chat_prompt(tokenizer, prompt, system), ''
    after = end_of_turn(tokenizer)
    tail = [] if after else _end_ids(tokenizer)
  else:
    text, between = _plain_prompt(prompt)
    after, tail = '', _end_ids(tokenizer) if end else []
  prompt_ids = list(tokenizer.encode(text)) if text else []
  start = _start_ids(tokenizer, chat, prompt_ids)
  if not start + prompt_ids:
    raise ValueError(
      'an empty prompt needs a token to start from, and this tokenizer has '
      'neither bos_id nor eos_id: give the task a prompt'
    )
  encoded = []
  for completion in completions:
    rest = between + completion + after
    ids = list(tokenizer.encode(text + rest))
    if ids[: len(prompt_ids)] == prompt_ids:
      ids = ids[len(prompt_ids) :]
    else:
      ids = list(tokenizer.encode(rest))
    encoded.append(ids + tail)
  return start + prompt_ids, encoded


@functools.lru_cache(maxsize=4)  # asked for with every example
def end_of_turn(tokenizer) -> str:
  """The text that ends an assistant's turn, read off the chat template."""
  turns = [
    {'role': 'user', 'content': 'question'},
    {'role': 'assistant', 'content': _MARK},
  ]
  text = tokenizer.apply_chat(turns, add_generation_prompt=False)
  # Templates put a line break after the end: that is no part of the answer.
  return text.rpartition(_MARK)[2].strip()


def _chat_prompt(tokenizer, prompt: str, system: str | None) -> str:
  if not tokenizer.chat_template:
    raise ValueError(
      'the tokenizer has no chat template: set chat=False on the task'
    )
  turns = [{'role': 'user', 'content': prompt}]
  if system is not None:
    turns.insert(0, {'role': 'system', 'content': system})
  return tokenizer.apply_chat(turns, add_generation_prompt=True)


def _plain_prompt(prompt: str) -> tuple[str, str]:
  """The prompt without white space at its end, and what comes after it."""
  text = prompt.rstrip()
  if not text:
    return '', ''
  return text, prompt[len(text) :] or ' '


def _start_ids(tokenizer, chat: bool, prompt_ids: Sequence[int]) -> list[int]:
  """What comes before the prompt: chat templates write their own."""
  if not prompt_ids:
    first = [tokenizer.bos_id, tokenizer.eos_id]
    return [token for token in first if token is not None][:1]
  return [tokenizer.bos_id] if tokenizer.add_bos and not chat else []


def _end_ids(tokenizer) -> list[int]:
  if tokenizer.eos_id is None:
    raise ValueError(
      'the tokenizer has no end-of-text token (eos_id), so that no answer '
      'could end: use a chat template or set eos_id'
    )
  return [tokenizer.eos_id]
