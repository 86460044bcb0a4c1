"""A conversation: its messages, and which of them are learned."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Message = dict[str, Any]


class Dialogue(NamedTuple):
  """A conversation that a row holds.

  Attributes:
    messages: dicts with role, content and what else their template may read.
      The last one is learned.
    trained: which of them are learned; only the assistant's are.
    tools: the definitions of tools, as JSON has them; None for none.
    place: where it stands, for messages.
  """

  messages: tuple[Message, ...]
  trained: tuple[bool, ...]
  tools: tuple[Mapping[str, Any], ...] | None = None
  place: str = ''

  @property
  def learned(self) -> list[int]:
    """The places of the answers that are learned."""
    return [i for i, trained in enumerate(self.trained) if trained]

  def characters(self) -> int:
    """How many there are to tokenize, but for what a template adds."""
    rest = [(m.get('tool_calls'), m.get('thinking')) for m in self.messages]
    texts = [m['content'] for m in self.messages]
    return sum(map(len, texts)) + len(json.dumps([rest, self.tools]))

  def prompt(self) -> str:
    """All that stands before the last answer, to be read by people."""
    return transcript(self.messages[:-1])

  def answers(self) -> list[str]:
    """What is learned, to be read by people."""
    return [_words(self.messages[place]) for place in self.learned]

  def up_to(self, place: int) -> 'Dialogue':
    """The conversation up to this answer, of which it alone is learned."""
    trained = (*[False] * place, True)
    return self._replace(messages=self.messages[: place + 1], trained=trained)

  def shorter(self) -> 'Dialogue | None':
    """Without its oldest turns: a user's, and all up to the next user's.

    What stands before the first user's turn, such as the system's, stays. None
    if nothing that is learned would be left.
    """
    asked = [i for i, m in enumerate(self.messages) if m['role'] == 'user']
    if len(asked) < 2:
      return None
    first, second = asked[:2]
    messages = self.messages[:first] + self.messages[second:]
    trained = self.trained[:first] + self.trained[second:]
    return self._replace(messages=messages, trained=trained)


def transcript(messages: Sequence[Message]) -> str:
  """Messages as a text for people.

  >>> transcript([{'role': 'user', 'content': 'Hi'}])
  'user: Hi'
  """
  return '\n'.join(f'{m["role"]}: {_words(m)}' for m in messages)


def _words(message: Message) -> str:
  calls = message.get('tool_calls', ())
  texts = [message['content']] if message['content'] else []
  texts += [json.dumps(c['function'], ensure_ascii=False) for c in calls]
  return '\n'.join(texts)
