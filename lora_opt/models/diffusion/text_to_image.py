"""The text-to-image model that training and evaluation use."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lora_opt.data.captions import caption_ids, padded
from lora_opt.models.attend import check_implementation
from lora_opt.models.diffusion.network import TextToImageNetwork
from lora_opt.models.diffusion.pipeline_config import PipelineConfig
from lora_opt.models.diffusion.sampler import Sampler, Steps, advance
from lora_opt.models.language_model import check_tokenizer
from lora_opt.models.lora import LoraConfig, check_dtype
from lora_opt.models.model_files import ModelFiles
from lora_opt.models.variables import (
  Tree,
  abstract_params,
  apply_variables,
  init_adapter,
  init_collection,
  logical_axes,
)
from lora_opt.reading import values

Batch = Mapping[str, jax.Array]

REMATS = ('none', 'full')
# The four linear maps of every attention in the UNet, as in DreamBooth.
ATTENTION = r'unet/.*/attn[12]/to_(q|k|v|out\.0)'


@dataclasses.dataclass(frozen=True, eq=False)
class TextToImage:
  """A frozen diffusion model, its tokenizer and its adapter settings.

  Every method that computes is a pure function of its arguments, as in
  `LanguageModel`; `base` is {'unet', 'text_encoder', 'vae'}, without the last
  for a model of pixels.

  A batch has

    images       (rows, height, width, channels), uint8, or float32 from -1 to 1
    latents      instead of images: (rows, ...) float32, as `encode` returns
    tokens       (rows, length) int32, as `encode_texts` returns
    weights      (rows, 1) float32
    noise_seeds  (rows,) uint32, optional: seeds of each row's noise and time,
                 so that the loss is the same at every call
    timesteps    (rows,) int32, optional, with noise_seeds: the times

  Attributes:
    name: Name of the model.
    config: Sizes of the parts, how noise is added and images are sampled.
    tokenizer: Text to ids; None for a model of shapes.
    base: Frozen weights, a nested dict of arrays, or of their shapes.
    files: Writes the model to files, and reads adapters from files; such as
      `lora_opt.models.diffusion.formats.DIFFUSERS`.
    lora_config: Adapter settings, or None for a model without adapter.
      `target` is matched with paths such as
      'unet/down_blocks.0/attentions.1/transformer_blocks.0/attn1/to_q' and
      'text_encoder/encoder.layers/self_attn/q_proj', see `projections`.
    dtype: Type of the computation, 'float32' or 'bfloat16'.
    remat: What the backward pass keeps: 'none' recomputes nothing, 'full'
      recomputes every block.
    attention: How attention is computed, see `lora_opt.models.attend`.
    snr_gamma: Weights losses by the time, see `NoiseSchedule.loss_weights`;
      None for no weights.

  Raises:
    ValueError: For a target that matches no projection, a rank larger than a
      projection, an unknown `remat` or `attention`, adapter settings that these
      models do not support, or a tokenizer that does not fit.
  """

  batch_form: ClassVar[str] = 'text_to_image'

  name: str
  config: PipelineConfig
  tokenizer: Any | None
  base: Tree
  files: ModelFiles
  lora_config: LoraConfig | None = None
  dtype: str = 'float32'
  remat: str = 'none'
  attention: str = 'auto'
  snr_gamma: float | None = None

  def __post_init__(self):
    check_dtype(self.dtype)
    check_implementation(self.attention)
    values.one_of(self.remat, 'remat', REMATS)
    if self.snr_gamma is not None:
      values.number(self.snr_gamma, 'snr_gamma', above=0)
    if self.tokenizer is not None:
      check_tokenizer(self.config.text, self.tokenizer)
    lora = self.lora_config
    if lora is None:
      return
    for name in ('dora', 'start'):
      if getattr(lora, name):
        raise ValueError(
          f'LoRA {name}={getattr(lora, name)!r} is not supported for '
          'text-to-image models: leave it unset'
        )
    lora.sites(self.projections)

  @functools.cached_property
  def projections(self) -> dict[str, tuple[int, int]]:
    """Maps the path of each module that can be adapted to (fan_in, fan_out)."""
    found = {}
    for part in ('unet', 'text_encoder'):
      leaves, _ = jax.tree.flatten_with_path({part: self.base[part]})
      for path, leaf in leaves:
        *module, last = (key.key for key in path)
        if last == 'kernel':
          stacked = 'encoder.layers' in module
          *fan_in, fan_out = leaf.shape[stacked:]
          found['/'.join(module)] = (math.prod(fan_in), fan_out)
    return found

  @property
  def axis_units(self) -> Mapping[str, int]:
    """The number of parts each axis can be split into; heads stay whole."""
    heads = (*self.config.unet.heads, self.config.text.num_heads)
    return {'heads': math.gcd(*heads)}

  @property
  def image_size(self) -> int:
    """Height and width of the images that the weights were trained for."""
    return self.config.unet.sample_size * self.config.factor

  @property
  def row_length(self) -> tuple[int, int, int]:
    """The size of a row of a batch: image height, image width and tokens."""
    return self.image_size, self.image_size, self.config.text.max_length

  def init(self, rng: jax.Array) -> Tree:
    """Returns a fresh adapter: nested dict with lora_a and lora_b leaves."""
    if self.lora_config is None:
      return {}
    return init_adapter(self._network(self.lora_config), self.base, None, rng)

  def logical_axes(self) -> tuple[Tree, Tree]:
    """Names the axes of every array: trees of `PartitionSpec`."""
    return logical_axes(self._network(self.lora_config))

  def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
    """Returns token ids as Stable Diffusion reads them.

    Each text gets BOS and EOS, is truncated if it is longer than the text
    encoder has positions, and is padded to that length.

    Returns:
      (texts, length) int32.
    """
    tokenizer, length = self.tokenizer, self.config.text.max_length
    return np.stack(
      [padded(tokenizer, caption_ids(tokenizer, t), length) for t in texts]
    )

  def token_losses(
    self, base: Tree, lora: Tree | None, batch: Batch, rng=None
  ) -> jax.Array:
    """The mean squared error of the UNet's prediction for each row.

    Differentiable in `lora`; the gradient of `base` is zero by definition.

    Args:
      base: Frozen weights.
      lora: Adapter, or None for the base model.
      batch: Arrays by name, see the class.
      rng: Key for noise, times and the adapter's dropout. With noise_seeds in
        the batch, it is used for dropout only; None then means no dropout.

    Returns:
      (rows, 1) float32.

    Raises:
      ValueError: Neither `rng` nor noise_seeds are given.
    """
    return self.denoising_losses(jax.lax.stop_gradient(base), lora, batch, rng)

  def denoising_losses(
    self, base: Tree, lora: Tree | None, batch: Batch, rng=None
  ) -> jax.Array:
    """Like `token_losses`, but also differentiable in UNet and text encoder."""
    clean, noise, timesteps = self._drawn(base, batch, rng)
    schedule = self.config.noise
    noisy = schedule.add(clean, noise, timesteps)
    rngs = None if rng is None else {'dropout': rng}
    context = self._apply(base, lora, 'encode_text', batch['tokens'], rngs=rngs)
    said = self._apply(
      base, lora, 'predict', noisy, timesteps, context, rngs=rngs
    )
    error = said - schedule.target(clean, noise, timesteps)
    losses = jnp.mean(jnp.square(error), (1, 2, 3))
    if self.snr_gamma is not None:
      losses *= schedule.loss_weights(timesteps, self.snr_gamma)
    return losses[:, None]

  def encode(
    self, base: Tree, images: jax.Array, rng: jax.Array | None = None
  ) -> jax.Array:
    """Encodes images to what the UNet denoises: latents, or pixels.

    Args:
      base: Frozen weights.
      images: As in a batch.
      rng: Key for drawing a sample of the latents; None for their mean.

    Returns:
      (rows, height / factor, width / factor, channels) float32.
    """
    mean, deviation = self._apply(base, None, 'encode', _scaled(images))
    if rng is None:
      return mean
    return mean + deviation * jax.random.normal(rng, mean.shape)

  def sample(
    self,
    base: Tree,
    lora: Tree | None,
    tokens: jax.Array,
    negative_tokens: jax.Array | None = None,
    *,
    seed: int = 0,
    steps: int = 50,
    guidance_scale: float = 7.5,
    scheduler: Sampler | str | None = None,
    size: tuple[int, int] | None = None,
    noise: jax.Array | None = None,
  ) -> jax.Array:
    """Samples images of texts, compiled for each number of rows and of steps.

    Args:
      base: Frozen weights.
      lora: Adapter, or None for the base model.
      tokens: (rows, length) int32, see `encode_texts`.
      negative_tokens: Texts to guide away from, of the same shape; None for
        empty texts.
      seed: Seed of the noise. Row i does not depend on the number of rows.
      steps: Number of steps of the sampler.
      guidance_scale: Strength of the guidance away from the negative texts
        (arXiv 2207.12598); they are ignored if it is 1 or less.
      scheduler: A `Sampler`, or 'ddim', 'euler' or 'dpm_solver' for that
        sampler with the model's own settings as far as it shares them; None for
        the model's own sampler.
      size: Height and width of an image; None for those that the weights were
        trained for.
      noise: Standard normal noise to use instead of the seed's, (rows, ...) as
        `encode` returns.

    Returns:
      (rows, height, width, channels) float32, from 0 to 1.

    Raises:
      ValueError: For a bad number of steps, scheduler name or size.
    """
    sampler = self.sampler(scheduler)
    schedule = self.config.noise
    numbers = sampler.steps(schedule, steps)
    guided = guidance_scale > 1
    if guided and negative_tokens is None:
      empty = self.encode_texts([''])
      negative_tokens = np.broadcast_to(empty, tokens.shape)
    if noise is None:
      noise = self.start_noise(seed, tokens.shape[0], size)
    start = noise * jnp.float32(sampler.start_scale(schedule, steps))
    return _sample(
      self,
      sampler.clip,
      base,
      lora,
      tokens,
      negative_tokens if guided else None,
      start,
      jnp.float32(guidance_scale),
      numbers,
    )

  def sampler(self, scheduler: Sampler | str | None = None) -> Sampler:
    """Returns the sampler that `sample` uses for a `scheduler`."""
    own = self.config.sampler
    if scheduler is None or scheduler == own.kind:
      return own
    if isinstance(scheduler, Sampler):
      return scheduler
    clip = own.clip if scheduler == 'ddim' else None
    return Sampler(
      kind=scheduler, spacing=own.spacing, offset=own.offset, clip=clip
    )

  def start_noise(
    self, seed: int, rows: int, size: tuple[int, int] | None = None
  ) -> jax.Array:
    """Standard normal noise to sample from; the arguments are `sample`'s.

    Raises:
      ValueError: If `size` is not a multiple of the pixels per latent.
    """
    height, width = size or (self.image_size, self.image_size)
    factor = self.config.factor
    if height % factor or width % factor or min(height, width) < 1:
      raise ValueError(
        f'size={size!r}: height and width must be multiples of {factor}'
      )
    shape = (height // factor, width // factor, self.config.unet.in_channels)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.key(seed), jnp.arange(rows)
    )
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

  def export(self, folder: str | os.PathLike, lora: Tree) -> None:
    """Writes the adapter in diffusers' format; see `diffusion.adapter_file`."""
    self.files.export(folder, lora, self)

  def load_adapter(self, folder: str | os.PathLike) -> Tree:
    """Reads an adapter of diffusers or kohya; see `diffusion.adapter_file`."""
    return self.files.load_adapter(folder, self)

  def merge(
    self,
    folder: str | os.PathLike,
    lora: Tree | None,
    *,
    source: str | os.PathLike | None = None,
    dtype: str | None = None,
  ) -> None:
    """Writes base and adapter as one diffusers folder; see `diffusion.save`."""
    self.files.merge(folder, lora, self, source=source, dtype=dtype)

  def _drawn(self, base, batch, rng):
    """Clean images (or latents), noise and times of each row."""
    rows = batch['tokens'].shape[0]
    if 'noise_seeds' in batch:
      keys = jax.vmap(jax.random.key)(batch['noise_seeds'])
    elif rng is None:
      raise ValueError(
        'the loss of a text-to-image model needs noise: give rng, or '
        'noise_seeds in the batch for the same noise at every call'
      )
    else:
      keys = jax.random.split(rng, rows)
    noise_keys, time_keys, latent_keys = jax.vmap(
      lambda key: jax.random.split(key, 3), out_axes=1
    )(keys)
    clean = self._clean(base, batch, latent_keys)
    noise = jax.vmap(lambda key, x: jax.random.normal(key, x.shape))(
      noise_keys, clean
    )
    timesteps = batch.get('timesteps')
    if timesteps is None:
      count = self.config.noise.timesteps
      timesteps = jax.vmap(
        lambda key: jax.random.randint(key, (), 0, count, jnp.int32)
      )(time_keys)
    return clean, noise, timesteps

  def _clean(self, base, batch, keys):
    if 'latents' in batch:
      return batch['latents'].astype(jnp.float32)
    images = _scaled(batch['images'])
    mean, deviation = self._apply(base, None, 'encode', images)
    if self.config.vae is None:
      return mean
    draw = jax.vmap(lambda key, x: jax.random.normal(key, x.shape))
    # The autoencoder is never trained here.
    return jax.lax.stop_gradient(mean + deviation * draw(keys, mean))

  def _apply(self, base, lora, method, *inputs, rngs=None):
    network = self._network(None if lora is None else self.lora_config)
    variables = apply_variables(base, lora)
    return network.apply(variables, *inputs, method=method, rngs=rngs)

  def _network(self, lora: LoraConfig | None) -> TextToImageNetwork:
    return TextToImageNetwork(
      lora,
      jnp.dtype(self.dtype),
      self._param_dtype,
      self.config,
      self.remat,
      self.attention,
    )

  @property
  def _param_dtype(self) -> jnp.dtype:
    return jax.tree.leaves(self.base)[0].dtype


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample(
  model: TextToImage,
  clip: float | None,
  base: Tree,
  lora: Tree | None,
  tokens: jax.Array,
  negative_tokens: jax.Array | None,
  start: jax.Array,
  guidance_scale: jax.Array,
  numbers: Steps,
) -> jax.Array:
  guided = negative_tokens is not None
  if guided:
    tokens = jnp.concatenate([negative_tokens, tokens])
  context = model._apply(base, lora, 'encode_text', tokens)

  def answer(x, timestep):
    if guided:
      x = jnp.concatenate([x, x])
    timesteps = jnp.full(x.shape[:1], timestep)
    said = model._apply(base, lora, 'predict', x, timesteps, context)
    if not guided:
      return said
    away, towards = jnp.split(said, 2)
    return away + guidance_scale * (towards - away)

  def one(carry, step):
    x, before = carry
    said = answer(x * step.scale, step.timestep)
    carry = advance(
      step,
      x,
      said,
      before,
      prediction=model.config.noise.prediction,
      clip=clip,
    )
    return carry, None

  numbers = jax.tree.map(jnp.asarray, numbers)
  (x, _), _ = jax.lax.scan(one, (start, jnp.zeros_like(start)), numbers)
  images = model._apply(base, lora, 'decode', x)
  return jnp.clip(images / 2 + 0.5, 0.0, 1.0)


def on_attention(lora: LoraConfig | None) -> LoraConfig | None:
  """Replaces the default target in adapter settings by `ATTENTION`.

  The default is meant for language models; it would match text encoders only.
  """
  if lora is None or lora.target != LoraConfig.target:
    return lora
  return dataclasses.replace(lora, target=ATTENTION)


def init_base(config: PipelineConfig, rng: jax.Array, dtype: str) -> Tree:
  """Random base weights, as for training from scratch."""
  return init_collection(_plain_network(config, dtype), 'params', rng)


@functools.lru_cache(maxsize=8)
def abstract_base(config: PipelineConfig) -> Tree:
  """Shapes of the base weights: a tree of `jax.ShapeDtypeStruct`."""
  return abstract_params(_plain_network(config, 'float32'))


def _plain_network(config: PipelineConfig, dtype: str) -> TextToImageNetwork:
  dtype = jnp.dtype(dtype)
  return TextToImageNetwork(None, dtype, dtype, config)


def _scaled(images: jax.Array) -> jax.Array:
  """Returns images from -1 to 1; converts bytes."""
  if images.dtype == jnp.uint8:
    return images.astype(jnp.float32) / 127.5 - 1
  return images.astype(jnp.float32)
