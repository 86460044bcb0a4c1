"""What is tried on a GPU: the commands, what is missing, what is written."""

import itertools
import json
import re
import shlex
import sys

import pytest

from tests.launch.launcher import ROOT, launch, output

NAMES = (
  *('quickstart', 'optimizer_step', 'golden_lapack', 'golden_products'),
  *('accuracy', 'plans'),
)


def smi(folder, body):
  """A PATH on which nvidia-smi is this shell script."""
  program = folder / 'nvidia-smi'
  program.write_text(f'#!/bin/sh\n{body}\n', encoding='utf-8')
  program.chmod(0o755)
  return f'{folder}:/usr/bin:/bin'


def stand_in(folder, tail):
  """A Python that leaves what the steps leave; `tail` is shell at its end."""
  program = folder / 'python'
  run = {'steps': 2, 'seconds': 12.34}
  program.write_text(
    f"""#!/bin/bash
echo "$JAX_PLATFORMS $1" >> {folder}/commands
case "$*" in
  -c*) echo '{{"device": "H100", "versions": {{"jax": "1"}}}}' ;;
  *lora_opt.main*) mkdir -p {folder}/out/quickstart
    echo '{json.dumps(run)}' > {folder}/out/quickstart/run.json
    echo 'before training: score 0.000, loss 2.8 on 64 examples'
    echo 'step 2/2, loss 0.02, 1,190 tokens/s, 00:00 left'
    echo 'after training: score 0.922, loss 0.05 on 64 examples' ;;
  *optimizer_step*) mkdir -p {folder}/out/optimizer_step
    echo '{{"rows": [1, 2]}}' > {folder}/out/optimizer_step/result.json
    echo '| adamw | 1.02 |' > {folder}/out/optimizer_step/table.md ;;
  *golden*) echo 'rite_rank1.npz    1.4e-13'; echo 'plus_16.npz  2e-15' ;;
  *pytest*) echo '7 passed, 1 skipped in 3.21s' ;;
esac
{tail}
""",
    encoding='utf-8',
  )
  program.chmod(0o755)
  return str(program)


def test_the_commands_without_a_gpu():
  said = output('gpu_check.py', '--dry_run', PATH='/nowhere', PLATFORM='gpu')
  first, setup, *commands = said.splitlines()
  assert first.startswith('# here it would end at once: there is no nvidia-smi')
  assert setup == 'WITH_CUDA=1 bash launch/setup.sh'
  assert len(commands) == len(NAMES)
  settings, python, *words = shlex.split(commands[0])
  assert settings == 'JAX_PLATFORMS=cuda,cpu'
  assert python == str(ROOT / '.venv/bin/python')
  assert words[:3] == ['-m', 'lora_opt.main', '--run_mode=train']


@pytest.mark.parametrize('small', [True, False])
def test_what_is_run_is_there(small):
  """Modules, tests and files that the commands name."""
  said = output(
    'gpu_check.py',
    '--dry-run',
    PYTHON='python',
    PLATFORM='cpu' if small else 'gpu',
  )
  lines = [line for line in said.splitlines() if not line.startswith('#')]
  assert len(lines) == len(NAMES)  # and nothing to install
  words = [word for line in lines for word in shlex.split(line)]
  paths = [word.removeprefix('--gin_file=') for word in words]
  for path in paths:
    if path.startswith(('tests/', 'configs/')):
      assert (ROOT / path).exists(), path
  for flag, module in itertools.pairwise(words):
    if flag == '-m' and module.startswith(('lora_opt', 'experiments', 'tests')):
      assert (ROOT / f'{module.replace(".", "/")}.py').exists(), module


@pytest.mark.parametrize(
  ('body', 'message'),
  [
    ('echo "No devices were found"; exit 6', 'finds no GPU: No devices were'),
    ('exit 0', 'finds no GPU: it said nothing'),
    ('echo "NVIDIA H100, 535.1, 81559 MiB"', r'535.1.*install 580 or a newer'),
  ],
)
def test_what_is_missing_is_said_first(tmp_path, body, message):
  out = tmp_path / 'out'
  run = launch(
    *('gpu_check.py', f'--out={out}'),
    PATH=smi(tmp_path, body),
    PYTHON=sys.executable,
    PLATFORM='gpu',
  )
  assert run.returncode == 2 and not out.exists()
  (line,) = run.stderr.splitlines()
  assert re.search(message, line)


