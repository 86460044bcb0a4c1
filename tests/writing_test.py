"""Files are whole, and nobody else's are touched."""

import os
import stat

import pytest

from lora_opt import writing


def test_a_link_is_replaced_and_its_target_left(tmp_path):
  precious = tmp_path / 'precious'
  precious.write_text('mine', encoding='utf-8')
  link = tmp_path / 'run/settings.json'
  link.parent.mkdir()
  link.symlink_to(precious)
  writing.write_text(link, 'new')
  assert precious.read_text(encoding='utf-8') == 'mine'
  assert not link.is_symlink()
  assert link.read_text(encoding='utf-8') == 'new'


def test_appending_refuses_a_link_and_says_where_it_leads(tmp_path):
  link = tmp_path / 'metrics.jsonl'
  link.symlink_to(tmp_path / 'elsewhere')
  with pytest.raises(OSError, match=r'metrics\.jsonl is a link to .*elsewhere'):
    writing.append(link)
  assert not (tmp_path / 'elsewhere').exists()


def test_appending_reads_and_goes_on_behind(tmp_path):
  for text in (b'a', b'b'):
    with writing.append(tmp_path / 'log') as file:
      file.write(text)
  assert (tmp_path / 'log').read_bytes() == b'ab'


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
  file = tmp_path / 'a'
  writing.write_text(file, 'old')
  with pytest.raises(RuntimeError), writing.draft(file) as part:
    part.write_text('half', encoding='utf-8')
    raise RuntimeError
  with (
    pytest.raises(RuntimeError),
    writing.draft_folder(tmp_path / 'b') as part,
  ):
    (part / 'x').touch()
    raise RuntimeError
  assert [path.name for path in tmp_path.iterdir()] == ['a']
  assert file.read_text(encoding='utf-8') == 'old'


def test_a_folder_with_something_in_it_is_not_replaced(tmp_path):
  mine = tmp_path / 'merged/mine'
  mine.parent.mkdir()
  mine.touch()
  with (
    pytest.raises(OSError),
    writing.draft_folder(tmp_path / 'merged') as part,
  ):
    (part / 'x').touch()
  assert list(tmp_path.rglob('*')) == [mine.parent, mine]


def test_others_may_read_what_the_umask_lets_them(tmp_path):
  before = os.umask(0o022)
  try:
    writing.write_text(tmp_path / 'a', 'x')
  finally:
    os.umask(before)
  assert stat.S_IMODE((tmp_path / 'a').stat().st_mode) == 0o644


def test_a_name_as_long_as_the_disk_takes_can_be_written(tmp_path):
  writing.write_text(tmp_path / ('n' * 255), 'x')
  assert (tmp_path / ('n' * 255)).exists()


def test_names_of_files_stay_in_their_folder_and_apart(tmp_path):
  names = ['a', '../a', '..', '.', '', '/etc/a', 'a/b', 'a%2Fb', '-a', 'a b']
  names += ['é', '日' * 300, '日' * 301, 'a' * 200, 'a' * 5000, 'x\0', '\ud800']
  files = [f'{writing.file_name(name)}.jsonl' for name in names]
  assert len(set(files)) == len(files)
  for file in files:
    writing.write_text(tmp_path / file, 'x')
  assert len(list(tmp_path.iterdir())) == len(files)
