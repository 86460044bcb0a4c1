"""Checks the messages of a conversation and brings them into one form.

Two input forms are accepted and told apart by their keys:

  OpenAI    {"role": "user", "content": "Hi"}
  ShareGPT  {"from": "human", "value": "Hi"}

The content of a message is a text, or a list of parts that are all text. An
assistant message may have `tool_calls`, and `weight` 0 if the model should not
learn it.
"""

import re
from collections.abc import Mapping
from typing import Any

from lora_opt.data.dialogue import Dialogue, Message
from lora_opt.data.examples import Record
from lora_opt.reading import values
from lora_opt.reading.json_text import parse_json
from lora_opt.reading.values import shown

ROLES = ('system', 'developer', 'user', 'assistant', 'tool')
# ShareGPT's names of roles, and those that others added to them.
SHAREGPT = {
  'system': 'system',
  'human': 'user',
  'user': 'user',
  'gpt': 'assistant',
  'chatgpt': 'assistant',
  'assistant': 'assistant',
  'function_call': 'assistant',
  'tool': 'tool',
  'observation': 'tool',
}
# Text fields of a message, besides its content, that templates may read.
TEXTS = ('name', 'tool_call_id', 'reasoning_content', 'thinking')
MOST = 10_000  # messages in a row
_TURN = re.compile(r'(?:^|\n\n)(Human|Assistant):')
_SPEAKERS = {'Human': 'user', 'Assistant': 'assistant'}


def read_dialogue(
  record: Record,
  field: str,
  *,
  tools: str | None = None,
  system: str | None = None,
) -> Dialogue:
  """Reads the conversation of a row.

  Messages after the last learned answer are dropped: nothing in them would be
  learned.

  Args:
    record: The row.
    field: Name of the field with the messages.
    tools: Name of the field with the tool definitions, which a row may lack;
      None reads none.
    system: Text of a system turn for rows without one; None adds none.

  Raises:
    ValueError: The messages are not as the module docstring says. The error
      names file, line and message.
  """
  messages, trained = read_messages(record, field)
  if not any(trained):
    raise record.error(f'field {field!r} has no answer that is to be learned')
  last = max(place for place, learned in enumerate(trained) if learned)
  found = None if tools is None else read_tools(record, tools)
  dialogue = Dialogue(
    messages[: last + 1], trained[: last + 1], found, record.place
  )
  return with_system(dialogue, system)


def with_system(dialogue: Dialogue, system: str | None) -> Dialogue:
  """Prepends a system turn if a text is given and there is no such turn yet."""
  has_one = dialogue.messages[0]['role'] in ('system', 'developer')
  if system is None or has_one:
    return dialogue
  first = {'role': 'system', 'content': system}
  return dialogue._replace(
    messages=(first, *dialogue.messages), trained=(False, *dialogue.trained)
  )


def read_messages(
  record: Record, field: str
) -> tuple[tuple[Message, ...], tuple[bool, ...]]:
  """Reads all messages of a field, and which of them are learned.

  Raises:
    ValueError: They are not as the module docstring says.
  """
  value = record.field(field)
  if not isinstance(value, list | tuple) or not value:
    raise record.error(
      f'field {field!r} must be a list of messages, found '
      f'{values.kind_of(value)} {shown(value)}'
    )
  if len(value) > MOST:
    raise record.error(
      f'field {field!r} has {len(value):,} messages, more than {MOST:,}'
    )
  found = []
  for number, message in enumerate(value):
    place = f'field {field!r}, message {number}'
    try:
      found.append(_message(message, place))
    except ValueError as error:
      raise record.error(str(error)) from None
  messages, trained = zip(*found, strict=True)
  return messages, trained


def read_transcript(record: Record, field: str) -> tuple[Message, ...]:
  """Reads the messages of a transcript in the format of Anthropic's HH.

  Raises:
    ValueError: It does not begin with a turn, or one of the assistant's is
      empty.
  """
  text = record.text(field)
  first, *rest = _TURN.split(text)
  if first.strip() or not rest:
    raise record.error(
      f"field {field!r} must be turns of 'Human:' and 'Assistant:', each "
      f'behind an empty line, found {shown(text)}'
    )
  messages = [
    {'role': _SPEAKERS[speaker], 'content': said.strip()}
    for speaker, said in zip(rest[::2], rest[1::2], strict=True)
  ]
  if not all(m['content'] for m in messages if m['role'] == 'assistant'):
    raise record.error(f'field {field!r} has an empty answer')
  return tuple(messages)


