"""Sweeps: numbers, what is skipped, what goes on."""

import json
import signal

import pytest

from tests.launch.launcher import (
  FOREVER,
  LAUNCH,
  fake_python,
  launch,
  output,
  wait_for,
)

GRID = {
  'flags': ['--gin_file=configs/runs/finetune.gin'],
  'grid': {'gin_file': ['a.gin', 'b.gin'], 'gin.RANDOM_SEED': [0, 1]},
}


@pytest.fixture
def grid(tmp_path):
  return write(tmp_path, GRID)


def write(folder, grid):
  path = folder / 'grid.json'
  path.write_text(json.dumps(grid))
  return str(path)


def finish(folder, number):
  run = folder / f'{number:04d}'
  run.mkdir(parents=True, exist_ok=True)
  (run / 'run.json').write_text('{}')


def test_dry_run_lists_every_run(tmp_path, grid):
  folder = tmp_path / 'sweep'
  finish(folder, 1)
  command = (
    f'MODEL_DIR={folder}/000{{}} bash {LAUNCH}/train.sh -- '
    '--gin_file=configs/runs/finetune.gin --gin_file={}.gin '
    '--gin.RANDOM_SEED={}'
  )
  assert output('sweep.py', grid, str(folder), '--dry_run').splitlines() == [
    '1 of 4 runs are finished',
    command.format(0, 'a', 0),
    f'# {folder}/0001 is finished',
    command.format(2, 'b', 0),
    command.format(3, 'b', 1),
  ]
  assert not (folder / 'runs.json').exists()


def test_slurm_gets_what_is_not_finished(tmp_path, grid):
  folder = tmp_path / 'sweep'
  finish(folder, 1)
  said = output(
    *('sweep.py', grid, str(folder), '--slurm', '--dry_run'),
    *('--', '--gpus-per-node=1'),
  )
  assert said.splitlines()[-1] == (
    f'env SWEEP={folder} bash {LAUNCH}/slurm.sh --array=0,2-3 '
    '--gpus-per-node=1 --'
  )


def test_finished_runs_are_skipped_and_failed_ones_tried_again(tmp_path, grid):
  folder = tmp_path / 'sweep'
  # Fails with the second seed, until told otherwise.
  python = fake_python(
    tmp_path,
    'echo x >> "$MODEL_DIR/started"\n'
    f'case "$*" in *SEED=1) [ -e {tmp_path}/mended ] || exit 3 ;; esac\n'
    'touch "$MODEL_DIR/run.json"',
  )
  run = launch('sweep.py', grid, str(folder), PYTHON=python)
  assert run.returncode == 1
  assert f'[2/4] {folder}/0001: ended with 3' in run.stdout
  assert '2 of 4 runs are finished' in run.stdout
  (tmp_path / 'mended').touch()
  said = output('sweep.py', grid, str(folder), PYTHON=python)
  assert said.startswith('2 of 4 runs are finished')
  assert '4 of 4 runs are finished' in said
  starts = [
    (folder / f'{i:04d}/started').read_text().count('x') for i in range(4)
  ]
  assert starts == [1, 2, 1, 2]
  assert (folder / '0003/flags.txt').read_text().splitlines() == [
    '--gin_file=configs/runs/finetune.gin',
    '--gin_file=b.gin',
    '--gin.RANDOM_SEED=1',
  ]


def test_sigterm_reaches_the_run_and_ends_the_sweep(tmp_path, grid):
  folder = tmp_path / 'sweep'
  python = fake_python(tmp_path, FOREVER, 'touch "$MODEL_DIR/saved"; exit 0')
  sweep = launch('sweep.py', grid, str(folder), PYTHON=python, wait=False)
  wait_for(folder / '0000/arguments.txt')
  sweep.send_signal(signal.SIGTERM)
  assert sweep.wait(10) == 130
  assert (folder / '0000/saved').exists()
  assert not (folder / '0001/arguments.txt').exists()


def test_a_combination_keeps_its_number(tmp_path, grid):
  folder = tmp_path / 'sweep'
  python = fake_python(tmp_path, 'touch "$MODEL_DIR/run.json"')
  output('sweep.py', grid, str(folder), PYTHON=python)
  larger = GRID | {
    'grid': {'gin_file': ['a.gin', 'b.gin'], 'gin.RANDOM_SEED': [7, 1]}
  }
  said = output(
    'sweep.py', write(tmp_path, larger), str(folder), '--dry_run'
  ).splitlines()
  assert [line.split()[0] for line in said[1:]] == [
    *('#', '#'),
    f'MODEL_DIR={folder}/0004',
    f'MODEL_DIR={folder}/0005',
  ]
  assert said[3].endswith('--gin_file=a.gin --gin.RANDOM_SEED=7')


@pytest.mark.parametrize(
  ('bad', 'said'),
  [
    ({'grid': {}}, 'must be {"flags"'),
    ({'flags': [], 'grid': {'gin.A': 1}}, 'gin.A must be a list'),
  ],
)
def test_a_bad_grid_is_named(tmp_path, bad, said):
  run = launch('sweep.py', write(tmp_path, bad), str(tmp_path / 'sweep'))
  assert run.returncode == 2
  assert said in run.stderr
