"""Image files of every kind, written for tests."""

import pathlib
import struct
import zlib

import numpy as np
from PIL import Image


def colours(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
  """(height, width, 3) uint8 noise."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(file: pathlib.Path, pixels: np.ndarray, **settings) -> pathlib.Path:
  """Writes pixels to a file, whose folder is made if it is missing."""
  file.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(file, **settings)
  return file


def png(width: int, height: int, data: bytes = b'\0' * 1000) -> bytes:
  """A PNG file whose header declares what its data need not hold."""

  def chunk(kind, content):
    sum_ = zlib.crc32(kind + content)
    size = struct.pack('>I', len(content))
    return size + kind + content + struct.pack('>I', sum_)

  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(data))
    + chunk(b'IEND', b'')
  )


def class_folders(
  folder: pathlib.Path, classes, count: int, size: int = 8, seed: int = 0
) -> pathlib.Path:
  """A folder for each class with so many images, each class of one colour."""
  rng = np.random.default_rng(seed)
  for number, label in enumerate(classes):
    colour = np.zeros(3)
    colour[number % 3] = 160 + 40 * (number // 3)
    for index in range(count):
      noise = rng.integers(0, 60, (size, size, 3))
      save(folder / label / f'{index:03}.png', (colour + noise).astype('uint8'))
  return folder
