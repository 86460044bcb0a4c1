"""Text-to-image models with random weights, for smoke runs and tests."""

import os
import pathlib
from typing import Any

import jax

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.diffusion.clip_text_config import ClipTextConfig
from lora_opt.models.diffusion.folder import read_pipeline
from lora_opt.models.diffusion.formats import DIFFUSERS
from lora_opt.models.diffusion.noise import NoiseSchedule
from lora_opt.models.diffusion.pipeline_config import PipelineConfig
from lora_opt.models.diffusion.sampler import Sampler
from lora_opt.models.diffusion.text_to_image import (
  TextToImage,
  init_base,
  on_attention,
)
from lora_opt.models.diffusion.unet_config import UNetConfig
from lora_opt.models.diffusion.vae_config import VaeConfig
from lora_opt.models.lora import LoraConfig, check_dtype


def random_pipeline(
  lora: LoraConfig | None = None,
  *,
  config: PipelineConfig | None = None,
  configs: str | os.PathLike | None = None,
  tokenizer: Tokenizer | None = None,
  seed: int = 0,
  dtype: str = 'float32',
  param_dtype: str | None = None,
  remat: str = 'none',
  attention: str = 'auto',
  snr_gamma: float | None = None,
) -> TextToImage:
  """Makes a text-to-image model of any size with random weights.

  Args:
    lora: Adapter settings, None for none. The default target is replaced by the
      attention of the UNet.
    config: Sizes of the parts; by default a tiny model of 16 x 16 pixels
      with an autoencoder.
    configs: A folder with the settings of every part, instead of `config`.
    tokenizer: Text to ids; by default one token per byte.
    seed: Seed of the weights.
    dtype: Type of the computation.
    param_dtype: Type of the stored weights, by default `dtype`.
    remat: What the backward pass keeps, see `TextToImage`.
    attention: How attention is computed, see `lora_opt.models.attend`.
    snr_gamma: See `TextToImage`.

  Returns:
    The model.

  Raises:
    ValueError: If the settings contradict each other, or both `config` and
      `configs` are given.
  """
  if config is not None and configs is not None:
    raise ValueError('config and configs are both given: give one of them')
  if configs is not None:
    config = read_pipeline(pathlib.Path(configs))
  stored = param_dtype or dtype
  check_dtype(stored)
  config = config or tiny()
  return TextToImage(
    name='random',
    config=config,
    tokenizer=tokenizer or Tokenizer.byte_level(),
    base=init_base(config, jax.random.key(seed), stored),
    files=DIFFUSERS,
    lora_config=on_attention(lora),
    dtype=dtype,
    remat=remat,
    attention=attention,
    snr_gamma=snr_gamma,
  )


def tiny(*, pixels: bool = False, **noise: Any) -> PipelineConfig:
  """Returns the config of a model that is built and run within seconds.

  Args:
    pixels: Whether to leave out the autoencoder.
    **noise: Fields of `NoiseSchedule` that differ from the defaults.
  """
  channels = 3 if pixels else 4
  unet = UNetConfig(
    sample_size=8,
    in_channels=channels,
    out_channels=channels,
    channels=(8, 16),
    down_cross=(True, False),
    up_cross=(False, True),
    layers=(1, 1),
    heads=(2, 2),
    depths=(1, 1),
    context_dims=(16, 16),
    only_cross=(False, False),
    groups=4,
    time_dim=32,
  )
  text = ClipTextConfig(
    vocab_size=Tokenizer.byte_level().vocab_size,
    embed_dim=16,
    num_layers=2,
    num_heads=2,
    mlp_dim=32,
    max_length=24,
  )
  vae = VaeConfig(sample_size=16, channels=(8, 8), layers=1, groups=4)
  return PipelineConfig(
    unet,
    text,
    None if pixels else vae,
    NoiseSchedule(**noise),
    Sampler(clip=1.0) if pixels else Sampler(),
  )
