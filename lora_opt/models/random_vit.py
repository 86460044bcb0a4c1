"""A tiny vision transformer with random weights, for smoke runs and tests."""

import jax

from lora_opt.data.images import Fit, ImageProcessor
from lora_opt.models.frozen import with_base
from lora_opt.models.lora import LoraConfig, check_dtype
from lora_opt.models.pretrained.families.vit import VIT
from lora_opt.models.vision.classifier import (
  ImageClassifier,
  abstract_base,
  init_base,
)
from lora_opt.models.vision.config import VisionConfig


def random_vit(
  lora: LoraConfig | None = None,
  *,
  outputs: int = 2,
  seed: int = 0,
  dtype: str = 'float32',
  param_dtype: str | None = None,
  remat: str = 'projections',
  unroll: int = 1,
  attention: str = 'auto',
  quantize: str | None = None,
  dropout: float = 0.0,
  head_dropout: float = 0.0,
  **config,
) -> ImageClassifier:
  """A ViT of any size with random weights.

  Args:
    lora: Adapter settings, or None for no adapter.
    outputs: Number of labels.
    seed: Seed of the weights.
    dtype: Type of the computation.
    param_dtype: Type of the stored weights, by default `dtype`.
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan over layers.
    attention: How attention is computed, see `lora_opt.models.attend`.
    quantize: Kind of quantization of the kernels of projections, see
      `from_folder`.
    dropout: Rate on hidden states during training.
    head_dropout: Rate before the last linear map of the head during training.
    **config: Fields of `VisionConfig` that differ from the tiny default.

  Returns:
    The model.

  Raises:
    ValueError: If the settings contradict each other.

  >>> random_vit(LoraConfig(rank=2), num_layers=1).config.tokens
  17
  """
  sizes = {
    'image_height': 16,
    'image_width': 16,
    'patch_height': 4,
    'patch_width': 4,
    'embed_dim': 32,
    'num_layers': 2,
    'num_heads': 4,
    'mlp_dim': 64,
  }
  config = VisionConfig(**(sizes | config))
  stored = param_dtype or dtype
  check_dtype(stored)
  model = ImageClassifier(
    name='random',
    family=VIT,
    config=config,
    tokenizer=ImageProcessor(Fit(config.image_height, config.image_width)),
    base=abstract_base(config),
    lora_config=lora,
    dtype=dtype,
    remat=remat,
    unroll=unroll,
    attention=attention,
    outputs=outputs,
    dropout=dropout,
    head_dropout=head_dropout,
  )
  base = init_base(config, jax.random.key(seed), stored)
  return with_base(model, base, quantize)
