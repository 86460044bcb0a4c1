"""Folders of images, one for each class."""

import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

from lora_opt.data.sources._image_names import is_image, names_in
from lora_opt.data.sources._rows import Row, Rows
from lora_opt.reading import values
from lora_opt.reading.copies import local_copy

# Possible names for the folder of a split; the first that exists is used.
_FOLDERS = {
  'train': ('train', 'training'),
  'eval': ('eval', 'validation', 'valid', 'val', 'test'),
}


@dataclasses.dataclass(frozen=True, eq=False)
class ClassFolders(Rows):
  """Images whose class is the name of the folder they are in.

    flowers/train/daisy/a.png        flowers/daisy/a.png
    flowers/train/tulip/b.png   or   flowers/tulip/b.png
    flowers/eval/daisy/c.png

  A row has `image`, the path of the file, and `label`, the name of its class.
  The evaluation folder may also be called validation, valid, val or test.
  Without a folder train or training, the images are split: the share
  `eval_share` of each class is used for evaluation. It is chosen by the seed
  and the names alone, so it does not depend on the machine. A file whose name
  is not that of an image is a row that cannot be used. Files whose names begin
  with a dot are ignored.

  Args:
    folder: The folder.
    split: 'train' or 'eval'.
    eval_share: Share of the images of each class that are used for evaluation
      if the folder is not split; at least one is, and at least one is not.
    seed: Seed of that choice.
    limit: Use only this many rows, spread evenly over the classes: the first of
      each, then the second of each, and so on.

  Raises (at first use):
    FileNotFoundError: There is no such folder.
    ValueError: It has fewer than two classes, a class with fewer than two
      images to split, or folders where images should be.
  """

  folder: str
  split: str = 'train'
  eval_share: float = 0.2
  seed: int = 0
  limit: int | None = None

  @property
  def title(self) -> str:
    return f'{self._home} split {self.split!r}'

  @functools.cached_property
  def classes(self) -> tuple[str, ...]:
    """The names of the folders, sorted."""
    names = names_in(self._place)[1]
    if len(names) < 2:
      raise ValueError(
        f'{self._place} must have a folder of images for each of two or more '
        f'classes, found {len(names)}: {", ".join(names) or "none"}'
      )
    return tuple(values.text(n, f'{self._place}: a class') for n in names)

  def where(self, index: int) -> str:
    """The file of row `index`."""
    label, name = self._rows[index]
    return str(self._place / label / name)

  def facts(self) -> dict[str, Any]:
    """The folder, and how it was split."""
    facts: dict[str, Any] = {'folder': str(self._place)}
    if not self._is_split:
      facts |= {'eval_share': self.eval_share, 'seed': self.seed}
    return facts | {'classes': list(self.classes)}

  @property
  def _home(self) -> pathlib.Path:
    return local_copy(self.folder)

  @functools.cached_property
  def _is_split(self) -> bool:
    values.one_of(self.split, 'ClassFolders: split', tuple(_FOLDERS))
    folders = names_in(self._home)[1]
    return any(name in folders for name in _FOLDERS['train'])

  @functools.cached_property
  def _place(self) -> pathlib.Path:
    if not self._is_split:
      return self._home
    folders = names_in(self._home)[1]
    for name in _FOLDERS[self.split]:
      if name in folders:
        return self._home / name
    raise FileNotFoundError(
      f'{self._home} has a folder train and none for evaluation: make one '
      f'called {", ".join(_FOLDERS["eval"][:-1])} or {_FOLDERS["eval"][-1]}, '
      'or put the folders of the classes there directly to have them split'
    )

  def _load(self) -> list[tuple[str, str]]:
    """Class and name of every file, starting with the first of each class."""
    columns = [
      [(label, name) for name in self._files(label)] for label in self.classes
    ]
    rows = [
      column[place]
      for place in range(max(map(len, columns)))
      for column in columns
      if place < len(column)
    ]
    if not rows:
      raise ValueError(f'{self._place}: no class has an image')
    return rows

  def _files(self, label: str) -> list[str]:
    place = self._place / label
    files, folders = names_in(place)
    if folders:
      raise ValueError(
        f'{place} has a folder {values.shown(folders[0])} among its images: a '
        'class is one folder of files'
      )
    return files if self._is_split else self._share(label, files)

  def _share(self, label: str, files: list[str]) -> list[str]:
    share = values.number(self.eval_share, 'ClassFolders: eval_share', 0, 1)
    values.integer(self.seed, 'ClassFolders: seed', 0)
    if len(files) < 2:
      raise ValueError(
        f'{self._place / label} has {len(files)} file(s), too few to train and '
        'to evaluate on'
      )
    held_out = min(max(1, round(share * len(files))), len(files) - 1)
    ordered = sorted(files, key=lambda name: self._drawn(label, name))
    chosen = set(ordered[:held_out])
    evaluated = self.split == 'eval'
    return [name for name in files if (name in chosen) == evaluated]

  def _drawn(self, label: str, name: str) -> bytes:
    text = f'{self.seed}/{label}/{name}'.encode('utf-8', 'surrogatepass')
    return hashlib.blake2b(text, digest_size=16).digest()

  def _row(self, index: int) -> Row:
    label, name = self._rows[index]
    path = self.where(index)
    if not is_image(name):
      raise ValueError(
        f'{path}: no image by the end of its name; move it out of the folder '
        'of a class'
      )
    return {'image': path, 'label': label}
