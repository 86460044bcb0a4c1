"""How our docstrings become reStructuredText.

They are written to be read in an editor. Three things need help:

- Equations are indented blocks. They are shown as they stand.
- |x| is a norm, not a substitution; A^T in a sentence becomes Aᵀ.
- Fields of classes are explained by comments, which reach the reference here.
"""

from __future__ import annotations

import inspect
import io
import re
import tokenize
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from sphinx.application import Sphinx

_SECTION = re.compile(
  '(Args|Attributes|Notes?|Raises|Raises at first use|References|Returns|'
  'Yields):$'
)
_PARENTHESES = re.compile(r'^(\w+) \(([\w ]+)\):$')
_POWERS = {'T': 'ᵀ', '-T': '⁻ᵀ', '-1': '⁻¹', '2': '²'}
_FIELD = re.compile(r'  (\w+): \S')


def with_equations(lines: list[str]) -> list[str]:
  """Marks indented blocks between paragraphs as literal.

  >>> print('\\n'.join(with_equations(['Norms |A B^T|:', '', '  y = |x|'])))
  Norms \\|A Bᵀ\\|:
  <BLANKLINE>
  .. code-block:: text
  <BLANKLINE>
    y = |x|
  """
  found, outside, block = [], True, False
  # napoleon takes no parentheses in a heading.
  lines = [_PARENTHESES.sub(r'\1 \2:', line) for line in lines]
  for i, line in enumerate(lines):
    if line and not line.startswith(' '):
      # Below a heading such as Args: indentation has its own meaning.
      outside = not (_SECTION.match(line) or line.startswith(('>>>', '..')))
      block = False
    elif line and outside and not block and i and not lines[i - 1]:
      found += ['.. code-block:: text', '']
      block = True
    if line == 'Returns:':
      line = ':returns:'  # napoleon would take words before a colon for a type
    literal = block or line.lstrip().startswith(('>>>', '...'))
    found.append(line if literal else _prose(line))
  return found


def _prose(line: str) -> str:
  for power, shown in _POWERS.items():
    line = re.sub(rf'(?<=[\w)\]])\^{power}(?![\w.])', shown, line)
  return line.replace('|', r'\|')


def field_comments(source: str) -> dict[str, str]:
  """The comments above and beside the fields of a class.

  >>> field_comments('''class X(NamedTuple):
  ...   # The size,
  ...   # in bytes.
  ...   size: int
  ...   name: str = ''  # what it is called
  ... ''')
  {'size': 'The size, in bytes.', 'name': 'what it is called'}
  """
  comments = {
    token.start[0]: token.string.removeprefix('#').strip()
    for token in tokenize.generate_tokens(io.StringIO(source).readline)
    if token.type == tokenize.COMMENT
  }
  lines, found = source.splitlines(), {}
  for number, line in enumerate(lines, start=1):
    if not (match := _FIELD.match(line)):
      continue
    parts, above = [], number - 1
    while above in comments and lines[above - 1].lstrip().startswith('#'):
      parts.insert(0, comments[above])
      above -= 1
    # A long one stands in parentheses over several lines.
    last = number
    if line.endswith('('):
      while last < len(lines) and lines[last - 1] != '  )':
        last += 1
      last += lines[last - 1 : last] == ['  )'] and last + 1 in comments
    for beside in range(number, last + 1):
      if beside in comments:
        parts.append(comments[beside])
    if parts:
      found[match[1]] = ' '.join(parts)
  return found


def _process(
  app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
  lines[:] = with_equations(lines)
  if what == 'class' and issubclass(obj, tuple) and hasattr(obj, '_fields'):
    comments = field_comments(inspect.getsource(obj))
    if comments:
      lines += ['', 'Attributes:']
      lines += [
        f'  {field}: {_prose(text)}' for field, text in comments.items()
      ]
      lines.append('')


def _skip(
  app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
  # Fields of a NamedTuple are among its attributes already.
  return True if type(obj).__name__ == '_tuplegetter' else None


def setup(app: Sphinx) -> dict[str, bool]:
  """Connects this to Sphinx, in front of napoleon."""
  app.connect('autodoc-skip-member', _skip)
  app.connect('autodoc-process-docstring', _process, priority=100)
  return {'parallel_read_safe': True}
