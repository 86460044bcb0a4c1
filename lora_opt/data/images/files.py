"""Image files of strangers: looked at whole once, decoded when needed.

What becomes of which file:

  PNG, JPEG, WebP, GIF, BMP   read, by what is in the file, not by its name
  other formats               refused; no other decoder is ever opened
  broken, cut off, empty      refused
  an animation                refused: which frame is meant is not ours to say;
                              of a camera's file of several, the first
  more than `most_bytes`, or a header that declares more than `most_pixels`
                              refused before anything is decoded
  one side over 100 times the other   refused
  transparent                 put on white
  palette, gray, black and white      made RGB
  16 bits                     the upper 8 of each
  CMYK                        made RGB by the plain formula
  turned by EXIF              turned upright; EXIF that is damaged turns nothing
  with a colour profile       read as sRGB: the profile is not applied

Refused means a ValueError with the file's name, which the policy of a task
(`on_bad`) turns into an image that is left out and counted.
"""

import base64
import concurrent.futures
import dataclasses
import io
import os
import pathlib
import threading
from collections.abc import Iterable

import numpy as np
from PIL import Image

from lora_opt.data.images import _decode
from lora_opt.reading import values
from lora_opt.reading.confined import Confined, ConfinedError
from lora_opt.reading.files import check_file, read_bytes

MOST_BYTES = 2**26
MOST_PIXELS = 2**26  # 8192 x 8192
_PILLOWS = 89_478_485  # beyond so many pixels Pillow itself objects
# Of the process that looks at a file: an image of `MOST_PIXELS` with all its
# copies takes less than half of it.
_MEMORY = 2**31
_SECONDS = 60.0
_PROCESSES = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class ImageFile:
  """An image file that was looked at whole, and can be decoded.

  Attributes:
    path: Of the file.
    digest: SHA-256 of its bytes; two files of one digest are one image.
    bytes: Their number.
    height, width: Of the image as it is looked at, upright.
  """

  path: str
  digest: str
  bytes: int
  height: int
  width: int

  def __str__(self) -> str:
    return f'image {self.digest[:16]}'

  def pixels(self) -> np.ndarray:
    """Decodes the image.

    Returns:
      (height, width, 3) uint8.

    Raises:
      OSError: The file cannot be read, or is another than was looked at.
    """
    try:
      data = read_bytes(pathlib.Path(self.path), most=self.bytes)
      if _decode.digest(data) == self.digest:
        return np.array(_decode.decode(data, self.height * self.width))
    except ValueError:
      pass  # as those that were looked at could be decoded, they have changed
    raise OSError(f'{self.path} was changed while it was in use')

  def thumbnail(self, side: int = 48) -> str:
    """A small PNG of the image, as a page holds it: a data URL of text."""
    image = Image.fromarray(self.pixels())
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, 'PNG')
    data = base64.b64encode(file.getvalue()).decode()
    return f'data:image/png;base64,{data}'


class ImageFiles:
  """Looks at image files, each once, and remembers what was found.

  The work is done in processes with limits on time and memory, several at a
  time: damage on which a decoder crashes is found there.

  Args:
    most_bytes: What a file may have.
    most_pixels: What its header may declare.

  Raises:
    ValueError: A limit is not a whole number, or more than can be decoded.
  """

  def __init__(
    self, most_bytes: int = MOST_BYTES, most_pixels: int = MOST_PIXELS
  ):
    values.integer(most_bytes, 'max_image_bytes', 1, 2**30)
    values.integer(most_pixels, 'max_image_pixels', 1, _PILLOWS)
    self._limits = most_bytes, most_pixels
    self._found: dict[str, ImageFile | Exception] = {}

  def __getitem__(self, path: str | os.PathLike) -> ImageFile:
    """The file at a path.

    Raises:
      FileNotFoundError: There is none.
      ValueError: It is not an image that is read; names file and reason.
    """
    path = os.fspath(path)
    if path not in self._found:
      self._found[path] = self._look(path)
    found = self._found[path]
    if isinstance(found, Exception):
      raise type(found)(str(found))  # anew: a kept one would keep its frames
    return found

  def look_ahead(self, paths: Iterable[str | os.PathLike]) -> None:
    """Looks at many files at once; what is wrong is said when one is asked for.

    Args:
      paths: Of the files.
    """
    new = {os.fspath(path): None for path in paths}.keys() - self._found.keys()
    with concurrent.futures.ThreadPoolExecutor(_PROCESSES) as pool:
      self._found |= zip(new, pool.map(self._look, new), strict=True)

  def __getstate__(self) -> dict:
    return {'_limits': self._limits, '_found': dict(self._found)}

  def _look(self, path: str) -> ImageFile | Exception:
    try:
      check_file(pathlib.Path(path))
      found = _process()(path, *self._limits)
    except ConfinedError as error:
      return ValueError(f'{path}: decoding it {error}')
    except (ValueError, FileNotFoundError) as error:
      return error
    if 'refused' in found:
      return ValueError(f'{path}: {found["refused"]}')
    return ImageFile(path, **found)


_OF_THREAD = threading.local()


def _process() -> Confined:
  """One for each thread, kept for the next file."""
  if not hasattr(_OF_THREAD, 'process'):
    _OF_THREAD.process = Confined(
      _decode.__file__, 'check', seconds=_SECONDS, memory=_MEMORY
    )
  return _OF_THREAD.process
