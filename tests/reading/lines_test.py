import os
import pathlib
import pickle
import random

import pytest

from lora_opt.reading import lines
from lora_opt.reading.lines import Lines


def written(folder, data):
  file = folder / 'a.txt'
  file.write_bytes(data)
  return file


@pytest.mark.parametrize('chunk', [1, 2, 3, 2**20])
def test_lines_are_those_between_the_ends(tmp_path, monkeypatch, chunk):
  monkeypatch.setattr(lines, '_CHUNK', chunk)
  rng = random.Random(chunk)
  for _ in range(100):
    data = bytes(rng.choices(b'a\n\r ', k=rng.randrange(12)))
    expected = data.split(b'\n')
    if not expected[-1].strip():
      expected.pop()
    found = Lines(written(tmp_path, data))
    assert list(found) == [line.removesuffix(b'\r') for line in expected], data
    assert found.place(2).endswith('a.txt:3')


def test_any_line_of_a_large_file_is_read_alone(tmp_path):
  file = written(tmp_path, b'first\nsecond\n')
  with file.open('r+b') as stream:
    stream.truncate(2**33)  # a hole of 8 GiB, takes no room
  found = Lines(file, limit=2)
  assert list(found) == [b'first', b'second']
  with pytest.raises(IndexError, match='2 lines'):
    found[2]


def test_a_long_line_is_refused_when_it_is_asked_for(tmp_path):
  found = Lines(written(tmp_path, b'a\n' + b'b' * 50 + b'\nc\n'), longest=40)
  assert (found[0], found[2]) == (b'a', b'c')
  with pytest.raises(ValueError, match=r'a\.txt:2: a line of 51 bytes, at mo'):
    found[1]


def test_a_file_that_changes_is_refused(tmp_path):
  file = written(tmp_path, b'a\nb\n')
  found = Lines(file)
  again = pickle.loads(pickle.dumps(found))
  assert found[0] == again[0] == b'a'
  file.write_bytes(b'x\n')
  for one in (found, again):
    with pytest.raises(OSError, match=r'a\.txt was changed while'):
      one[1]


def test_what_is_no_file_is_named(tmp_path, monkeypatch):
  with pytest.raises(FileNotFoundError, match=r'no a\.txt in'):
    Lines(tmp_path / 'a.txt')
  with pytest.raises(ValueError, match='is not a file'):
    Lines(tmp_path)
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(ValueError, match='pipe is not a file'):
    Lines(tmp_path / 'pipe')
  monkeypatch.setattr(lines, 'MOST_LINES', 3)
  assert len(Lines(written(tmp_path, b'a\n' * 3))) == 3
  with pytest.raises(ValueError, match=r'a\.txt has more than 3 lines'):
    Lines(written(tmp_path, b'a\n' * 4))
  assert pathlib.Path(Lines(tmp_path / 'a.txt', limit=2).file).exists()
