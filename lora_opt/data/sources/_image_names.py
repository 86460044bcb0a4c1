"""Which files of a folder are its images."""

import os
import pathlib

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.gif', '.bmp')
# What desktops leave in folders of images, besides names with a dot in front.
_LEFT_BEHIND = ('thumbs.db', 'desktop.ini')


def is_image(name: str) -> bool:
  """Whether a file is an image, by the end of its name.

  >>> is_image('a.JPG'), is_image('a.txt')
  (True, False)
  """
  return name.lower().endswith(SUFFIXES)


def names_in(folder: pathlib.Path) -> tuple[list[str], list[str]]:
  """The names of files and of folders in a folder, each in order.

  Those with a dot in front and those that desktops leave behind are no part of
  it. Links count as what they lead to.

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
