"""Image files from strangers: checked completely once, decoded when needed.

What happens to each kind of file:

  PNG, JPEG, WebP, GIF, BMP   read; the content counts, not the file's name
  other formats               refused; no other decoder is ever opened
  broken, cut off, empty      refused
  an animation                refused: which frame is meant is not ours to say;
                              of a camera's file with several images, the first
                              is read
  more than `most_bytes`, or a header that declares more than `most_pixels`
                              refused before anything is decoded
  one side over 100 times the other   refused
  transparent                 put on white
  palette, gray, black and white      converted to RGB
  16 bits                     reduced to the upper 8 bits
  CMYK                        converted to RGB by the plain formula
  rotated by EXIF             turned upright; damaged EXIF data is ignored
  with a colour profile       read as sRGB: the profile is not applied

Refused means a ValueError with the file's name. With the policy on_bad='skip'
of a task, the image is then left out and counted.
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
_PILLOWS = 89_478_485  # Pillow itself objects to more pixels
# For the process that checks a file. An image of `MOST_PIXELS` with all its
# copies takes less than half of this memory.
_MEMORY = 2**31
_SECONDS = 60.0
_PROCESSES = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class ImageFile:
  """An image file that was checked completely and can be decoded.

  Attributes:
    path: The path of the file.
    digest: SHA-256 of its bytes; files with the same digest are the same image.
    bytes: The size of the file in bytes.
    height, width: The size of the upright image.
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
      OSError: The file cannot be read, or has changed since it was checked.
    """
    try:
      data = read_bytes(pathlib.Path(self.path), most=self.bytes)
      if _decode.digest(data) == self.digest:
        return np.array(_decode.decode(data, self.height * self.width))
    except ValueError:
      pass  # the checked bytes could be decoded, so the file has changed
    raise OSError(f'{self.path} was changed while it was in use')

  def thumbnail(self, side: int = 48) -> str:
    """A small PNG of the image as a data URL, for use in a web page."""
    image = Image.fromarray(self.pixels())
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, 'PNG')
    data = base64.b64encode(file.getvalue()).decode()
    return f'data:image/png;base64,{data}'


class ImageFiles:
  """Checks image files, each once, and remembers the results.

  The work is done in processes with limits on time and memory, several at a
  time. Damage that crashes a decoder is found there.

  Args:
    most_bytes: Maximum size of a file in bytes.
    most_pixels: Maximum number of pixels that its header may declare.

  Raises:
    ValueError: A limit is not a whole number, or is more than can be decoded.
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
      FileNotFoundError: There is no such file.
      ValueError: The file is refused; the message names the file and the
        reason.
    """
    path = os.fspath(path)
    if path not in self._found:
      self._found[path] = self._look(path)
    found = self._found[path]
    if isinstance(found, Exception):
      # A new error, because the stored one would keep its stack frames.
      raise type(found)(str(found))
    return found

  def look_ahead(self, paths: Iterable[str | os.PathLike]) -> None:
    """Checks many files at once; errors are raised when a file is asked for.

    Args:
      paths: The paths of the files.
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
  """The process of this thread, which is kept for the next file."""
  if not hasattr(_OF_THREAD, 'process'):
    _OF_THREAD.process = Confined(
      _decode.__file__, 'check', seconds=_SECONDS, memory=_MEMORY
    )
  return _OF_THREAD.process
