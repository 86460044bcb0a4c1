"""From an image of any size to the pixels that a model takes, or trains on.

Everything random follows from a key of whole numbers, such as seed, epoch and
place: the same key gives the same pixels, in whatever process.
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
_LARGEST = 2**13  # of a side
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Fit:
  """The size that images are brought to, and how.

  Attributes:
    height, width: Of the result.
    shorter: None stretches an image to this size whatever its proportions
      were, as ViT has it. A number makes its shorter side so long, keeps the
      proportions, and cuts the size out of the middle, as CLIP has it.
    resample: How pixels are interpolated, a name of `RESAMPLES`.

  Raises:
    ValueError: A setting is out of bounds, or the size is larger than what it
      is cut out of.
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
    """Brings an image to the size.

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
    """The whole image in the size, whatever its proportions are."""
    return self._resized(pixels, self.height, self.width)

  def shortened(
    self, pixels: np.ndarray, shorter: int | None = None
  ) -> np.ndarray:
    """The whole image, its shorter side so long; by default as `Fit` says."""
    shorter = shorter or self.shorter or self._longer
    height, width = pixels.shape[:2]
    # Rounded down, as transformers does.
    longer = shorter * max(height, width) // min(height, width)
    size = (longer, shorter) if height > width else (shorter, longer)
    return self._resized(pixels, *size)

  def room(self, pixels: np.ndarray) -> tuple[int, int]:
    """By how much an image is higher and wider than the size."""
    return pixels.shape[0] - self.height, pixels.shape[1] - self.width

  def cut(self, pixels: np.ndarray, top: int, left: int) -> np.ndarray:
    """The size, cut out of an image at a place."""
    return pixels[top : top + self.height, left : left + self.width]

  def _resized(self, pixels, height, width):
    if pixels.shape[:2] == (height, width):
      return pixels
    method = RESAMPLES[self.resample]
    image = Image.fromarray(pixels).resize((width, height), method)
    return np.array(image)


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What is drawn anew each time an image is trained on.

  Attributes:
    crop: 'none' brings images to size as for evaluation. 'random' makes the
      shorter side as `Fit` has it and cuts the size out anywhere (DreamBooth).
      'random_area' cuts out a part of random area and proportions and
      stretches it to the size (Inception's crop, torchvision's
      RandomResizedCrop).
    area: Smallest and largest share of the image that 'random_area' takes.
    aspect: Smallest and largest width over height that it takes.
    flip: Probability that left and right are exchanged.

  Raises:
    ValueError: An unknown crop, or bounds that are none.

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
    """An image as it is trained on this time.

    Args:
      pixels: (any height, any width, 3) uint8.
      fit: The size.
      key: Whole numbers from 0 on; they alone decide what is drawn.

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
    """A part of random area and proportions, the whole if none fits."""
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


# Images are trained on as they are evaluated.
NO_AUGMENTATION = Augmentation()