def read_tools(
  record: Record, field: str
) -> tuple[Mapping[str, Any], ...] | None:
  """Reads the tool definitions of a row: a list, or its JSON as text.

  Raises:
    ValueError: The field does not hold tool definitions.
  """
  value = record.row.get(field)
  place = f'field {field!r}'
  try:
    if isinstance(value, str) and value.strip():
      value = parse_json(value.encode(), place)
    if not value:
      return None
    value = list(value) if isinstance(value, tuple) else value
    for number, tool in enumerate(values.items(value, place)):
      _tool_name(tool, f'{place}, tool {number}')
  except ValueError as error:
    raise record.error(str(error)) from None
  return tuple(value)


def tool_names(dialogue: Dialogue) -> list[str]:
  """The names of a conversation's tools."""
  return [_tool_name(tool, 'tool') for tool in dialogue.tools or ()]


def _tool_name(tool: Any, place: str) -> str:
  tool = values.table(tool, place)
  inner = tool.get('function', tool)
  return values.text(
    values.table(inner, f'{place}: function').get('name'), f'{place}: name'
  )


def _message(value: Any, place: str) -> tuple[Message, bool]:
  value = values.table(value, place)
  if 'role' in value:
    role, content = value['role'], value.get('content')
    if role not in ROLES:
      raise ValueError(
        f'{place}: role {shown(role)} must be one of {", ".join(ROLES)}'
      )
  elif 'from' in value:
    named, content = value['from'], value.get('value')
    if not isinstance(named, str) or named not in SHAREGPT:
      raise ValueError(
        f"{place}: 'from' {shown(named)} must be one of {', '.join(SHAREGPT)}"
      )
    role = SHAREGPT[named]
    if named == 'function_call':
      value = {**value, 'tool_calls': [_json(content, place)]}
      content = None
  else:
    keys = ', '.join(shown(key, 40) for key in list(value)[:9]) or 'none'
    raise ValueError(
      f"{place}: there must be 'role' and 'content', or 'from' and 'value'; "
      f'its keys are {keys}'
    )
  calls = value.get('tool_calls')
  if calls and role != 'assistant':
    raise ValueError(f'{place}: {role} cannot call tools')
  # Templates join the content with other text, so it must not be None.
  text = '' if content is None and calls else _content(content, place)
  if role == 'assistant' and not text.strip() and not calls:
    raise ValueError(f'{place}: the answer is empty')
  found = {'role': role, 'content': text}
  if calls:
    found['tool_calls'] = [
      _call(call, f'{place}, tool call {number}')
      for number, call in enumerate(values.items(calls, f'{place}: tool_calls'))
    ]
  for name in TEXTS:
    if value.get(name) is not None:
      found[name] = values.text(value[name], f'{place}: {name}')
  return found, role == 'assistant' and _weight(value, place) > 0


def _content(value: Any, place: str) -> str:
  if isinstance(value, list | tuple) and value:
    parts = [values.table(part, f'{place}: a part') for part in value]
    others = [p.get('type') for p in parts if p.get('type') != 'text']
    if others:
      raise ValueError(
        f'{place}: a part of type {shown(others[0])}; the models here read '
        'text alone'
      )
    value = ''.join(
      values.text(p.get('text'), f'{place}: text of a part') for p in parts
    )
  return values.text(value, f'{place}: content')


def _call(value: Any, place: str) -> Message:
  value = values.table(value, place)
  inner = values.table(value.get('function', value), f'{place}: function')
  name = values.text(inner.get('name'), f'{place}: name')
  arguments = inner.get('arguments', {})
  if isinstance(arguments, str):  # OpenAI's form; templates expect the dict
    arguments = _json(arguments, f'{place}: arguments')
  arguments = values.table(arguments, f'{place}: arguments')
  known = {k: value[k] for k in ('id',) if isinstance(value.get(k), str)}
  return {
    **known,
    'type': 'function',
    'function': {'name': name, 'arguments': dict(arguments)},
  }


def _json(text: Any, place: str) -> Any:
  return parse_json(values.text(text, place).encode(), place)


def _weight(value: Mapping[str, Any], place: str) -> int:
  weight = value.get('weight')
  if weight is None:
    return 1
  if isinstance(weight, bool) or weight not in (0, 1):
    raise ValueError(f'{place}: weight {shown(weight)} must be 0 or 1')
  return int(weight)
