"""MODEL_DIR belongs to one run."""

import json

import pytest

from lora_opt.run_folder import run_directory
from lora_opt.run_folder.run_directory import RunRecord, claim, make


def record(**settings):
  return RunRecord(settings=settings, config_text='A = 1\n')


def with_checkpoints(folder, **settings):
  claim(folder, record(**settings))
  (folder / 'checkpoints').mkdir()
  return folder


def test_the_first_claim_writes_config_and_settings(tmp_path):
  folder = tmp_path / 'a/b'
  claim(folder, record(SEED='0'))
  assert (folder / 'config.gin').read_text() == 'A = 1\n'
  assert json.loads((folder / 'settings.json').read_text()) == {'SEED': '0'}


def test_the_same_run_may_go_on(tmp_path):
  with_checkpoints(tmp_path, SEED='0')
  claim(tmp_path, record(SEED='0'))


@pytest.mark.parametrize(
  'name',
  [
    'EVAL_PERIOD',
    'loop.train.checkpoint_period',
    'MODEL_DIR',
    'FSDP',
    'loop.train.profile_steps',
    'plan.plan.batch_size',
    'run.score.adapter',
  ],
)
def test_what_does_not_change_the_result_may_change(tmp_path, name):
  with_checkpoints(tmp_path, **{name: '1'})
  claim(tmp_path, record(**{name: '2'}))


def test_another_run_is_refused_and_the_difference_named(tmp_path):
  with_checkpoints(tmp_path, SEED='0', LORA_RANK='8')
  with pytest.raises(ValueError, match='holds another run') as caught:
    claim(tmp_path, record(SEED='0', LORA_RANK='16', EXTRA='1'))
  message = str(caught.value)
  assert 'LORA_RANK: there 8, here 16' in message
  assert 'EXTRA: there unset, here 1' in message
  assert 'SEED' not in message
  kept = json.loads((tmp_path / 'settings.json').read_text())
  assert kept['LORA_RANK'] == '8'


def test_a_folder_without_results_may_be_reused(tmp_path):
  claim(tmp_path, record(SEED='0'))
  claim(tmp_path, record(SEED='1'))


def test_an_evaluation_alone_is_a_result_too(tmp_path):
  claim(tmp_path, record(SEED='0'))
  run_directory.write_json(tmp_path / 'evaluation/before.json', {})
  with pytest.raises(ValueError, match='SEED: there 0, here 1'):
    claim(tmp_path, record(SEED='1'))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='MODEL_DIR=.*file/run cannot be written'):
    make(tmp_path / 'file' / 'run')


def test_a_full_disk_is_named(tmp_path, monkeypatch):
  usage = run_directory.shutil.disk_usage(tmp_path)._replace(free=2**20)
  monkeypatch.setattr(run_directory.shutil, 'disk_usage', lambda _: usage)
  with pytest.raises(OSError, match='only 1 MiB are free'):
    make(tmp_path)


def test_nothing_is_written_through_a_link(tmp_path):
  precious = tmp_path / 'precious'
  precious.write_text('{}', encoding='utf-8')
  folder = tmp_path / 'run'
  folder.mkdir()
  for name in ('.writable', 'settings.json', 'settings.json.part',
               'config.gin', 'config.gin.part'):  # fmt: skip
    (folder / name).symlink_to(precious)
  claim(folder, record())
  assert precious.read_text(encoding='utf-8') == '{}'


@pytest.mark.parametrize('name', ['adapter', 'metrics.jsonl'])
def test_a_link_that_would_fail_in_the_end_is_named_at_the_start(
  tmp_path, name
):
  (tmp_path / name).symlink_to(tmp_path / 'elsewhere')
  with pytest.raises(OSError, match=f'{name} is a link to .*elsewhere'):
    claim(tmp_path, record())
  assert not (tmp_path / 'settings.json').exists()


def test_an_adapter_of_the_user_is_not_written_over(tmp_path):
  mine = tmp_path / 'adapter/adapter_model.safetensors'
  mine.parent.mkdir()
  claim(tmp_path, record())  # an empty folder is nobody's
  mine.write_bytes(b'mine')
  for _ in range(2):
    with pytest.raises(OSError, match='adapter is there already'):
      claim(tmp_path, record())
  (tmp_path / 'checkpoints').mkdir()
  claim(tmp_path, record())  # that of this run, which goes on


def test_a_name_that_the_locale_cannot_read_is_named(tmp_path):
  with pytest.raises(ValueError, match=r'udcc3.*set PYTHONUTF8=1'):
    make(tmp_path / 'a\udcc3')
