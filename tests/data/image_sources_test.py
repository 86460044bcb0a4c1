"""Folders of images as sources: with metadata, and one for each class."""

import json

import pytest

from lora_opt.data import sources
from tests.data.image_files import class_folders, colours, save


def folder_of(tmp_path, lines, name='metadata.jsonl'):
  for image in ('a.png', 'b.png', 'sub/c.png'):
    save(tmp_path / 'train' / image, colours())
  text = lines if isinstance(lines, str) else '\n'.join(map(json.dumps, lines))
  (tmp_path / 'train' / name).write_text(text)
  return sources.ImageFolder(str(tmp_path), 'train')


def test_rows_of_metadata_have_the_path_and_the_fields(tmp_path):
  source = folder_of(
    tmp_path,
    [{'file_name': 'b.png', 'text': 'B'}, {'file_name': 'sub/c.png', 'n': 1}],
  )
  assert list(source) == [
    {'image': str(tmp_path / 'train/b.png'), 'text': 'B'},
    {'image': str(tmp_path / 'train/sub/c.png'), 'n': 1},
  ]
  assert source.where(1).endswith('train/metadata.jsonl:2')
  facts = source.facts()
  assert facts['images_not_in_metadata'] == 1  # a.png
  assert len(facts['metadata'][0]['sha256']) == 64


def test_metadata_may_be_csv(tmp_path):
  text = 'text,file_name\r\n"of, two\nlines",a.png\r\nplain,b.png\r\n'
  source = folder_of(tmp_path, text, 'metadata.csv')
  path = str(tmp_path / 'train')
  assert list(source) == [
    {'image': f'{path}/a.png', 'text': 'of, two\nlines'},
    {'image': f'{path}/b.png', 'text': 'plain'},
  ]
  assert source.where(1).endswith('metadata.csv:4')


def test_without_metadata_the_images_are_the_rows(tmp_path):
  for name in ('b.png', 'a.JPG', '.hidden.png', 'notes.txt', 'Thumbs.db'):
    (tmp_path / name).write_bytes(b'')
  source = sources.ImageFolder(str(tmp_path))
  assert list(source) == [
    {'image': str(tmp_path / name)} for name in ('a.JPG', 'b.png')
  ]
  assert len(sources.ImageFolder(str(tmp_path), limit=1)) == 1


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'text': 'x'}, r"metadata\.jsonl:1: no field 'file_name'"),
    ({'file_name': '../b.png'}, r'is not the path of a file inside'),
    ({'file_name': '/etc/a.png'}, r'is not the path of a file inside'),
    ({'file_name': 3}, r'is not the path of a file inside'),
    ({'file_name': 'a.png', 'image': 'x'}, r"a field 'image', which is what"),
  ],
)
def test_bad_rows_of_metadata_are_named(tmp_path, row, message):
  source = folder_of(tmp_path, [row])
  with pytest.raises(ValueError, match=message):
    source[0]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('a,b\n1,2\n', 'one of them file_name'),
    ('file_name,file_name\n1,2\n', 'none twice'),
    ('file_name\n', 'no rows below'),
    ('file_name,text\n"a.png,x\n', r'metadata\.csv:2: not CSV'),
  ],
)
def test_csv_that_is_none_is_refused(tmp_path, text, message):
  source = folder_of(tmp_path, text, 'metadata.csv')
  with pytest.raises(ValueError, match=message):
    len(source)


def test_a_csv_row_of_another_length_is_named(tmp_path):
  source = folder_of(tmp_path, 'file_name,text\na.png\n', 'metadata.csv')
  with pytest.raises(ValueError, match=r'metadata\.csv:2: 1 cells, the first'):
    source[0]


def test_two_kinds_of_metadata_and_no_image_are_refused(tmp_path):
  source = folder_of(tmp_path, 'file_name\na.png\n', 'metadata.csv')
  (tmp_path / 'train/metadata.jsonl').write_text('{}')
  with pytest.raises(ValueError, match='delete the one that is not meant'):
    len(source)
  (tmp_path / 'none').mkdir()
  with pytest.raises(ValueError, match='has no image and no metadata'):
    len(sources.ImageFolder(str(tmp_path), 'none'))
  with pytest.raises(FileNotFoundError, match='there is no folder'):
    len(sources.ImageFolder(str(tmp_path), 'nowhere'))


def test_class_folders_that_are_split(tmp_path):
  class_folders(tmp_path / 'train', ('tulip', 'daisy'), 3)
  class_folders(tmp_path / 'val', ('tulip', 'daisy'), 2)
  train = sources.ClassFolders(str(tmp_path))
  held_out = sources.ClassFolders(str(tmp_path), 'eval')
  assert train.classes == held_out.classes == ('daisy', 'tulip')
  assert (len(train), len(held_out)) == (6, 4)
  # Evenly over the classes, so that a limit takes of each.
  assert [row['label'] for row in train] == ['daisy', 'tulip'] * 3
  assert train[0]['image'] == str(tmp_path / 'train/daisy/000.png')
  assert train.where(3).endswith('train/tulip/001.png')
  assert len(sources.ClassFolders(str(tmp_path), limit=2)) == 2


def test_class_folders_are_split_by_the_seed(tmp_path):
  class_folders(tmp_path, 'ab', 10)

  def names(split, seed=0):
    source = sources.ClassFolders(str(tmp_path), split, 0.3, seed)
    return {row['image'] for row in source}

  train, held_out = names('train'), names('eval')
  assert (len(train), len(held_out)) == (14, 6)
  assert not train & held_out
  assert len({p for p in held_out if '/a/' in p}) == 3
  assert names('eval') == held_out != names('eval', seed=1)
  # Another share: who was held out still is.
  more = sources.ClassFolders(str(tmp_path), 'eval', 0.5)
  assert held_out < {row['image'] for row in more}


def test_files_that_are_no_images_are_rows_that_cannot_be_used(tmp_path):
  class_folders(tmp_path / 'train', 'ab', 1)
  (tmp_path / 'train/a/.DS_Store').write_text('')
  (tmp_path / 'train/a/notes.txt').write_text('')
  source = sources.ClassFolders(str(tmp_path))
  assert len(source) == 3
  with pytest.raises(ValueError, match=r'a/notes\.txt: no image by the end'):
    list(source)


@pytest.mark.parametrize(
  ('classes', 'split', 'message'),
  [
    ((), 'train', 'two or more classes, found 0: none'),
    (('train/a',), 'train', 'two or more classes, found 1: a'),
    (('train/a', 'train/b'), 'eval', 'has a folder train and none for eval'),
    (('a', 'b'), 'train', '1 file.s., too few to train and to evaluate'),
    (('train/a/x', 'train/b'), 'train', "a folder 'x' among its images"),
    (('a', 'b'), 'test', "expected one of 'train', 'eval', found 'test'"),
  ],
)
def test_class_folders_that_are_none_are_refused(
  tmp_path, classes, split, message
):
  class_folders(tmp_path, classes, 1)
  source = sources.ClassFolders(str(tmp_path), split)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    len(source)
