"""The images that a network expects: their size and the scale of the pixels."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

from lora_opt import writing
from lora_opt.data.images.fitting import RESAMPLES, Fit
from lora_opt.reading import values

FILE = 'preprocessor_config.json'


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
  """How images of any size become the pixels that a network reads.

  It plays the role that a tokenizer plays for texts. Resizing happens when a
  batch is made, in uint8; scaling on the device: (pixel * scale - mean) / std.

  Attributes:
    fit: The target size, and how it is reached.
    scale: Factor of the pixels, from 0 to 255, before the mean is subtracted.
    mean, std: Mean and standard deviation of red, green and blue.

  Raises:
    ValueError: A value is not a number, or the scale or a standard deviation is
      not above 0.
  """

  fit: Fit
  scale: float = 1 / 255
  mean: Sequence[float] = (0.5, 0.5, 0.5)
  std: Sequence[float] = (0.5, 0.5, 0.5)

  def __post_init__(self):
    values.number(self.scale, 'ImageProcessor: scale', above=0)
    for name, above in (('mean', None), ('std', 0)):
      found = values.items(list(getattr(self, name)), name, size=3)
      for one in found:
        values.number(one, f'ImageProcessor: {name}', above=above)
      object.__setattr__(self, name, tuple(map(float, found)))

  @property
  def digest(self) -> str:
    """A hash of everything that determines what a network reads."""
    return hashlib.sha256(repr(self).encode()).hexdigest()

  def save(self, folder: str | os.PathLike) -> None:
    """Writes preprocessor_config.json, as transformers reads it for ViT.

    Raises:
      ValueError: Images are cropped, which ViT's class cannot express.
    """
    if self.fit.shorter is not None:
      raise ValueError(
        f'{FILE} of a processor that cuts out the middle can only be copied: '
        'give source, the Hugging Face folder that the model came from'
      )
    content = {
      'image_processor_type': 'ViTImageProcessor',
      'do_resize': True,
      'size': {'height': self.fit.height, 'width': self.fit.width},
      'resample': int(RESAMPLES[self.fit.resample]),
      'do_rescale': True,
      'rescale_factor': self.scale,
      'do_normalize': True,
      'image_mean': list(self.mean),
      'image_std': list(self.std),
    }
    text = json.dumps(content, indent=2) + '\n'
    writing.write_text(pathlib.Path(folder) / FILE, text)