def test_a_jax_without_gpus_is_named(tmp_path):
  """As where PYTHON has JAX for CPUs alone."""
  python = stand_in(tmp_path, 'echo "RuntimeError: no cuda" >&2; exit 1')
  run = launch(
    *('gpu_check.py', f'--out={tmp_path / "out"}'),
    PATH=smi(tmp_path, 'echo "NVIDIA H100, 580.1, 81559 MiB"'),
    PYTHON=python,
    PLATFORM='gpu',
  )
  assert run.returncode == 2
  assert 'no device of the platform cuda: RuntimeError: no cuda' in run.stderr


def checked(tmp_path, tail, *arguments):
  out = tmp_path / 'out'
  run = launch(
    *('gpu_check.py', f'--out={out}', *arguments),
    PATH=smi(tmp_path, 'echo "NVIDIA H100, 580.1, 81559 MiB"'),
    PYTHON=stand_in(tmp_path, tail),
    PLATFORM='gpu',
  )
  return run, json.loads((out / 'result.json').read_text()), out


def test_figures_and_times_are_written(tmp_path):
  run, result, out = checked(tmp_path, '')
  assert run.returncode == 0, run.stderr
  assert tuple(result['steps']) == NAMES
  assert result['gpus'] == ['NVIDIA H100, 580.1, 81559 MiB']
  assert all(found['passed'] for found in result['steps'].values())
  figures = {name: found['figures'] for name, found in result['steps'].items()}
  assert figures['quickstart']['score_after'] == 0.922
  assert figures['quickstart']['last_tokens_per_second'] == '1,190'
  assert figures['golden_products']['largest_relative_error'] == 1.4e-13
  assert figures['accuracy'] == {'passed': 7, 'skipped': 1}
  page = (out / 'result.md').read_text()
  assert page.startswith('# H100, 20') and '| adamw | 1.02 |' in page
  assert '580.1' in page and '- jax 1' in page
  platforms = [
    line.split()[0] for line in (tmp_path / 'commands').read_text().splitlines()
  ]
  assert platforms == ['cuda', *['cuda,cpu'] * 5, 'cpu']


def test_a_step_that_fails_is_written_down_and_the_others_go_on(tmp_path):
  fails = 'case "$*" in *golden*lapack*) echo wrong; exit 1 ;; esac'
  run, result, out = checked(tmp_path, fails)
  assert run.returncode == 1
  passed = {name: found['passed'] for name, found in result['steps'].items()}
  assert passed == {name: name != 'golden_lapack' for name in NAMES}
  assert 'FAILED, see golden_lapack.log' in (out / 'result.md').read_text()
  assert 'wrong' in (out / 'golden_lapack.log').read_text()


def test_a_step_that_leaves_nothing_has_failed(tmp_path):
  removes = f'rm -f {tmp_path}/out/quickstart/run.json'
  run, result, _ = checked(tmp_path, removes, '--steps', 'quickstart')
  assert run.returncode == 1
  assert (
    'FileNotFoundError' in result['steps']['quickstart']['figures']['unread']
  )


def test_a_folder_with_results_is_kept(tmp_path):
  checked(tmp_path, '', '--steps', 'plans')
  run = launch(
    *('gpu_check.py', f'--out={tmp_path / "out"}'),
    PATH=smi(tmp_path, 'echo "NVIDIA H100, 580.1, 81559 MiB"'),
    PLATFORM='gpu',
  )
  assert run.returncode == 2 and 'out is not empty' in run.stderr


def test_another_platform_is_none():
  run = launch('gpu_check.py', '--dry_run', PLATFORM='tpu')
  assert run.returncode == 2 and 'PLATFORM=tpu is neither' in run.stderr
