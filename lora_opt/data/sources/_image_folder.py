"""A folder of images with metadata for each of them, such as a caption."""

import contextlib
import csv
import dataclasses
import functools
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lora_opt.data.sources._image_names import is_image, names_in
from lora_opt.data.sources._jsonl import JsonLines
from lora_opt.data.sources._rows import Row, Rows, file_facts
from lora_opt.reading.copies import local_copy
from lora_opt.reading.files import inside, read_text
from lora_opt.reading.values import shown

_MOST_CSV = 2**26  # bytes


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFolder(Rows):
  """Images of one folder, each with the fields of its metadata.

  The layout is the one that Hugging Face `datasets` calls imagefolder:

    pictures/train/metadata.jsonl   {"file_name": "a.png", "text": "A dog"}
    pictures/train/a.png

  Or there is a metadata.csv with a column file_name. A row has the fields of
  the metadata, but with the field `image` instead of file_name: the path of the
  file, which must be in the folder or in one of its subfolders. Without such
  metadata, the rows are the images of the folder, sorted by name. Images that
  the metadata does not name are not used; `facts` counts them.

  Args:
    folder: The folder.
    split: The subfolder to use, such as 'train'; '' uses the folder itself.
    limit: Use the first `limit` rows only.

  Raises (at first use):
    FileNotFoundError: There is no such folder.
    ValueError: It has no image, it has both kinds of metadata, or metadata.csv
      is not valid.
  """

  folder: str
  split: str = ''
  limit: int | None = None

  @functools.cached_property
  def path(self) -> pathlib.Path:
    return local_copy(self.folder, self.split) / self.split

  @property
  def title(self) -> str:
    return str(self.path)

  def where(self, index: int) -> str:
    """The file that row `index` is from, with the line if it is metadata."""
    return self._table.where(index)

  def facts(self) -> dict[str, Any]:
    """The folder, and the metadata with its SHA-256."""
    file = getattr(self._table, 'path', None)
    return {
      'folder': str(self.path),
      'metadata': file_facts(file) if file else [],
      'images_not_in_metadata': self._unnamed,
    }

  @functools.cached_property
  def _names(self) -> list[str]:
    return [name for name in names_in(self.path)[0] if is_image(name)]

  @functools.cached_property
  def _table(self) -> Any:
    files, _ = names_in(self.path)
    both = [n for n in ('metadata.jsonl', 'metadata.csv') if n in files]
    if len(both) > 1:
      raise ValueError(
        f'{self.path} has {" and ".join(both)}: delete the one that is not '
        'meant'
      )
    if 'metadata.jsonl' in both:
      return JsonLines('metadata.jsonl', str(self.path), self.limit)
    if both:
      return _CsvLines(self.path / 'metadata.csv')
    if not self._names:
      raise ValueError(
        f'{self.path} has no image and no metadata.jsonl; images are files '
        'such as a.png, a.jpg, a.webp'
      )
    return _Names(self.path, self._names)

  @functools.cached_property
  def _unnamed(self) -> int:
    if isinstance(self._table, _Names):
      return 0
    named = set()
    for index in range(len(self)):
      with contextlib.suppress(ValueError):  # raised when the row is accessed
        named.add(self[index]['image'])
    return sum(str(self.path / name) not in named for name in self._names)

  def _load(self) -> Sequence[Row]:
    return self._table

  def _row(self, index: int) -> Row:
    place, row = self.where(index), dict(self._table[index])
    if 'image' in row:
      raise ValueError(
        f"{place}: a field 'image', which is what the path of the file will "
        'be called: call it something else'
      )
    if 'file_name' not in row:
      raise ValueError(f"{place}: no field 'file_name', the name of the image")
    path = inside(self.path, row.pop('file_name'), place)
    return {'image': str(path)} | row


@dataclasses.dataclass(frozen=True)
class _Names(Sequence):
  """Rows that have only the names of files."""

  folder: pathlib.Path
  names: Sequence[str]

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> Mapping[str, str]:
    return {'file_name': self.names[index]}

  def where(self, index: int) -> str:
    return str(self.folder / self.names[index])


@dataclasses.dataclass(frozen=True)
class _CsvLines(Sequence):
  """Rows of a file of comma-separated values, which is read as a whole."""

  path: pathlib.Path

  @functools.cached_property
  def _read(self) -> tuple[list[str], list[tuple[int, list[str]]]]:
    text = io.StringIO(read_text(self.path, most=_MOST_CSV), newline='')
    reader = csv.reader(text, strict=True)
    try:
      lines = [(reader.line_num, line) for line in reader if line]
    except csv.Error as error:
      raise ValueError(
        f'{self.path}:{reader.line_num}: not CSV: {error}'
      ) from None
    if len(lines) < 2:
      raise ValueError(f'{self.path} has no rows below a line of names')
    names = lines[0][1]
    if 'file_name' not in names or len(set(names)) < len(names):
      raise ValueError(
        f'{self.path}: the first line must name every column, one of them '
        f'file_name, none twice; found {shown(names)}'
      )
    return names, lines[1:]

  def __len__(self) -> int:
    return len(self._read[1])

  def __getitem__(self, index: int) -> Mapping[str, str]:
    names, lines = self._read
    _, cells = lines[index]
    if len(cells) != len(names):
      raise ValueError(
        f'{self.where(index)}: {len(cells)} cells, the first line names '
        f'{len(names)} columns'
      )
    return dict(zip(names, cells, strict=True))

  def where(self, index: int) -> str:
    return f'{self.path}:{self._read[1][index][0]}'
