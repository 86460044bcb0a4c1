"""A conversation: its messages, and which of them are learned."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Message = dict[str, Any]


class Dialogue(NamedTuple):
  """The conversation of a row.

  Attributes:
    messages: dicts with role, content and other keys that the chat template
      may read. The last message is learned.
    trained: for each message whether it is learned; only the assistant's are.
    tools: the definitions of tools, as in JSON; None if there are none.
    place: where the conversation comes from, for error messages.
  """

  messages: tuple[Message, ...]
  trained: tuple[bool, ...]
  tools: tuple[Mapping[str, Any], ...] | None = None
  place: str = ''

  @property
  def learned(self) -> list[int]:
    """The indices of the answers that are learned."""
    return [i for i, trained in enumerate(self.trained) if trained]

  def characters(self) -> int:
    """Number of characters to tokenize, without those a template adds."""
    # Templates write the other fields too, such as tool calls and reasoning.
    rest = [
      {k: v for k, v in message.items() if k not in ('role', 'content')}
      for message in self.messages
    ]
    texts = [m['content'] for m in self.messages]
    return sum(map(len, texts)) + len(json.dumps([rest, self.tools]))

  def prompt(self) -> str:
    """Everything before the last answer, as text for people."""
    return transcript(self.messages[:-1])

  def answers(self) -> list[str]:
    """The learned answers, as texts for people."""
    return [_words(self.messages[place]) for place in self.learned]

  def up_to(self, place: int) -> 'Dialogue':
    """The conversation up to this answer, the only one that is learned."""
    trained = (*[False] * place, True)
    return self._replace(messages=self.messages[: place + 1], trained=trained)

  def shorter(self) -> 'Dialogue | None':
    """Leaves out the oldest turns: a user's, and all up to the next user's.

    Turns before the first user's, such as the system's, stay. Returns None if
    there are fewer than two turns of a user.
    """
    asked = [i for i, m in enumerate(self.messages) if m['role'] == 'user']
    if len(asked) < 2:
      return None
    first, second = asked[:2]
    messages = self.messages[:first] + self.messages[second:]
    trained = self.trained[:first] + self.trained[second:]
    return self._replace(messages=messages, trained=trained)


def transcript(messages: Sequence[Message]) -> str:
  """Writes messages as text for people.

  >>> transcript([{'role': 'user', 'content': 'Hi'}])
  'user: Hi'
  """
  return '\n'.join(f'{m["role"]}: {_words(m)}' for m in messages)


def _words(message: Message) -> str:
  calls = message.get('tool_calls', ())
  texts = [message['content']] if message['content'] else []
  texts += [json.dumps(c['function'], ensure_ascii=False) for c in calls]
  return '\n'.join(texts)
