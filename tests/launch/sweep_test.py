"""Sweeps: numbers, what is skipped, what goes on."""

import json
import re
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


def test_truth_values_are_written_as_gin_reads_them(tmp_path):
  grid = write(tmp_path, GRID | {'grid': {'gin.A': [False, None, [True]]}})
  said = output('sweep.py', grid, str(tmp_path / 'sweep'), '--dry_run')
  flags = re.findall(r"--gin\.A=[^'\n]*", said)
  assert flags == ['--gin.A=False', '--gin.A=None', '--gin.A=[True]']


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
  # In the order of the grid, in which the new value comes first.
  assert [line.split()[0] for line in said[1:]] == [
    *(f'MODEL_DIR={folder}/0004', '#'),
    *(f'MODEL_DIR={folder}/0005', '#'),
  ]
  assert said[1].endswith('--gin_file=a.gin --gin.RANDOM_SEED=7')


def test_runs_may_be_listed_in_an_order_of_their_own(tmp_path):
  folder = tmp_path / 'sweep'
  runs = [['--gin.A=2', '--gin.B=1'], ['--gin.A=1']]
  grid = write(tmp_path, {'flags': ['--gin.C=3'], 'runs': runs})
  python = fake_python(tmp_path, 'touch "$MODEL_DIR/run.json"')
  said = output('sweep.py', grid, str(folder), PYTHON=python)
  assert f'[1/2] {folder}/0000: --gin.A=2 --gin.B=1' in said
  assert json.loads((folder / 'runs.json').read_text()) == runs
  grid = write(tmp_path, {'flags': ['--gin.C=3'], 'runs': runs[::-1]})
  said = output('sweep.py', grid, str(folder), '--dry_run').splitlines()
  assert said[1:] == [
    f'# {folder}/0001 is finished',
    f'# {folder}/0000 is finished',
  ]


def test_a_run_that_diverged_is_not_tried_again(tmp_path, grid):
  folder = tmp_path / 'sweep'
  python = fake_python(
    tmp_path,
    'echo x >> "$MODEL_DIR/started"\n'
    'case "$*" in *SEED=1) touch "$MODEL_DIR/diverged.json"; exit 1 ;; esac\n'
    'touch "$MODEL_DIR/run.json"',
  )
  said = output('sweep.py', grid, str(folder), PYTHON=python)
  assert f'[2/4] {folder}/0001: diverged' in said
  assert '4 of 4 runs are finished' in said
  output('sweep.py', grid, str(folder), PYTHON=python)
  assert (folder / '0001/started').read_text().count('x') == 1


def test_it_stops_when_the_time_is_over_and_goes_on(tmp_path, grid):
  folder = tmp_path / 'sweep'
  python = fake_python(tmp_path, FOREVER, 'touch "$MODEL_DIR/saved"; exit 0')
  said = output('sweep.py', grid, str(folder), '--hours=0.0003', PYTHON=python)
  assert f'{folder}/0000: stopped, goes on from its checkpoint' in said
  assert said.splitlines()[-1] == 'stopped; the same command goes on'
  assert not (folder / '0001/arguments.txt').exists()
  python = fake_python(tmp_path, 'touch "$MODEL_DIR/run.json"')
  said = output('sweep.py', grid, str(folder), PYTHON=python)
  assert '4 of 4 runs are finished' in said


def test_several_run_at_once(tmp_path, grid):
  folder = tmp_path / 'sweep'
  # Each waits until another one has begun too.
  python = fake_python(
    tmp_path,
    f'touch {tmp_path}/begun.$(basename "$MODEL_DIR")\n'
    f'for _ in {{1..200}}; do\n'
    f'  [ "$(ls {tmp_path}/begun.* | wc -l)" -ge 2 ] && break; sleep 0.05\n'
    'done\n'
    'touch "$MODEL_DIR/run.json"',
  )
  said = output('sweep.py', grid, str(folder), '--jobs=2', PYTHON=python)
  lines = said.splitlines()
  assert [line.split(':')[0] for line in lines[1:3]] == [
    f'[1/4] {folder}/0000',
    f'[2/4] {folder}/0001',
  ]
  assert lines[-1] == '4 of 4 runs are finished'


