"""What a hostile model could write, or honest text with a nasty form.

Nothing that reads the text of a model may execute it, take more than a second,
print, or end the process.
"""

import contextlib
import io
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

SECONDS = 1.0
_LARGE = 10_000_000


def payloads(marker: pathlib.Path) -> list[str]:
  """Texts; those that are executed write the file `marker`."""
  command = f'touch {marker}'
  write = f"__import__('pathlib').Path({str(marker)!r}).touch()"
  return [
    f'__import__("os").system("{command}")',
    write,
    f'[{write}]',
    f'[[{write}]]',
    f'({write}, 1)',
    f'2*x + {write}',
    f'4 * 6 + {write}',
    f'{{"a": {write}}}',
    f'eval({write!r})',
    f'sympify({write!r})',
    f'`{command}`',
    f'$({command})',
    f'!!python/object/apply:os.system ["{command}"]',
    f"cos\nsystem\n(S'{command}'\ntR.",
    '{{ cycler.__init__.__globals__.os.system("' + command + '") }}',
    "().__class__.__base__.__subclasses__()[0]('x')",
    '[c for c in ().__class__.__base__.__subclasses__()]',
    'x.__class__.__mro__[1].__subclasses__()',
    'f"{().__class__}"',
    'lambda: 0',
    'exit()',
    'quit(0)',
    'raise SystemExit',
    "print('written to stdout')",
    '9**9**9',
    '9**9**9**9',
    '(9**9)**(9**9)',
    '2**99999999',
    '-(-9)**9**9*x',
    'x**999999999',
    '(x + y + z + 1)**99999',
    '*'.join(['(x + y + 1)'] * 150),
    'factorial(99999)',
    '99999!!!!',
    "'a'*10**10",
    '[0]*10**10',
    '[[0]*9999]*9999',
    'range(10**10)',
    '1/0',
    '1/0/0',
    '0**-1',
    '1e999999999',
    '-1e999999999999',
    '1e-999999999/3',
    '1e9_9_9_9_9_9_9_9_9',
    '1e' + '\uff19' * 9,
    '1e000' + '\u0669' * 9,
    '1E+99999999999999999999',
    '0x' + 'f' * 5000,
    '9' * 4000,
    '9' * 5000,
    '9' * 5000 + '/' + '7' * 5000,
    '9' * 100_000,
    '\xd7'.join(['9' * 900] * 10),
    'integrate(exp(x**x)*sin(exp(x)), x)',
    'Integral(1/(x**99 + x + 1), (x, 0, oo))',
    'simplify(' * 50 + 'x' + ')' * 50,
    'sin(' * 500 + 'x' + ')' * 500,
    'solve(x**9 + x + 1)',
    '(' * 5000 + ')' * 5000,
    '[' * 9000,
    '[' * 5000 + ']' * 5000,
    '{"a":' * 1500 + '1' + '}' * 1500,
    '-' * 9000,
    '-' * 9000 + '1',
    '¬' * 9000 + 'P',
    '+'.join(['1'] * 4000),
    '**'.join(['2'] * 1000),
    ' \N{LOGICAL OR} '.join(f'v{i}' for i in range(60)),
    ' → '.join(['P'] * 2000),
    'F99999999999 ' * 20,
    'R9999 ' * 1000,
    'A+999999999999 B-99999999999',
    'UDLR' * 2500,
    'fill A, empty A, ' * 500,
    '[' + ', '.join(['"fill A"'] * 900) + ']',
    '[{"Agent[0.5, 0.5]": "' + 'move(' + ', ' * 4000 + '"}]',
    '[{"Agent[0.5, 0.5]": "' + 'move(' + ', ' * 1900 + '"}]',
    'Move disk 1 from Peg 1 to Peg 99\n' * 200,
    'Move disk é from Peg 1 to Peg 2',
    '[' + ','.join(['NaN'] * 10) + ']',
    '["nan", "inf", "-inf"]',
    'nan',
    'NaN',
    'inf',
    '-Infinity',
    'sNaN',
    'n a n + n a n i',
    '1_0',
    '\uff11\uff12',
    '٣',
    'a' * 30 + '!',
    ' ' * 9000 + 'x',
    '\n' * 9000,
    ',' * 9000,
    '1,' * 4500,
    '1.' * 4500,
    '1e' * 4500,
    '1/' * 4500,
    'y' * 5000,
    '\\frac{' * 1500,
    '#### ' * 1800,
    '####' * 2000 + '-',
    '\x00',
    'a\x00b',
    '\ud800',
    'a\udfff 5',
    '\x1b[2J\x1b]0;owned\x07',
    '\u202e5',
    '\u2028',
    'é' * 4000,
    '🙂' * 2000,
    '',
    ' ',
    "'",
    '"',
    '\\',
    '()',
    '[]',
    '{}',
    'None',
    'x' * _LARGE,
    '9' * _LARGE,
    '9 ' * (_LARGE // 2),
    '(' * _LARGE,
    '#### ' * (_LARGE // 5),
    '1,' * (_LARGE // 2),
  ]


@contextlib.contextmanager
def harmless(text: Any, marker: pathlib.Path) -> Iterator[None]:
  """What happens inside must be quick, silent, and not execute the text.

  Raises:
    AssertionError: It is not.
  """
  shown = repr(text[:60] if isinstance(text, str) else text)
  out, start = io.StringIO(), time.process_time()
  try:
    with contextlib.redirect_stdout(out):
      yield
  except (SystemExit, RecursionError, MemoryError) as error:
    raise AssertionError(f'{shown}: {type(error).__name__}') from error
  seconds = time.process_time() - start
  assert not marker.exists(), f'{shown} was executed'
  assert seconds < SECONDS, f'{shown}: took {seconds:.1f} s'
  assert not out.getvalue(), f'{shown}: printed {out.getvalue()[:60]!r}'


def judged(
  judge: Callable[[str], Any], marker: pathlib.Path
) -> Iterator[tuple[str, Any]]:
  """Each payload, and what is made of it, harmlessly."""
  for text in payloads(marker):
    with harmless(text, marker):
      found = judge(text)
    yield text, found
