"""experiments/README.md leads to every experiment, and nowhere else."""

import pathlib
import re

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments'
INDEX = (EXPERIMENTS / 'README.md').read_text(encoding='utf-8')
ROWS = [
  [cell.strip() for cell in line.strip('| ').split(' | ')]
  for line in INDEX.splitlines()
  if line.startswith('| [')
]


def test_every_experiment_and_module_has_a_row():
  there = {
    path.name
    for path in EXPERIMENTS.iterdir()
    if path.suffix == '.py' or (path.is_dir() and any(path.glob('[!_]*.*')))
  }
  listed = [re.match(r'\[([\w.]+)\]', row[0])[1] for row in ROWS]
  assert sorted(listed) == sorted(there), 'see experiments/README.md'


def test_every_row_of_an_experiment_is_whole():
  for row in ROWS:
    if not row[0].startswith('[') or '.py]' in row[0]:
      continue
    question, command, result, minutes = row
    assert question.endswith('?'), question
    assert command.startswith('`'), question
    assert result, question
    assert minutes, question


def test_every_link_and_module_is_there():
  for link in re.findall(r'\]\(([^)#]+)', INDEX):
    assert (EXPERIMENTS / link).exists(), link
  for module in re.findall(r'python -m (experiments[\w.]+)', INDEX):
    path = EXPERIMENTS.parent / module.replace('.', '/')
    assert path.with_suffix('.py').exists(), module
  for file in re.findall(r'(?:experiments|configs)/\w[\w/.]*\.\w+', INDEX):
    if 'NAME' not in file:
      assert (EXPERIMENTS.parent / file).exists(), file