@pytest.mark.parametrize(
  ('bad', 'said'),
  [
    ({'grid': {}}, 'must be {"flags"'),
    ({'flags': [], 'grid': {'gin.A': 1}}, 'gin.A must be a list'),
    ({'flags': [], 'runs': ['--a']}, 'runs must be a list of lists'),
    ({'flags': [], 'runs': [['-a'], ['-a']]}, 'names the same run twice'),
    ({'flags': [], 'runs': [[1]]}, 'run 0: 1 is not a flag'),
    ({'flags': [], 'runs': [[{'a': 1}]]}, "{'a': 1} is not a flag"),
    ({'flags': 'a', 'grid': {}}, 'flags must be a list'),
    ({'flags': [3], 'grid': {}}, '3 is not a flag'),
    ({'flags': [], 'grid': {'gin.A': ['x\n--gin.B=2']}}, 'on one line'),
    ({'flags': ['--a\x1b[2J'], 'grid': {}}, r"'--a\x1b[2J' is not a flag"),
    ({'flags': [], 'grid': {'gin.A': [1, 1]}}, 'the same run twice: --gin.A=1'),
    ({'flags': [], 'grid': {'gin.A': [1, '1']}}, 'the same run twice'),
    ({'flags': [], 'grid': {'gin A': [1]}}, "'gin A' is not the name of a"),
    ({'flags': [], 'grid': {'gin.A': [float('nan')]}}, 'NaN is not a number'),
    ({'flags': [], 'grid': {x: [*range(99)] for x in 'abc'}}, '970,299 runs'),
  ],
)
def test_a_bad_grid_is_named(tmp_path, bad, said):
  run = launch('sweep.py', write(tmp_path, bad), str(tmp_path / 'sweep'))
  assert run.returncode == 2
  assert said in run.stderr


@pytest.mark.parametrize(
  'text', ['{"flags": [], "flags": []}', '[' * 100_000, '{', '\xff', '1e999']
)
def test_a_damaged_grid_is_named(tmp_path, text):
  grid = tmp_path / 'grid.json'
  grid.write_text(text, encoding='latin-1')
  run = launch('sweep.py', str(grid), str(tmp_path / 'sweep'))
  assert run.returncode == 2
  assert str(grid) in run.stderr
  assert 'Traceback' not in run.stderr


@pytest.mark.parametrize('text', ['{', '{}', '[1]', '[["-a", 3]]'])
def test_damaged_numbers_of_runs_are_named(tmp_path, grid, text):
  (tmp_path / 'sweep').mkdir()
  (tmp_path / 'sweep/runs.json').write_text(text, encoding='utf-8')
  run = launch('sweep.py', grid, str(tmp_path / 'sweep'))
  assert run.returncode == 2
  assert 'runs.json' in run.stderr
  assert 'Traceback' not in run.stderr


@pytest.mark.parametrize('flag', ['--jobs=0', '--jobs=x', '--hours=nan'])
def test_numbers_are_checked(tmp_path, grid, flag):
  run = launch('sweep.py', grid, str(tmp_path / 'sweep'), flag)
  assert run.returncode == 2
  assert 'expected a' in run.stderr


def test_two_sweeps_of_one_folder_do_not_run_at_once(tmp_path, grid):
  folder = tmp_path / 'sweep'
  python = fake_python(tmp_path, FOREVER, 'exit 0')
  first = launch('sweep.py', grid, str(folder), PYTHON=python, wait=False)
  wait_for(folder / '0000/arguments.txt')
  second = launch('sweep.py', grid, str(folder), PYTHON=python)
  assert second.returncode == 2
  assert f'another sweep is under way, process {first.pid} on' in second.stderr
  first.kill()  # even so, the folder is free again
  first.wait()
  python = fake_python(tmp_path, 'touch "$MODEL_DIR/run.json"')
  said = output('sweep.py', grid, str(folder), PYTHON=python)
  assert '4 of 4 runs are finished' in said


def test_no_link_is_followed(tmp_path, grid):
  folder = tmp_path / 'sweep'
  (folder / '0000').mkdir(parents=True)
  precious = tmp_path / 'precious'
  precious.write_text('[]', encoding='utf-8')
  for name in ('runs.json', 'runs.json.part', '0000/flags.txt'):
    (folder / name).symlink_to(precious)
  (folder / '0001').symlink_to(tmp_path)
  run = launch('sweep.py', grid, str(folder))
  assert run.returncode == 2
  assert f'{folder}/0001 is a link' in run.stderr
  assert precious.read_text(encoding='utf-8') == '[]'
  assert not (tmp_path / 'flags.txt').exists()


def test_names_may_be_anything(tmp_path, grid):
  folder = tmp_path / "a b'$(touch x)é -c"
  python = fake_python(tmp_path, 'touch "$MODEL_DIR/run.json"')
  said = output('sweep.py', grid, str(folder), PYTHON=python)
  assert '4 of 4 runs are finished' in said
  arguments = (folder / '0000/arguments.txt').read_text(encoding='utf-8')
  quoted = str(folder / '0000').replace("'", "\\'")
  assert f"--gin.MODEL_DIR='{quoted}'" in arguments.splitlines()
