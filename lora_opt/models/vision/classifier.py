"""A vision transformer with a head for labels, for training and evaluation."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from lora_opt.models.classifier import Batch, Classifier
from lora_opt.models.variables import Tree, abstract_params, init_collection
from lora_opt.models.vision.config import VisionConfig
from lora_opt.models.vision.encoder import VisionEncoder, VisionHead


@dataclasses.dataclass(frozen=True, eq=False)
class ImageClassifier(Classifier):
  """A frozen vision transformer, its adapter settings, and a head.

  Its `tokenizer` is the `ImageProcessor`, which resizes images and sets how
  their pixels are normalised; without one pixels are scaled to 0 to 1. A batch
  has images (rows, height, width, 3) uint8, and one column of labels and
  weights. `head` may contain 'out'. See `Classifier` for the rest.

  Raises:
    ValueError: If settings do not fit together, such as a processor for images
      of another size than the network's.
  """

  network: ClassVar = VisionEncoder
  network_head: ClassVar = VisionHead
  batch_form: ClassVar[str] = 'image'
  # PEFT has no task type for images, and each of its types selects a class for
  # texts.
  task_type: ClassVar[None] = None

  @property
  def row_length(self) -> tuple[int, int]:
    """Size of a row of a batch: height and width of an image."""
    return self.config.image_height, self.config.image_width

  def pooled(
    self, base: Tree, trainable: Tree | None, batch: Batch
  ) -> jax.Array:
    """The pooled input of the head for each image: for probes and inspection.

    Returns:
      (rows, embed) float32.
    """
    return self._head.pool(self._hidden(base, trainable, batch, None))

  def _check_tokenizer(self):
    c, fit = self.config, self.tokenizer.fit
    if (fit.height, fit.width) != (c.image_height, c.image_width):
      raise ValueError(
        f'{self.name}: images are brought to {fit.height} x {fit.width} pixels '
        f'(preprocessor_config.json), the network reads {c.image_height} x '
        f'{c.image_width} (config.json): take files that belong together'
      )

  def _hidden(self, base, trainable, batch, rngs):
    images, c = batch['images'], self.config
    if images.shape[1:3] != (c.image_height, c.image_width):
      raise ValueError(
        f'images of {images.shape[1]} x {images.shape[2]} pixels for '
        f'{self.name}, which reads {c.image_height} x {c.image_width}'
      )
    network, variables = self._with(base, trainable)
    return network.apply(variables, self._normalised(images), rngs=rngs)

  def _normalised(self, images: jax.Array) -> jax.Array:
    """Pixels in float32, normalised as the weights expect."""
    scale, mean, std = 1 / 255, (0.0,) * 3, (1.0,) * 3
    if self.tokenizer is not None:
      t = self.tokenizer
      scale, mean, std = t.scale, t.mean, t.std
    pixels = images.astype(jnp.float32) * scale
    mean, std = (
      jnp.broadcast_to(jnp.asarray(x, jnp.float32), pixels.shape)
      for x in (mean, std)
    )
    return (pixels - mean) / std

  def _read(self, variables, hidden, batch, rngs):
    return self._head.apply(variables, hidden, rngs=rngs)[:, None]


def init_base(config: VisionConfig, rng: jax.Array, dtype: str) -> Tree:
  """Random base weights, as for training from scratch."""
  network = VisionEncoder(config, param_dtype=jnp.dtype(dtype))
  return init_collection(network, 'params', rng)


def abstract_base(config: VisionConfig) -> Tree:
  """Shapes of the base weights: a tree of `jax.ShapeDtypeStruct`."""
  return abstract_params(VisionEncoder(config))


def abstract_head(config: VisionConfig, outputs: int) -> Tree:
  """Shapes of the head's weights: a tree of `jax.ShapeDtypeStruct`."""
  return abstract_params(VisionHead(config, outputs))
