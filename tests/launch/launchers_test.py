"""What the launchers would run, word for word; what they do with a stand-in."""

import pathlib
import shlex
import shutil
import signal
import subprocess

import pytest

from tests.launch.launcher import (
  FOREVER,
  LAUNCH,
  ROOT,
  fake_python,
  launch,
  output,
  wait_for,
)

FLAGS = ['--gin_file=configs/runs/finetune.gin', "--gin.X='a b'"]
SCRIPTS = sorted(LAUNCH.glob('*.sh'))


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.name)
def test_shell_scripts_are_well_formed(script):
  checked = shutil.which('shellcheck')
  check = ['shellcheck', '-x'] if checked else ['bash', '-n']
  run = subprocess.run(
    [*check, script], cwd=ROOT, capture_output=True, text=True
  )
  assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
  'name',
  [
    'train.sh',
    'worker.sh',
    'slurm.sh',
    'tpu_pod.sh',
    'processes.py',
    'gke.py',
    'sweep.py',
    'gpu_check.py',
  ],
)
def test_help_shows_how_it_is_called(name):
  assert f'launch/{name}' in output(name, '--help')


def test_one_machine():
  assert output(
    'train.sh', '--dry_run', *FLAGS, PYTHON='python', MODEL_DIR='runs/a'
  ) == (
    'python -m lora_opt.main --run_mode=train --gin.MODEL_DIR=runs/a '
    "--gin_file=configs/runs/finetune.gin --gin.X=\\'a\\ b\\'\n"
  )


def test_what_follows_two_dashes_is_passed_on():
  said = output('train.sh', '--dry_run', '--', '--dry_run', MODEL_DIR='runs/a')
  assert said.endswith(' --gin.MODEL_DIR=runs/a --dry_run\n')


@pytest.mark.parametrize('name', ['train.sh', 'worker.sh', 'processes.py'])
def test_the_folder_of_the_run_must_be_given(name):
  run = launch(name)
  assert run.returncode == 2
  assert 'set MODEL_DIR=folder' in run.stderr


def test_local_processes():
  said = output(
    *('processes.py', '--processes=2', '--devices=4', '--port=1234'),
    *('--dry_run', '--', '--gin.TRAIN_STEPS=2'),
    MODEL_DIR='runs/a',
  )
  assert said == ''.join(
    'MODEL_DIR=runs/a JAX_PLATFORMS=cpu '
    'XLA_FLAGS=--xla_force_host_platform_device_count=4 '
    f'bash {LAUNCH}/train.sh -- --gin.TRAIN_STEPS=2 '
    '--coordinator_address=localhost:1234 --process_count=2 '
    f'--process_index={index}\n'
    for index in range(2)
  )


def test_slurm():
  said = output(
    *('slurm.sh', '--dry_run', '--nodes=2', '--ntasks-per-node=8', '--'),
    *FLAGS,
    MODEL_DIR='runs/a',
  )
  assert said == (
    'env MODEL_DIR=runs/a sbatch --job-name=a '
    '--output=runs/a/logs/slurm-%j.log --open-mode=append --requeue '
    '--signal=TERM@180 --nodes=2 --ntasks-per-node=8 '
    f'{LAUNCH}/slurm_job.sh {ROOT} '
    "--gin_file=configs/runs/finetune.gin --gin.X=\\'a\\ b\\'\n"
  )


def test_tpu_pod():
  pod = {'TPU': 'pod', 'ZONE': 'us-central1-a', 'MODEL_DIR': '/mnt/a'}
  ssh = (
    'gcloud compute tpus tpu-vm ssh pod --zone=us-central1-a --worker=all '
    '--command='
  )
  copied = output('tpu_pod.sh', '--dry_run', 'copy', **pod).splitlines()
  assert copied[1:] == [
    'gcloud compute tpus tpu-vm scp /tmp/lora_opt.tar.gz pod: '
    '--zone=us-central1-a --worker=all',
    ssh + 'mkdir\\ -p\\ lora_opt\\ \\&\\&\\ tar\\ -C\\ lora_opt\\ -xzf'
    '\\ lora_opt.tar.gz',
  ]
  stopped = output('tpu_pod.sh', '--dry_run', 'stop', **pod)
  assert stopped.startswith(ssh + 'kill\\ -TERM')
  run = launch('tpu_pod.sh', '--dry_run', 'walk', **pod)
  assert run.returncode == 2
  assert "not 'walk'" in run.stderr


def stand_in(folder: pathlib.Path, name: str, body: str) -> None:
  folder.mkdir(exist_ok=True)
  path = folder / name
  path.write_text(f'#!/usr/bin/env bash\n{body}\n')
  path.chmod(0o755)


