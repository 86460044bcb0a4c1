"""What README.md shows is run."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


def test_the_optax_example_trains(capsys):
  (example,) = re.findall(r'```python\n(.*?)```', README, re.S)
  exec(compile(example, 'README.md', 'exec'), {})
  loss = float(capsys.readouterr().out.removeprefix('loss '))
  # The best rank 4 of that target leaves 22.185 (its other singular values).
  assert abs(loss - 22.185) < 0.05


def test_every_path_it_names_is_there():
  for path in re.findall(r'\b((?:configs|launch|tests)/[\w/.]+\.\w+)', README):
    assert (ROOT / path).exists(), path
