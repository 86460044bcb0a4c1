"""Commands that the pages show: their files are there, their flags are read."""

import pathlib
import re
import shlex

import pytest

from lora_opt import config
from lora_opt.evaluation import run as evaluation
from lora_opt.planning import ahead, plan
from lora_opt.training import loop

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [
  ROOT / 'README.md',
  *sorted((ROOT / 'docs').glob('*.md')),
  *sorted((ROOT / 'experiments').glob('**/README.md')),
]
BUILT = {
  'train': loop.train,
  'eval': evaluation.score,
  'infer': evaluation.infer,
  'merge': evaluation.merge,
  'plan': plan.plan,
  'compile': ahead.compile_ahead,
}
# What a launcher passes on is a command of its own.
STARTS = re.compile(
  r'python3? -m lora_opt\.main|lora-opt (?P<mode>\w+)|launch/quickstart\.sh|'
  r'launch/(?:train\.sh|processes\.py|slurm\.sh|tpu_pod\.sh|gke\.py)'
)
# $1 and NAME stand for what the reader puts there.
BLANK = r'\$\d|/NAME\b'

pytestmark = pytest.mark.usefixtures('leave_gin_as_it_was')


def commands(page: pathlib.Path) -> list[str]:
  """Each command of the page's blocks in one line."""
  text = page.read_text(encoding='utf-8')
  blocks = re.findall(r'^```(?:bash|sh)?\n(.*?)^```', text, re.S | re.M)
  lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
  return [
    ' '.join(line.split()) for line in lines if not re.search(BLANK, line)
  ]


def runs(page: pathlib.Path) -> list[str]:
  """Those that start a run from gin files."""
  return [
    line
    for line in commands(page)
    if STARTS.search(line)
    and '=report' not in line
    and ('--gin_file' in line or '--gin.' in line)
    and '...' not in line  # not the whole command
  ]


@pytest.mark.parametrize(
  ('page', 'command'),
  [
    pytest.param(page, line, id=f'{page.parent.name}/{page.name}-{number}')
    for page in PAGES
    for number, line in enumerate(runs(page))
  ],
)
def test_its_configuration_is_read(page, command):
  words = shlex.split(command, comments=True)
  mode = re.search(r'--run_mode=(\w+)', command) or STARTS.search(command)
  mode = mode[1] or 'train'
  files, bindings = [], []
  for word in words:
    name, _, value = word.partition('=')
    if name == '--gin_file':
      files.append(value)
    elif name.startswith('--gin.'):
      bindings.append(word.removeprefix('--gin.'))
  if 'quickstart' in command.split('--')[0] or mode == 'quickstart':
    files, mode = ['configs/runs/quickstart.gin', *files], 'train'
  config.load(files, bindings, called=[BUILT[mode]])


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.parent.name))
def test_the_files_it_runs_are_there(page):
  for line in commands(page):
    for name in re.findall(
      r'(?:^|[ =])((?:configs|launch|tests)/[\w./]+)', line
    ):
      assert (ROOT / name).exists(), (page.name, line)
    for module in re.findall(
      r'-m ((?:lora_opt|experiments|tests)[\w.]*)', line
    ):
      path = ROOT / module.replace('.', '/')
      there = (
        path.with_suffix('.py').exists() or (path / '__main__.py').exists()
      )
      assert there, (page.name, line)