def test_a_pod_is_started_and_stopped(tmp_path, monkeypatch):
  # Here is a worker: gcloud runs what it would run there.
  home = tmp_path / 'home'
  (home / 'lora_opt').mkdir(parents=True)
  (home / 'lora_opt/launch').symlink_to(LAUNCH)
  stand_in(
    tmp_path / 'bin',
    'gcloud',
    f'cd {home}; for x; do :; done; bash -c "${{x#--command=}}"',
  )
  path = f'{tmp_path}/bin:/usr/bin:/bin'
  pod = {'TPU': 'pod', 'ZONE': 'z', 'PATH': path, 'MODEL_DIR': str(tmp_path)}
  python = fake_python(tmp_path, FOREVER, 'touch stopped; exit 0')
  output('tpu_pod.sh', 'run', '--gin.X=a b', **pod, PYTHON=python)
  wait_for(tmp_path / 'arguments.txt')
  assert (tmp_path / 'arguments.txt').read_text().splitlines()[-2:] == [
    '--coordinator_address=auto',
    '--gin.X=a b',
  ]
  output('tpu_pod.sh', 'stop', **pod)
  wait_for(home / 'lora_opt/stopped')


@pytest.mark.parametrize(
  ('body', 'code'),
  [('exit 0', 0), ('exit 75', 75), ('exit 3', 3)],
)
def test_a_worker_tells_the_end_from_a_stop(tmp_path, body, code):
  python = fake_python(tmp_path, body)
  run = launch('worker.sh', MODEL_DIR=str(tmp_path), PYTHON=python)
  assert run.returncode == code, run.stderr


@pytest.mark.parametrize('code', [75, 143, 1])
def test_a_worker_passes_sigterm_on_and_waits(tmp_path, code):
  python = fake_python(
    tmp_path, FOREVER, f'sleep 0.3; touch "$MODEL_DIR/saved"; exit {code}'
  )
  worker = launch(
    'worker.sh', MODEL_DIR=str(tmp_path), PYTHON=python, wait=False
  )
  wait_for(tmp_path / 'arguments.txt')
  worker.send_signal(signal.SIGTERM)
  assert worker.wait(10) == 75
  assert (tmp_path / 'saved').exists()


@pytest.mark.parametrize(('code', 'requeued'), [(0, False), (75, True)])
def test_a_job_is_queued_again_until_its_run_is_finished(
  tmp_path, code, requeued
):
  stand_in(
    tmp_path / 'bin', 'srun', f'echo "$@" > {tmp_path}/srun; exit {code}'
  )
  stand_in(tmp_path / 'bin', 'scontrol', f'echo "$@" > {tmp_path}/scontrol')
  (tmp_path / '0012').mkdir()
  (tmp_path / '0012/flags.txt').write_text('--gin.A=1\n--gin.B=b c\n')
  run = launch(
    *('slurm_job.sh', str(ROOT)),
    SWEEP=str(tmp_path),
    SLURM_ARRAY_TASK_ID='12',
    SLURM_JOB_ID='99',
    PATH=f'{tmp_path}/bin:/usr/bin:/bin',
  )
  assert run.returncode == code
  assert (
    (tmp_path / 'srun')
    .read_text()
    .endswith(
      f'bash {LAUNCH}/worker.sh --coordinator_address=auto --gin.A=1 '
      '--gin.B=b c\n'
    )
  )
  assert (tmp_path / 'scontrol').exists() == requeued


def test_packing_a_copy_removes_its_own_folder_alone(tmp_path):
  # What a shell would make of the name, were it not quoted.
  temporary = tmp_path / "a' $(touch hit) 'b"
  precious = temporary.parent / 'a'
  temporary.mkdir()
  precious.mkdir()
  for name in ('gcloud', 'tar'):
    stand_in(tmp_path / 'bin', name, 'exit 0')
  output(
    *('tpu_pod.sh', 'copy'),
    **{'TPU': 'pod', 'ZONE': 'z', 'TMPDIR': str(temporary)},
    PATH=f'{tmp_path}/bin:/usr/bin:/bin',
  )
  assert precious.exists()
  assert list(temporary.iterdir()) == []
  assert not (ROOT / 'hit').exists()


@pytest.mark.parametrize('name', ['TPU', 'ZONE', 'PROJECT'])
def test_names_that_would_be_options_are_refused(name):
  pod = {'TPU': 'pod', 'ZONE': 'z'} | {name: '--quiet'}
  run = launch('tpu_pod.sh', '--dry_run', 'stop', **pod)
  assert run.returncode == 2
  assert name in run.stderr


def test_a_percent_sign_in_a_folder_is_not_for_slurm():
  said = output('slurm.sh', '--dry_run', '--', MODEL_DIR='runs/-5%j')
  assert '--job-name=-5%j ' in said
  assert '--output=runs/-5%%j/logs/slurm-%j.log' in said


@pytest.mark.parametrize(
  ('folder', 'flag'),
  [
    ('2024', "'2024'"),
    ('None', "'None'"),
    ("a'b\\c", r"'a\'b\\c'"),
    ('@f()', "'@f()'"),
    ('runs/a', 'runs/a'),
  ],
)
def test_the_folder_of_a_run_is_text_to_gin(folder, flag):
  said = output('train.sh', '--dry_run', MODEL_DIR=folder)
  assert shlex.split(said)[-1] == f'--gin.MODEL_DIR={flag}'
