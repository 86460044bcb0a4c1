"""The whole-study command, with a stand-in for the Python that would train."""

import json
import os
import re
import shutil
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
  'widen': 1,
  'tasks': {'cola': ['--gin_file=cola.gin'], 'mrpc': ['--gin_file=mrpc.gin']},
  'ranks': [4],
  'seeds': [0, 1],
  'sweep_seeds': 1,
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
  results = f'--results={tmp_path}/kept'
  said = command('--tasks=cola', results, '--', '--gin.DATA_DIR=data')
  # Two rates each; one more each, as the best is at an end; then the best with
  # the other seed.
  assert re.findall(r'\d+ of \d+ runs have ended', said) == [
    *('0 of 12 runs have ended', '4 of 14 runs have ended'),
    '6 of 14 runs have ended',
  ]
  flags = (tmp_path / 'runs/0001/flags.txt').read_text().split()
  assert flags == [
    *('--gin_file=run.gin', '--gin.DATA_DIR=data', '--gin_file=cola.gin'),
    *('--gin_file=configs/adamw.gin', '--gin.LORA_RANK=4'),
    *('--gin.RANDOM_SEED=0', '--gin.PEAK_LEARNING_RATE=0.003'),
  ]
  text = (tmp_path / 'kept/report.html').read_text()
  assert '<h1>Which one?</h1>' in text
  assert 'Recommended: lora_rite.' in text
  # The rest of the study goes on from the results: the runs may be gone.
  shutil.rmtree(tmp_path / 'runs')
  said = command(results, '--', '--gin.DATA_DIR=data')
  assert said.startswith('8 of 14 runs have ended\n')
  lines = (tmp_path / 'kept/results.jsonl').read_text().splitlines()
  assert len(lines) == 16
  said = command(results)
  assert said.splitlines() == [f'report: {tmp_path}/kept/report.html']


def rows_of(runs, score):
  """Rows of runs that scored so: a function of rate and seed."""
  found = {}
  for flags in runs:
    text = ' '.join(flags)
    rate = float(re.search(r'RATE=(\S+)', text)[1])
    seed = int(re.search(r'SEED=(\d)', text)[1])
    row = {'method': 'adamw', 'learning_rate': rate, 'seed': seed}
    row['flags'] = flags
    value = score(rate, seed)
    if value is not None:
      row |= {'metric': 'f1', 'score': value}
    found[flags] = row
  return found


def run_method(score, changes=None):
  """Rates and seeds that adamw is run with, and its last plan."""
  wanted, known = STUDY | (changes or {}), {}
  while True:
    runs = study.plan(wanted, (4, 'cola'), 'adamw', known)
    new = [run for run in runs if run is not None and run not in known]
    if not new:
      assert None not in runs and len(set(runs)) == len(runs)
      return [(r['learning_rate'], r['seed']) for r in known.values()], runs
    known |= rows_of(new, score)


def test_a_sweep_is_made_longer_where_its_best_is_at_an_end():
  # The best is 0.003, the greatest: 0.009 is tried, and is not better.
  pairs, _ = run_method(lambda rate, seed: -abs(rate - 0.003))
  assert pairs == [(0.001, 0), (0.003, 0), (0.009, 0), (0.003, 1)]
  # Downwards, and no further than is said.
  pairs, _ = run_method(lambda rate, seed: -rate)
  assert pairs == [(0.001, 0), (0.003, 0), (0.000333, 0), (0.000333, 1)]
  pairs, _ = run_method(lambda rate, seed: -rate, {'widen': 0})
  assert pairs == [(0.001, 0), (0.003, 0), (0.001, 1)]


def test_a_rate_that_diverges_later_is_left():
  def score(rate, seed):
    return None if (rate, seed) == (0.003, 1) else -abs(rate - 0.003)

  pairs, runs = run_method(score, {'widen': 0})
  assert pairs == [(0.001, 0), (0.003, 0), (0.003, 1), (0.001, 1)]
  assert '--gin.PEAK_LEARNING_RATE=0.001' in runs[-1]


def test_a_method_that_always_diverges_ends():
  pairs, _ = run_method(lambda rate, seed: None)
  assert pairs == [(0.001, 0), (0.003, 0), (0.000333, 0)]


def test_blocks_are_finished_one_after_another():
  first, second = study.ready(STUDY, {})
  assert all('--gin_file=cola.gin' in run for run in first)
  assert all('--gin_file=mrpc.gin' in run for run in second)
  assert study.count_runs(STUDY, {}) == 12


@pytest.mark.parametrize('name', ['glue', 'smollm2'])
def test_the_studies_here_give_every_method_the_same(name):
  found = study.read(ROOT / f'experiments/{name}/study.json')
  runs = [
    run
    for block in study.blocks(found)
    for method in found['methods']
    for run in study.plan(found, block, method, {})
    if run is not None
  ]
  assert len(set(runs)) == len(runs)
  per_method = len(found['factors']) * found['sweep_seeds']
  places = len(found['tasks']) * len(found['ranks'])
  assert len(runs) == per_method * places * len(found['methods'])
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
    ({'factors': [3, 1]}, 'factors must be one or more, ascending'),
    ({'factors': [1]}, 'one factor is not a sweep: widen must be 0'),
    ({'sweep_seeds': 0}, 'sweep_seeds must be 1 to the number of seeds'),
    ({'methods': {'a': {}}}, 'method a must hold flags and rate'),
    ({'more': 1}, 'must hold factors, flags'),
    ({'factors': ['a']}, 'factors: expected a finite number above 0'),
    ({'seeds': 3}, 'seeds: expected a list'),
    ({'flags': ['--a\n--b']}, 'is not a flag on one line'),
    ({'tasks': {'cola': 'x'}}, 'task cola: expected a list'),
    ({'methods': {'a': 3}}, 'method a: expected an object'),
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
