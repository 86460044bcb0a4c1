"""Decodes the bytes of an image file to RGB, with Pillow alone.

A file from a stranger is first decoded in a separate process, where a crash or
an endless loop does no harm: see `lora_opt.data.images.files`. This module
imports nothing from `lora_opt`, so that such a process starts at once.
"""

import contextlib
import hashlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

# Importing a decoder's module registers the decoder with Pillow.
from PIL import (
  BmpImagePlugin,  # noqa: F401
  GifImagePlugin,  # noqa: F401
  Image,
  JpegImagePlugin,  # noqa: F401
  PngImagePlugin,  # noqa: F401
  UnidentifiedImageError,
  WebPImagePlugin,  # noqa: F401
)

FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP')
# The format of a JPEG file with several images, as cameras write it.
_OF_SEVERAL = 'MPO'
# Maximum ratio of the longer side to the shorter. The shorter side is resized
# to what a model wants, and the longer side grows with it.
LONGEST_SHAPE = 100
_OPAQUE = ('1', 'L', 'RGB', 'CMYK', 'YCbCr', 'P')
_TRANSPARENT = ('LA', 'PA', 'RGBA')
_GRAY_16 = ('I;16', 'I;16B', 'I;16L', 'I;16N')
# By EXIF's number for the orientation of the camera.
_TURNS = dict(
  enumerate(
    (
      Image.Transpose.FLIP_LEFT_RIGHT,
      Image.Transpose.ROTATE_180,
      Image.Transpose.FLIP_TOP_BOTTOM,
      Image.Transpose.TRANSPOSE,
      Image.Transpose.ROTATE_270,
      Image.Transpose.TRANSVERSE,
      Image.Transpose.ROTATE_90,
    ),
    2,
  )
)
# All threads share the same warning filters.
_FILTERS = threading.Lock()


def check(path: str, most_bytes: int, most_pixels: int) -> dict[str, Any]:
  """Reads and decodes a whole file, to check that this is possible.

  Returns:
    `digest`, see the function `digest`; `bytes`, the size of the file; `height`
    and `width` of the upright image. Or only `refused`, the reason why the file
    is refused.
  """
  try:
    size = os.stat(path).st_size
    if size > most_bytes:
      raise _NotReadError(f'{size:,} bytes, at most {most_bytes:,} are read')
    with open(path, 'rb') as file:
      data = file.read(most_bytes + 1)
    width, height = decode(data, most_pixels, thorough=True).size
  except ValueError as error:
    return {'refused': str(error)}
  except OSError as error:
    return {'refused': f'cannot be read: {error.strerror}'}
  return {
    'digest': digest(data),
    'bytes': len(data),
    'height': height,
    'width': width,
  }


def digest(data: bytes) -> str:
  """The SHA-256 of the bytes of a file."""
  return hashlib.sha256(data).hexdigest()


def decode(
  data: bytes, most_pixels: int, thorough: bool = False
) -> Image.Image:
  """Decodes an image.

  Args:
    data: The bytes of a file of one of `FORMATS`.
    most_pixels: Maximum number of pixels that the header may declare; a larger
      image is refused without decoding it.
    thorough: Also verify the checksums of a PNG file.

  Returns:
    The upright image in mode RGB. Colour profiles are not applied.

  Raises:
    ValueError: The image is damaged or refused; the message says why.
  """
  if thorough:
    _verify(data, most_pixels)
  with _opened(data, most_pixels) as image:
    with _damage_named():
      image.load()
      rgb = _rgb(image)
    turn = _TURNS.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _opened(data: bytes, most_pixels: int) -> Image.Image:
  """Opens an image and checks its header, without decoding the pixels."""
  if not data:
    raise _NotReadError('an empty file')
  with _damage_named(), _quiet():
    try:
      image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
      raise _NotReadError(
        f'no image of the formats {", ".join(FORMATS)}, or a damaged one: it '
        f'begins with {data[:12]!r}'
      ) from None
    except Image.DecompressionBombError:
      raise _NotReadError(
        f'so many pixels are declared that it is a decompression bomb, at most '
        f'{most_pixels:,} are decoded'
      ) from None
    frames = getattr(image, 'n_frames', 1)
  width, height = image.size
  if width * height > most_pixels:
    raise _NotReadError(
      f'{width} x {height} pixels, at most {most_pixels:,} are decoded'
    )
  if max(width, height) > LONGEST_SHAPE * min(width, height):
    raise _NotReadError(
      f'{width} x {height} pixels: one side is more than {LONGEST_SHAPE} times '
      'the other'
    )
  if frames > 1 and image.format != _OF_SEVERAL:
    raise _NotReadError(
      f'an animation of {frames} frames: save the one that is meant'
    )
  return image


def _verify(data: bytes, most_pixels: int) -> None:
  with _opened(data, most_pixels) as image:
    if image.format != 'PNG':
      return
    with _damage_named():
      image.verify()


def _rgb(image: Image.Image) -> Image.Image:
  if image.mode in _GRAY_16:
    image = _eight_bits(image)
  transparent = 'transparency' in image.info and image.mode in _OPAQUE
  if transparent or image.mode in _TRANSPARENT:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    return Image.alpha_composite(white, image).convert('RGB')
  if image.mode in _OPAQUE:
    return image.convert('RGB')
  raise _NotReadError(f'pixels of the kind {image.mode}, which is not read')


def _eight_bits(image: Image.Image) -> Image.Image:
  """The upper bytes of 16-bit gray, as Pillow does for 16-bit colours."""
  upper = [value >> 8 for value in range(2**16)]
  key = image.info.get('transparency')
  if isinstance(key, int) and 0 <= key < 2**16:
    upper[key] = 255  # transparent pixels become white
  return image.convert('I').point(upper, 'L')


def _orientation(image: Image.Image) -> int | None:
  """The EXIF orientation; None if it is missing or cannot be read."""
  try:
    with _quiet():
      return image.getexif().get(0x0112)
  except Exception:  # ignored, as viewers do
    return None


class _NotReadError(ValueError):
  """An image that is refused, although no damage was found in it."""


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
  """Turns all errors that Pillow's decoders raise into ValueError."""
  try:
    yield
  except (_NotReadError, MemoryError):
    raise
  except Exception as error:
    said = ' '.join(str(error).split())[:200] or type(error).__name__
    raise ValueError(f'damaged or cut off: {said}') from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Suppresses warnings, such as those about unimportant tags."""
  with _FILTERS, warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield
