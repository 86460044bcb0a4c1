"""What README.md shows is run."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


# What the best rank 4 leaves: the squares of the other singular values.
@pytest.mark.parametrize(('number', 'least'), [(0, 22.185), (1, 0.385)])
# qwix uses two names that flax has deprecated.
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_the_example_trains(number, least, capsys):
  example = re.findall(r'```python\n(.*?)```', README, re.S)[number]
  exec(compile(example, 'README.md', 'exec'), {})
  loss = float(capsys.readouterr().out.removeprefix('loss '))
  assert abs(loss - least) < 0.01 * least + 0.005


def test_every_path_it_names_is_there():
  for path in re.findall(r'\b((?:configs|launch|tests)/[\w/.]+\.\w+)', README):
    assert (ROOT / path).exists(), path
