import pathlib

import pytest

from lora_opt.reading.files import inside, read_bytes, read_text


@pytest.mark.parametrize(
  'name',
  ['', '.', '..', '../x', 'a/../../x', '/etc/passwd', 'a\0', 'C:\\x', 3, None],
)
def test_a_path_that_leads_out_is_refused(name):
  with pytest.raises(ValueError, match=r'index\.json: .* inside model'):
    inside(pathlib.Path('model'), name, 'index.json')


def test_text_is_utf8_whatever_the_locale(tmp_path):
  file = tmp_path / 'a.txt'
  file.write_bytes('\ufeffé'.encode())
  assert read_text(file) == 'é'
  file.write_bytes(b'a\xe9')
  with pytest.raises(ValueError, match=r'a\.txt: not UTF-8: byte 0xe9'):
    read_text(file)


def test_only_so_much_is_read(tmp_path):
  file = tmp_path / 'a'
  with file.open('wb') as stream:
    stream.truncate(2**40)  # a hole, takes no room
  with pytest.raises(ValueError, match=r'1,099,511,627,776 bytes, at most 100'):
    read_bytes(file, most=100)
