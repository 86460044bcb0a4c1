"""Turns an image of any size into the pixels that a model reads or trains on.

Everything random follows from a key of whole numbers, such as seed, epoch and
place: the same key gives the same pixels in every process.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lora_opt.reading import values

RESAMPLES = {
  'nearest': Image.Resampling.NEAREST,
  'lanczos': Image.Resampling.LANCZOS,
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'box': Image.Resampling.BOX,
  'hamming': Image.Resampling.HAMMING,
}
CROPS = ('none', 'random', 'random_area')
_LARGEST = 2**13  # pixels of a side
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Fit:
  """The target size of images, and how they are brought to it.

  Attributes:
    height, width: The target size.
    shorter: None stretches an image to the target size whatever its
      proportions, as ViT does. A number resizes the image so that its shorter
      side has this length, keeps the proportions, and crops the target size
      from the centre, as CLIP does.
    resample: How pixels are interpolated, a name in `RESAMPLES`.

  Raises:
    ValueError: A setting is out of bounds, or the target size is larger than
      the image that it is cropped from.
  """

  height: int
  width: int
  shorter: int | None = None
  resample: str = 'bilinear'

  def __post_init__(self):
    for name in ('height', 'width'):
      values.integer(getattr(self, name), f'Fit: {name}', 1, _LARGEST)
    values.one_of(self.resample, 'Fit: resample', tuple(RESAMPLES))
    if self.shorter is not None:
      values.integer(self.shorter, 'Fit: shorter', self._longer, _LARGEST)

  @property
  def _longer(self) -> int:
    return max(self.height, self.width)

  def __call__(self, pixels: np.ndarray) -> np.ndarray:
    """Brings an image to the target size.

    Args:
      pixels: (any height, any width, 3) uint8.

    Returns:
      (height, width, 3) uint8.

    >>> Fit(2, 2, shorter=3)(np.zeros((6, 8, 3), np.uint8)).shape
    (2, 2, 3)
    """
    if self.shorter is None:
      return self.stretched(pixels)
    pixels = self.shortened(pixels, self.shorter)
    return self.cut(pixels, *(room // 2 for room in self.room(pixels)))

  def stretched(self, pixels: np.ndarray) -> np.ndarray:
    """The whole image, stretched to the target size."""
    return self._resized(pixels, self.height, self.width)

  def shortened(
    self, pixels: np.ndarray, shorter: int | None = None
  ) -> np.ndarray:
    """The whole image, resized so that its shorter side has this length.

    The default is `Fit.shorter`, or else the longer side of the target size.
    """
    shorter = shorter or self.shorter or self._longer
    height, width = pixels.shape[:2]
    # Rounded down, as transformers does.
    longer = shorter * max(height, width) // min(height, width)
    size = (longer, shorter) if height > width else (shorter, longer)
    return self._resized(pixels, *size)

  def room(self, pixels: np.ndarray) -> tuple[int, int]:
    """By how much an image is higher and wider than the target size."""
    return pixels.shape[0] - self.height, pixels.shape[1] - self.width

  def cut(self, pixels: np.ndarray, top: int, left: int) -> np.ndarray:
    """The target size, cropped from an image at a position."""
    return pixels[top : top + self.height, left : left + self.width]

  def _resized(self, pixels, height, width):
    if pixels.shape[:2] == (height, width):
      return pixels
    method = RESAMPLES[self.resample]
    image = Image.fromarray(pixels).resize((width, height), method)
    return np.array(image)


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """The random changes that are made each time an image is trained on.

  Attributes:
    crop: 'none' resizes images as for evaluation. 'random' resizes the shorter
      side as `Fit` says and crops the target size at a random position
      (DreamBooth). 'random_area' crops a part of random area and proportions
      and stretches it to the target size (Inception's crop, torchvision's
      RandomResizedCrop).
    area: Smallest and largest share of the image that 'random_area' takes.
    aspect: Smallest and largest ratio of width to height that it takes.
    flip: Probability that left and right are exchanged.

  Raises:
    ValueError: The crop is unknown, or a bound or probability is invalid.

  References:
    Szegedy et al. 2015, Going Deeper with Convolutions, section 6.
  """

  crop: str = 'none'
  area: Sequence[float] = (0.08, 1.0)
  aspect: Sequence[float] = (3 / 4, 4 / 3)
  flip: float = 0.0

  def __post_init__(self):
    values.one_of(self.crop, 'Augmentation: crop', CROPS)
    values.number(self.flip, 'Augmentation: flip', 0, 1)
    for name, most in (('area', 1), ('aspect', 100)):
      found = getattr(self, name)
      values.items(list(found), f'Augmentation: {name}', size=2)
      for bound in found:
        values.number(bound, f'Augmentation: {name}', most=most, above=0)
      if found[0] > found[1]:
        raise ValueError(
          f'Augmentation: {name}={found!r} must be (smallest, largest)'
        )

  def __call__(
    self, pixels: np.ndarray, fit: Fit, key: Sequence[int]
  ) -> np.ndarray:
    """Applies random changes, determined by the key, to an image.

    Args:
      pixels: (any height, any width, 3) uint8.
      fit: The target size.
      key: Whole numbers of 0 or more; they alone determine the changes.

    Returns:
      (fit.height, fit.width, 3) uint8.

    >>> image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    >>> draw = Augmentation(crop='random', flip=0.5)
    >>> fit = Fit(2, 2, shorter=3)
    >>> bool(np.all(draw(image, fit, (0, 1)) == draw(image, fit, (0, 1))))
    True
    """
    rng = np.random.default_rng(tuple(key))
    if self.crop == 'random':
      pixels = fit.shortened(pixels)
      pixels = fit.cut(
        pixels, *(int(rng.integers(room + 1)) for room in fit.room(pixels))
      )
    elif self.crop == 'random_area':
      pixels = fit.stretched(self._part(pixels, rng))
    else:
      pixels = fit(pixels)
    if rng.random() < self.flip:
      pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)

  def _part(self, pixels, rng):
    """A part of random area and proportions; the whole image if none fits."""
    height, width = pixels.shape[:2]
    for _ in range(_TRIES):
      area = rng.uniform(*self.area) * height * width
      aspect = math.exp(rng.uniform(*map(math.log, self.aspect)))
      w = max(1, round(math.sqrt(area * aspect)))
      h = max(1, round(math.sqrt(area / aspect)))
      if w <= width and h <= height:
        top = int(rng.integers(height - h + 1))
        left = int(rng.integers(width - w + 1))
        return pixels[top : top + h, left : left + w]
    return pixels


# Training sees the same pixels as evaluation.
NO_AUGMENTATION = Augmentation()
