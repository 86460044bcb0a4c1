"""Checks single values, with errors that name the place and the value."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

# Characters that must not go unescaped to a terminal or into a message.
_CONTROL = re.compile(
  '[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]'
)

_USUAL = re.compile('[!-~]{1,200}')


def printable(text: str) -> str:
  """Escapes the control characters of a model's or user's text for a terminal.

  Line ends and tabs stay. Any other character that would move the cursor, or
  change the title or the writing direction, is shown as its code.

  >>> printable('a\\x1b[2Jb\\n')
  'a\\\\x1b[2Jb\\n'
  """
  return _CONTROL.sub(
    lambda found: found[0] if found[0] in '\n\t' else _code(found[0]), text
  )


def _code(character: str) -> str:
  number = ord(character)
  return f'\\x{number:02x}' if number < 256 else f'\\u{number:04x}'


def shown(value: Any, length: int = 80) -> str:
  """A value for a message: short, on one line, without control characters.

  >>> shown('a\\x1b[2Jb')
  "'a\\\\x1b[2Jb'"
  >>> shown(list(range(1000)), 12)
  '[0, 1, 2, 3,...'
  """
  try:
    text = repr(_cut(value, length))
  except (RecursionError, ValueError):  # nested too deep, too many digits
    text = f'a {type(value).__name__} that is too large to show'
  return one_line(text, length)


def one_line(text: str, length: int = 500) -> str:
  """A text for a message: unquoted, but short and without control characters.

  >>> one_line('no system\\nmessage')
  'no system\\\\x0amessage'
  """
  short = text[:length] + '...' * (len(text) > length)
  return _CONTROL.sub(lambda found: _code(found[0]), short)


def plain(name: str) -> str:
  """A name for a message: unchanged, or as `shown` gives it if it is unusual.

  >>> plain('layers.0.weight'), plain('a b')
  ('layers.0.weight', "'a b'")
  """
  return name if _USUAL.fullmatch(name) else shown(name)


def _cut(value: Any, length: int) -> Any:
  """The beginning of a long value, so that the rest need not be formatted."""
  if isinstance(value, str | bytes | list | tuple) and len(value) > length:
    return value[: length + 1]
  if isinstance(value, Mapping) and len(value) > length:
    return dict(list(value.items())[: length + 1])
  return value


def kind_of(value: Any) -> str:
  """The JSON name for the type of a Python value.

  >>> kind_of({}), kind_of(True), kind_of(3)
  ('an object', 'a truth value', 'a number')
  """
  for types, words in _KINDS:
    if isinstance(value, types):
      return words
  return f'a {type(value).__name__}'


_KINDS = (
  (Mapping, 'an object'),
  (str, 'a text'),
  (Sequence, 'a list'),
  (bool, 'a truth value'),
  (int | float, 'a number'),
  (type(None), 'null'),
)


def integer(
  value: Any, what: str, least: int | None = None, most: int | None = None
) -> int:
  """Returns an integer within bounds.

  Args:
    value: The value to check. Booleans and 16.0 are refused.
    what: Its place and name, for the message.
    least: The smallest allowed value.
    most: The largest allowed value.

  Raises:
    ValueError: It is not an integer, or out of bounds.

  >>> integer(3, 'config.json: num_layers', least=1)
  3
  """
  good = isinstance(value, int) and not isinstance(value, bool)
  return _bounded(value, what, 'a whole number', good, least, most)


def number(
  value: Any,
  what: str,
  least: float | None = None,
  most: float | None = None,
  above: float | None = None,
) -> float:
  """Returns a finite number within bounds, as a float.

  Args:
    value: The value to check. Booleans are refused.
    what: Its place and name, for the message.
    least: The smallest allowed value.
    most: The largest allowed value.
    above: An exclusive lower bound.

  Raises:
    ValueError: It is not a finite number, or out of bounds.

  >>> number(1e-5, 'config.json: rms_norm_eps', above=0)
  1e-05
  """
  good = isinstance(value, int | float) and not isinstance(value, bool)
  good = good and abs(value) < 1e308 and math.isfinite(value)
  good = good and (above is None or value > above)
  kind = 'a finite number' + ('' if above is None else f' above {above}')
  return float(_bounded(value, what, kind, good, least, most))


def boolean(value: Any, what: str) -> bool:
  """Returns a boolean; the text 'false' is refused.

  Raises:
    ValueError: It is something else.

  >>> boolean(True, 'config.json: tie_word_embeddings')
  True
  """
  return _checked(value, what, 'true or false', isinstance(value, bool))


def text(value: Any, what: str) -> str:
  """Returns a string that UTF-8 can encode.

  Raises:
    ValueError: It is something else, or contains a lone surrogate.

  >>> text('gelu', 'config.json: hidden_act')
  'gelu'
  """
  _checked(value, what, 'a text', isinstance(value, str))
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{what}: {shown(value)} holds half a surrogate pair at position '
      f'{error.start}, which is not text'
    ) from None
  return value


def items(value: Any, what: str, size: int | None = None) -> list:
  """Returns a list, with `size` entries if that is given.

  Raises:
    ValueError: It is something else, or of another length.

  >>> items([3, 5], 'a.json: shape', size=2)
  [3, 5]
  """
  good = isinstance(value, list) and size in (None, len(value))
  kind = 'a list' if size is None else f'a list of {size}'
  return _checked(value, what, kind, good)


def table(value: Any, what: str) -> dict:
  """Returns a JSON object, a dict.

  Raises:
    ValueError: It is something else.
  """
  return _checked(value, what, 'an object', isinstance(value, dict))


def one_of(value: Any, what: str, allowed: Collection) -> Any:
  """Returns a value that equals one of the allowed ones, in type too.

  Raises:
    ValueError: It is none of them.

  >>> one_of('relu', 'config.json: hidden_act', ('gelu', 'relu'))
  'relu'
  """
  for one in allowed:
    if type(one) is type(value) and one == value:
      return one
  listed = ', '.join(map(repr, allowed))
  raise ValueError(f'{what}: expected one of {listed}, found {shown(value)}')


def _bounded(value, what, kind, good, least, most):
  if least is not None and most is not None:
    kind += f' from {least} to {most}'
  elif least is not None:
    kind += f' of at least {least}'
  elif most is not None:
    kind += f' of at most {most}'
  good = good and (least is None or value >= least)
  return _checked(value, what, kind, good and (most is None or value <= most))


def _checked(value, what, kind, good):
  if not good:
    raise ValueError(f'{what}: expected {kind}, found {shown(value)}')
  return value
