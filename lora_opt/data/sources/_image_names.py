"""Finds the images of a folder by the names of its files."""

import os
import pathlib

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.gif', '.bmp')
# Files that desktops leave in folders of images, besides those whose names
# begin with a dot.
_LEFT_BEHIND = ('thumbs.db', 'desktop.ini')


def is_image(name: str) -> bool:
  """Whether a file is an image, judging by its extension.

  >>> is_image('a.JPG'), is_image('a.txt')
  (True, False)
  """
  return name.lower().endswith(SUFFIXES)


def names_in(folder: pathlib.Path) -> tuple[list[str], list[str]]:
  """The names of the files and of the folders in a folder, each sorted.

  Names that begin with a dot and files that desktops leave behind are left out.
  A link counts as what it points to.

  Raises:
    FileNotFoundError: There is no such folder.
    ValueError: It is a file.
    OSError: It cannot be read.
  """
  files, folders = [], []
  try:
    with os.scandir(folder) as entries:
      for entry in entries:
        if entry.name[0] != '.' and entry.name.lower() not in _LEFT_BEHIND:
          (folders if entry.is_dir() else files).append(entry.name)
  except FileNotFoundError:
    raise FileNotFoundError(f'there is no folder {folder}') from None
  except NotADirectoryError:
    raise ValueError(f'{folder} is a file, not a folder of images') from None
  except OSError as error:
    raise OSError(f'{folder} cannot be read: {error.strerror}') from error
  return sorted(files), sorted(folders)
