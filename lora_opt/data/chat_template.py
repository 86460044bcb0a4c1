"""Chat templates: finds the one in a model folder and renders chats with it."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lora_opt.data import chat_rendering
from lora_opt.reading import values
from lora_opt.reading.confined import Confined, ConfinedError
from lora_opt.reading.files import read_text

FILE = 'chat_template.jinja'
FOLDER = 'additional_chat_templates'
DEFAULT = 'default'
PLACE = 'the chat template'  # if it is from no file
MOST_BYTES = 2**20
SECONDS = 5.0  # rendering usually takes a millisecond

Message = Mapping[str, Any]

_render = Confined(chat_rendering.__file__, 'render', seconds=SECONDS)


class ChatTemplate(NamedTuple):
  """A jinja template, and where it comes from.

  Attributes:
    text: The template. None if there is none; `place` then says why.
    place: The file that it is from, for error messages.
  """

  text: str | None
  place: str = PLACE

  @property
  def missing(self) -> str:
    """The error message if there is no template."""
    why = '' if self.place == PLACE else f' ({self.place})'
    return f'the tokenizer has no chat template{why}'

  def render(
    self,
    conversations: Sequence[tuple[Any, ...]],
    variables: Mapping[str, str],
    *,
    marked: bool = False,
  ) -> list[str]:
    """Renders conversations, in a process with limits on time and memory.

    Args:
      conversations: For each its messages, whether to open the assistant's
        turn at the end, and optionally the definitions of its tools.
      variables: Other variables for the template, such as eos_token.
      marked: Put `chat_rendering.OPENS` and `CLOSES` around the text that the
        template marks as the assistant's.

    Raises:
      ValueError: The template is missing or broken, rejects the messages or
        exceeds the limits.
    """
    if self.text is None:
      raise ValueError(self.missing)
    try:
      found = _render(self.text, conversations, dict(variables), marked)
    except ConfinedError as error:
      raise ValueError(f'{self.place} {_said(error)}') from None
    return [values.text(text, f'{self.place}: its text') for text in found]


def _said(error: Exception) -> str:
  """Words a template's error as the end of a sentence."""
  name, _, message = str(error).partition(': ')
  if name == 'ValueError':
    return values.one_line(message, 500)
  return values.one_line(f'does not work: {error}', 500)


def read_template(
  folder: pathlib.Path, settings: Mapping[str, Any], settings_file: pathlib.Path
) -> ChatTemplate:
  """Reads the template of a folder, which is chosen as in transformers.

  Template files take precedence over tokenizer_config.json. Of several
  templates, the one named 'default' is used; others (tool_use, rag) are not
  used here.

  Args:
    folder: The folder that holds the files.
    settings: The content of tokenizer_config.json.
    settings_file: Its path, for error messages.

  Returns:
    The template. Its text is None if the folder has no template, or none named
    'default'.

  Raises:
    ValueError: A template is not text, or is too large.
  """
  for file in (folder / FILE, folder / FOLDER / f'{DEFAULT}.jinja'):
    if file.is_file():
      return ChatTemplate(read_text(file, most=MOST_BYTES), str(file))
  others = sorted((folder / FOLDER).glob('*.jinja'))
  if others:
    return _without_default(folder / FOLDER, [other.stem for other in others])
  place = f'{settings_file}: chat_template'
  named = _named(settings.get('chat_template'), place)
  if not named:
    return ChatTemplate(None, f'{folder} has none')
  if DEFAULT not in named:
    return _without_default(place, named)
  return ChatTemplate(named[DEFAULT], place)


def _named(value: Any, place: str) -> dict[str, str]:
  """The templates in tokenizer_config.json, by name."""
  if value is None:
    return {}
  if isinstance(value, str):
    value = {DEFAULT: value}
  elif isinstance(value, list):
    value = {
      values.text(values.table(one, place).get('name'), f'{place}: name'): (
        one.get('template')
      )
      for one in value
    }
  for name, template in values.table(value, place).items():
    values.text(template, f'{place}: template {values.shown(name)}')
    if len(template) > MOST_BYTES:
      raise ValueError(f'{place}: more than {MOST_BYTES:,} characters')
  return value


def _without_default(place: Any, named: Iterable[str]) -> ChatTemplate:
  names = ', '.join(map(values.shown, sorted(named)))
  return ChatTemplate(
    None, f"{place} has templates {names} and none with the name 'default'"
  )
