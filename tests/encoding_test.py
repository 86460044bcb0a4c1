"""All text is UTF-8, in files and pipes: no locale has a say."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
  path
  for folder in ('lora_opt', 'experiments', 'launch', 'tests')
  for path in (ROOT / folder).rglob('*.py')
  if not path.name.endswith('_test.py')
)
# Which argument may be the encoding, where it is not named.
_POSITION = {'read_text': 0, 'write_text': 1}


def without_encoding(source: str) -> list[int]:
  """The lines that read or write text and leave its encoding open."""
  lines = []
  for call in ast.walk(ast.parse(source)):
    if not isinstance(call, ast.Call):
      continue
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    if 'encoding' in named or None in named:
      continue
    name = getattr(call.func, 'attr', getattr(call.func, 'id', ''))
    if name in _POSITION:
      wrong = len(call.args) <= _POSITION[name]
    elif name in ('open', 'fdopen'):
      wrong = _is_of_text(call, named)
    else:
      wrong = any(
        _is_true(named.get(n)) for n in ('text', 'universal_newlines')
      )
    if wrong:
      lines.append(call.lineno)
  return lines


def _is_of_text(call: ast.Call, named: dict[str, ast.expr]) -> bool:
  """Whether a file is opened to read or write text."""
  function = isinstance(call.func, ast.Name) or call.func.attr == 'fdopen'
  place = 1 if function else 0  # a method has the path in front
  mode = named.get('mode', [*call.args, None, None][place])
  if not isinstance(mode, ast.Constant):
    # Without a mode, other things than files have a method of this name too.
    return function
  return bool(re.fullmatch('[rwxat+]+', str(mode.value)))


def _is_true(value: ast.expr | None) -> bool:
  return isinstance(value, ast.Constant) and value.value is True


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_text_is_utf_8_wherever_it_is_read_or_written(path):
  assert not without_encoding(path.read_text(encoding='utf-8'))


@pytest.mark.parametrize(
  'line',
  [
    "open('a')",
    "open('a', 'w')",
    "path.open('a')",
    'path.read_text()',
    'path.write_text(text)',
    'subprocess.run(command, text=True)',
  ],
)
def test_what_leaves_it_open_is_found(line):
  assert without_encoding(line) == [1]


@pytest.mark.parametrize(
  'line',
  [
    "open('a', 'rb')",
    "path.open('a', encoding='utf-8')",
    "path.read_text('utf-8')",
    'tensor.open()',
    "subprocess.run(command, encoding='utf-8')",
  ],
)
def test_what_is_said_is_not_found(line):
  assert not without_encoding(line)
