"""What README.md and the guide for other trainers show is run."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')
TRAINER = (ROOT / 'docs/your_trainer.md').read_text(encoding='utf-8')


# What the best rank 4 leaves: the squares of the other singular values.
@pytest.mark.parametrize(
  ('page', 'number', 'least'),
  [(README, 0, 22.185), (TRAINER, 0, 22.185), (TRAINER, 1, 0.385)],
  ids=['README', 'optax', 'nnx'],
)
# qwix uses two names that flax has deprecated.
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_the_example_trains(page, number, least, capsys):
  example = re.findall(r'```python\n(.*?)```', page, re.S)[number]
  exec(compile(example, 'example', 'exec'), {})
  loss = float(capsys.readouterr().out.removeprefix('loss '))
  assert abs(loss - least) < 0.01 * least + 0.005


def test_every_path_it_names_is_there():
  for path in re.findall(r'\b((?:configs|launch|tests)/[\w/.]+\.\w+)', README):
    assert (ROOT / path).exists(), path


def test_it_is_short():
  assert len(README.splitlines()) < 150
