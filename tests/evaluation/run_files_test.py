"""Damaged files of a run: read as they were, or named."""

import json
import pathlib

import pytest

from lora_opt.evaluation import history, report
from lora_opt.run_folder import run_files
from tests import fuzzing

SCORE = {'score': 0.5, 'interval': [0.2, 0.8]}
EVALUATION = {
  'step': 3,
  'task': 'say',
  'metric': 'exact_match',
  **SCORE,
  'metrics': {'exact_match': SCORE},
  'loss': 1.5,
  'num_examples': 2,
  'halves': [{'exact_match': 0.0}, {'exact_match': 1.0}],
  'overlap': {'num_examples': 1, 'metrics': {'exact_match': SCORE}},
  'predictions': [
    {'prompt': 'p', 'reference': 'r', 'prediction': 'x', 'score': 0.0}
  ],
  'made_of': {'base weights': '1a'},
}
SPLIT = {'examples': 3, 'bad_rows': 0}
FILES = {
  'evaluation/before.json': (run_files.read_evaluation, EVALUATION),
  'evaluation/after.json': (run_files.read_evaluation, EVALUATION),
  'evaluation/scores/say.json': (run_files.read_evaluation, EVALUATION),
  'run.json': (
    run_files.read_run,
    {'task': 'say', 'steps': 3, 'seconds': 1.5, 'versions': {'jax': '1'}},
  ),
  'dataset.json': (
    run_files.read_data,
    {
      'task': 'say',
      'train': SPLIT,
      'eval': SPLIT,
      'overlap': 1,
      'batches': [{'task': 'say', 'too_long': 1}],
    },
  ),
  'settings.json': (run_files.read_settings, {'SEED': '0', 'MODEL': '@m()'}),
  'diverged.json': (run_files.read_divergence, {'error': 'loss is nan'}),
}
ROWS = [
  {'step': s, 'time': 1.5, 'split': 'train', 'loss': 2.0 / s, 'grad_norm': 1.0}
  for s in (1, 2, 3)
]


def fill(folder: pathlib.Path) -> None:
  for name, (_, value) in FILES.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
  lines = [json.dumps(row) + '\n' for row in ROWS]
  (folder / history.METRICS_FILE).write_text(''.join(lines))


def read_damaged(folder, start, count):
  for seed, rng in fuzzing.seeds(count, start):
    name = rng.choice(sorted(FILES))
    read, value = FILES[name]
    path = folder / f'{seed}.json'
    path.write_bytes(fuzzing.damaged_json(value, rng))
    found = fuzzing.outcome(lambda read=read, path=path: read(path), path)
    if not isinstance(found, Exception):
      # What is accepted is what JSON says, but for fields that are null.
      there = json.loads(path.read_text('utf-8-sig'))
      for key in found.keys() & there.keys():
        assert found[key] == there[key] or there[key] is None, (seed, key)
    path.unlink()


def report_damaged(folder, start, count):
  for seed, rng in fuzzing.seeds(count, start):
    run = folder / str(seed)
    fill(run)
    path = run / rng.choice([*sorted(FILES), history.METRICS_FILE])
    path.write_bytes(fuzzing.damaged(path.read_bytes(), rng))
    assert fuzzing.outcome(lambda run=run: report.write_report(run)), seed


def test_a_damaged_file_is_named(tmp_path):
  read_damaged(tmp_path, 0, 400)


def test_a_report_of_what_is_left(tmp_path):
  report_damaged(tmp_path, 0, 12)


@pytest.mark.long
def test_many_damaged_files_are_named(tmp_path):
  read_damaged(tmp_path, 10_000, 20_000)
  report_damaged(tmp_path, 10_000, 300)


def test_whole_files_are_read(tmp_path):
  fill(tmp_path)
  for name, (read, value) in FILES.items():
    found = read(tmp_path / name)
    assert {key: found[key] for key in value} == value


def test_a_bad_byte_costs_one_line_of_the_metrics(tmp_path):
  fill(tmp_path)
  path = tmp_path / history.METRICS_FILE
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(lines[0] + b'\xff' + lines[1] + lines[2] + b'{"step": 4')
  steps = [row['step'] for row in history.read_metrics(tmp_path)]
  assert steps == [1, 3]
  problem = history.problems(tmp_path)
  assert 'metrics.jsonl line 2' in problem and 'left out' in problem
