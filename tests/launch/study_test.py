"""The whole-study command, with a stand-in for the Python that would train."""

import itertools
import json
import os
import re
import subprocess
import sys

import pytest

from experiments import study
from tests.launch.launcher import ROOT, fake_python

STUDY = {
  'title': 'Which one?',
  'flags': ['--gin_file=run.gin'],
  'methods': {
    'adamw': {'flags': ['--gin_file=configs/adamw.gin'], 'rate': 1e-3},
    'lora_rite': {'flags': ['--gin_file=configs/lora_rite.gin'], 'rate': 1e-2},
  },
  'factors': [1, 3],
  'tasks': {'cola': ['--gin_file=cola.gin'], 'mrpc': ['--gin_file=mrpc.gin']},
  'ranks': [4],
  'seeds': [0, 1],
  'order': ['rank', 'seed', 'task'],
}
# Writes what a training leaves, of the flags it is given.
TRAIN = r"""
import json, os, pathlib, re, sys
flags = ' '.join(sys.argv)
folder = pathlib.Path(os.environ['MODEL_DIR'])
(folder / 'evaluation').mkdir(parents=True, exist_ok=True)
method = re.findall(r'configs/(\w+).gin', flags)[0]
task = re.findall(r'gin_file=(\w+).gin', flags)[-1]
settings = {'OPTIMIZER': f'@lora_opt.{method}()'}
settings |= dict(re.findall(r'--gin\.([A-Z_]+)=(\S+)', flags))
run = {'model': 'tiny', 'task': task, 'seconds': 1.0, 'peak_memory_bytes': 1,
       'versions': {}}
score = {'adamw': 0.5, 'lora_rite': 0.7}[method]
score += 0.01 * int(settings['RANDOM_SEED'])
after = {'metric': 'f1', 'score': score, 'num_examples': 9, 'loss': 1.0}
line = {'step': 1, 'split': 'train', 'loss': 1.0}
for name, value in (('settings.json', settings), ('metrics.jsonl', line),
                    ('evaluation/after.json', after), ('run.json', run)):
  (folder / name).write_text(json.dumps(value) + '\n')
"""


@pytest.fixture
def command(tmp_path):
  (tmp_path / 'train.py').write_text(TRAIN)
  python = fake_python(
    tmp_path, f'exec {sys.executable} -I {tmp_path}/train.py "$@"'
  )
  (tmp_path / 'study.json').write_text(json.dumps(STUDY))

  def run(*flags):
    done = subprocess.run(
      [sys.executable, '-m', 'experiments.study', tmp_path / 'study.json',
       tmp_path / 'runs', *flags],
      env=os.environ | {'PYTHON': python},
      cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

  return run


def test_it_plans_runs_resumes_and_reports(command, tmp_path):
  said = command('--tasks=cola', '--', '--gin.DATA_DIR=data')
  assert '8 of 8 runs are finished' in said
  flags = (tmp_path / 'runs/0001/flags.txt').read_text().split()
  assert flags == [
    *('--gin_file=run.gin', '--gin.DATA_DIR=data', '--gin_file=cola.gin'),
    *('--gin_file=configs/lora_rite.gin', '--gin.LORA_RANK=4'),
    *('--gin.RANDOM_SEED=0', '--gin.PEAK_LEARNING_RATE=0.01'),
  ]
  text = (tmp_path / 'runs/report.html').read_text()
  assert '<h1>Which one?</h1>' in text
  assert 'Recommended: lora_rite.' in text
  # The rest of the study goes on from there, and leaves its results apart.
  said = command(f'--results={tmp_path}/kept', '--', '--gin.DATA_DIR=data')
  assert said.startswith('8 of 16 runs are finished')
  assert '16 of 16 runs are finished' in said
  lines = (tmp_path / 'kept/results.jsonl').read_text().splitlines()
  assert len(lines) == 16
  assert (tmp_path / 'kept/report.html').exists()


def test_whole_blocks_come_first():
  flags = [' '.join(run) for run in study.plan(STUDY)]
  places = [
    (re.search(r'SEED=(\d)', f)[1], re.search(r'(\w+)\.gin', f)[1])
    for f in flags
  ]
  blocks = [place for place, _ in itertools.groupby(places)]
  assert blocks == [('0', 'cola'), ('0', 'mrpc'), ('1', 'cola'), ('1', 'mrpc')]
  # Within a block: every method at one factor before the next one.
  rates = [re.search(r'RATE=(\S+)', f)[1] for f in flags[:4]]
  assert rates == ['0.001', '0.01', '0.003', '0.03']


def test_a_method_may_have_more_rates():
  longer = STUDY['methods'] | {
    'adamw': STUDY['methods']['adamw'] | {'more': [10]}
  }
  flags = [' '.join(run) for run in study.plan(STUDY | {'methods': longer})]
  rates = [re.search(r'RATE=(\S+)', f)[1] for f in flags[:6]]
  assert rates == ['0.001', '0.01', '0.003', '0.03', '0.01', '0.001']


@pytest.mark.parametrize('name', ['glue', 'smollm2'])
def test_the_studies_here_give_every_method_the_same(name):
  found = study.read(ROOT / f'experiments/{name}/study.json')
  runs = list(study.plan(found))
  assert len({tuple(run) for run in runs}) == len(runs)
  per_method = len(found['factors']) * len(found['tasks'])
  per_method *= len(found['ranks']) * len(found['seeds'])
  assert len(runs) == per_method * len(found['methods'])
  assert len(found['seeds']) >= 3
  files = {
    flag.removeprefix('--gin_file=')
    for run in [found['flags'], *runs]
    for flag in run
    if flag.startswith('--gin_file=')
  }
  assert all((ROOT / file).exists() for file in files)


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'order': ['rank']}, 'order must hold rank, seed, task'),
    ({'methods': {'a': {}}}, 'method a must hold flags and rate'),
    ({'more': 1}, 'must hold factors, flags'),
  ],
)
def test_a_bad_study_is_named(tmp_path, change, said):
  path = tmp_path / 'study.json'
  path.write_text(json.dumps(STUDY | change))
  with pytest.raises(ValueError, match=said):
    study.read(path)


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match='no such tasks: wnli'):
    study.only(STUDY, 'tasks', 'cola,wnli')
