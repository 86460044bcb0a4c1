"""Finds gin files, bounds their size, and locates every mistake in them.

A gin file is a program: whatever it imports and calls is executed. This module
only makes sure that a damaged or faulty file ends in one message with the file
and line, and neither hangs nor fills the memory.
"""

import contextlib
import io
import math
import pathlib
import re
import tokenize
from collections.abc import Iterator, Sequence

from lora_opt.reading.files import read_text
from lora_opt.reading.values import shown

# The largest file in configs/ has 4 kB; gin parses 512 kB in some seconds.
MOST_BYTES = 2**19
# Maximum nesting of lists, dicts and parentheses.
DEPTH = 50
# Maximum number of gin files in a configuration, and depth of their includes.
FILES = 500
LEVELS = 50


class ConfigError(ValueError):
  """A mistake in a configuration file or in a --gin flag."""


class Sources:
  """Opens gin files for gin, which asks for them by name as it reaches them."""

  def __init__(self, folders: Sequence[str]):
    """Sets the folders to search, in order; '' is the working directory."""
    self.folders = folders
    self._open: list[pathlib.Path] = []
    self._texts: list[tuple[pathlib.Path, str]] = []

  def find(self, name: str) -> None:
    """Raises ConfigError, naming the folders, if none of them has the file."""
    if not any((pathlib.Path(f) / name).is_file() for f in self.folders):
      raise ConfigError(self.missing(name))

  def missing(self, name: str) -> str:
    """The error message for a file that is in none of the folders."""
    places = ', '.join(
      folder or 'the working directory' for folder in self.folders
    )
    return f'no gin file {shown(name)} in {places}'

  def place(self, name: str) -> str:
    """The file and line where a macro or an argument was set last.

    Args:
      name: Such as SEED, or lora_opt.training.loop.train.seed. Files may write
        only the end of such a name.
    """
    for file, text in reversed(self._texts):
      if line := _line_of(name, text):
        return f'{file}, line {line}'
    return 'the configuration'

  @contextlib.contextmanager
  def open(self, path: str) -> Iterator[io.StringIO]:
    """Opens a file for gin's parser; errors inside get its name and line.

    Raises:
      ConfigError: The file cannot be read, is damaged, or includes itself; or
        gin reported an error in it.
    """
    file = pathlib.Path(path)
    self._enter(file)
    try:
      text = _text_of(file)
      self._texts.append((file, text))
      lines = _Lines(text, str(file))
      yield lines
    except ConfigError:
      raise  # it names its file and line already
    except Exception as error:
      raise ConfigError(placed(error, str(file), lines.read_so_far)) from error
    finally:
      self._open.pop()

  def _enter(self, file: pathlib.Path) -> None:
    if len(self._texts) >= FILES:
      raise ConfigError(f'{file}: more than {FILES} gin files are included')
    same = any(file.samefile(other) for other in self._open)
    if same or len(self._open) >= LEVELS:
      way = ' includes '.join(map(str, [*self._open[-3:], file]))
      how = 'itself' if same else f'others more than {LEVELS} deep'
      raise ConfigError(f'{file} includes {how}: {way}')
    self._open.append(file)


def _line_of(name: str, text: str) -> int | None:
  """The last line that sets `name`, on its own or inside a block.

  >>> _line_of('mod.f.x', 'mod.f.y = 1\\nf:\\n  x = 2\\nx = 3\\n')
  3
  """
  function, _, last = name.rpartition('.')
  function = re.escape(function.rpartition('.')[2].rpartition('/')[2])
  alone = rf'[\w./]*\b{function}\.{last}\s*=' if function else rf'{last}\s*='
  found, inside = None, False
  for number, line in enumerate(text.split('\n'), start=1):
    if inside and re.match(rf'\s+{last}\s*=', line):
      found = number
    elif line.strip() and line[0] not in ' \t#':
      inside = bool(function and re.match(rf'[\w./]*\b{function}\s*:', line))
      found = number if re.match(alone, line) else found
  return found


class _Lines(io.StringIO):
  """A text stream that counts the lines read so far."""

  def __init__(self, text: str, name: str):
    super().__init__(text)
    self.name = name
    self.read_so_far = 0

  def readline(self, *args) -> str:
    self.read_so_far += 1
    return super().readline(*args)


def _text_of(file: pathlib.Path) -> str:
  try:
    text = read_text(file, most=MOST_BYTES)
  except (OSError, ValueError) as error:
    raise ConfigError(str(error)) from error
  check(text, str(file))
  return text


def check(text: str, place: str) -> int:
  """Rejects text that gin would misread or could not parse.

  Args:
    text: The text of a file or a binding.
    place: Where the text comes from, for the message.

  Returns:
    The number of statements and block headings.

  Raises:
    ConfigError: The text is nested too deep, contains a number beyond the range
      of float64, or cannot be split into Python tokens.
  """
  depth = statements = 0
  try:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
      here = f'{place}, line {token.start[0]}'
      if token.string in ('(', '[', '{'):
        depth += 1
      elif token.string in (')', ']', '}'):
        depth -= 1
      elif token.type == tokenize.NUMBER and _is_infinite(token.string):
        raise ConfigError(f'{here}: {shown(token.string)} is too large')
      elif token.type == tokenize.NEWLINE:
        statements += 1
      if depth > DEPTH:
        raise ConfigError(f'{here}: brackets nested more than {DEPTH} deep')
  except ConfigError:
    raise
  # Python's errors for damaged text differ between its versions.
  except Exception as error:
    raise ConfigError(placed(error, place, text.count('\n') + 1)) from error
  return statements


def _is_infinite(number: str) -> bool:
  try:
    return math.isinf(float(number.replace('_', '')))
  except ValueError:  # 0x10, 1j
    return False


def placed(error: Exception, place: str, line: int) -> str:
  """One message that says what went wrong, in which file and line.

  Args:
    error: From Python's or gin's parser, or from a module that a file imports.
    place: The file.
    line: The line the parser has reached, for errors that name none.

  >>> placed(SyntaxError('no value', ('/x/a.gin', 3, 1, 'A =')), 'a.gin', 9)
  'a.gin, line 3: no value'
  """
  text = str(error)
  if isinstance(error, SyntaxError):
    text, line = str(error.msg), error.lineno or line
  elif isinstance(error, tokenize.TokenError):
    text, (line, _) = error.args
  elif isinstance(error, RecursionError):
    text = 'nested too deep'
  elif found := re.search(r'\n  In [^\n]* line (\d+)\n', text):
    text, line = text[: found.start()], int(found[1])
  if isinstance(error, KeyError | AssertionError | MemoryError) or not text:
    text = f'{type(error).__name__} {text}'
  return f'{place}, line {line}: {brief(text)}'


def macros_in(value: str) -> list[str]:
  """The names of the macros in the text of a value.

  >>> macros_in("[%A, @f(), '100%B', %scope/C]")
  ['A', 'scope/C']
  """
  found = re.findall(
    r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|%([\w./]+)""", value
  )
  return [name for name in found if name]


def brief(text: str) -> str:
  """Shortens a message and escapes what is not printable in it.

  It may quote a damaged file.

  >>> brief('no \\x1b[2J')
  'no \\\\x1b[2J'
  """
  text = text.strip()
  text = text if len(text) <= 1000 else text[:1000] + '...'
  return ''.join(
    c if c.isprintable() or c == '\n' else f'\\x{ord(c):02x}' for c in text
  )
