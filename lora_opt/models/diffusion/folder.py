"""Text-to-image models from the folders of diffusers, without torch."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from lora_opt.data import hub
from lora_opt.data.tokenizer import Tokenizer
from lora_opt.data.tokenizer_folder import open_tokenizer
from lora_opt.models.diffusion.formats import DIFFUSERS
from lora_opt.models.diffusion.names import tensor_names
from lora_opt.models.diffusion.part_files import (
  read_clip_text,
  read_unet,
  read_vae,
)
from lora_opt.models.diffusion.pipeline_config import PipelineConfig
from lora_opt.models.diffusion.scheduler_file import read_scheduler
from lora_opt.models.diffusion.text_to_image import (
  TextToImage,
  abstract_base,
  on_attention,
)
from lora_opt.models.diffusion.weights import PARTS, open_part
from lora_opt.models.lora import LoraConfig, check_dtype
from lora_opt.models.pretrained.assemble import assemble, check_tensors
from lora_opt.models.pretrained.family import slots
from lora_opt.reading import values
from lora_opt.reading.json_text import read_json

# diffusers' classes of the parts that are read.
_CLASSES = {
  'unet': ('UNet2DConditionModel',),
  'text_encoder': ('CLIPTextModel',),
  'tokenizer': (
    'CLIPTokenizer',
    'CLIPTokenizerFast',
    'PreTrainedTokenizerFast',
  ),
  'scheduler': None,  # its own file says which
  'vae': ('AutoencoderKL',),
}
# Parts that are used neither in training nor in sampling.
_UNUSED = ('safety_checker', 'feature_extractor', 'image_encoder')
_HARMLESS = (
  '_class_name',
  '_diffusers_version',
  '_name_or_path',
  'requires_safety_checker',
)


def from_diffusers(
  path: str | os.PathLike,
  *,
  lora: LoraConfig | None = None,
  name: str | None = None,
  dtype: str = 'float32',
  param_dtype: str | None = None,
  remat: str = 'none',
  attention: str = 'auto',
  snr_gamma: float | None = None,
  partitioner: Any | None = None,
  variant: str | None = None,
  weights: bool = True,
) -> TextToImage:
  """Loads a Stable Diffusion model as diffusers saves it.

  Args:
    path: Folder with model_index.json, unet/, text_encoder/, vae/, tokenizer/
      and scheduler/. If model_index.json has [null, null] for the vae, the
      model works on pixels.
    lora: Adapter settings, None for none; see `TextToImage`. The default target
      is replaced by the attention of the UNet.
    name: Name of the model, by default the path.
    dtype: Type of the computation, 'float32' or 'bfloat16'.
    param_dtype: Type of the stored weights, by default `dtype`.
    remat: What the backward pass keeps, see `TextToImage`.
    attention: How attention is computed, see `lora_opt.models.attend`.
    snr_gamma: See `TextToImage`.
    partitioner: Places the weights on a mesh; None for one device. They are
      read shard by shard.
    variant: Which of several files of weights, such as 'fp16'; None for those
      without a variant, or the only ones.
    weights: False reads only the settings, and the folder needs no other files.
      The model then has shapes for weights and no tokenizer; use it to plan.

  Returns:
    The model.

  Raises:
    FileNotFoundError: If the folder or a file in it is missing.
    ValueError: If a file is damaged, or a pickle; the pipeline, a part or a
      setting is not supported; a tensor is missing, unknown, mis-shaped or
      wrongly typed; or the parts do not fit together.
  """
  folder = hub.pipeline_folder(path, variant)
  if not folder.is_dir():
    raise FileNotFoundError(f'no model folder at {folder}')
  config = read_pipeline(folder)
  stored = param_dtype or dtype
  check_dtype(stored)
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(stored)),
    abstract_base(config),
  )

  def model(tokenizer, base):
    return TextToImage(
      name=name or hub.plain_name(path),
      config=config,
      tokenizer=tokenizer,
      base=base,
      files=DIFFUSERS,
      lora_config=on_attention(lora),
      dtype=dtype,
      remat=remat,
      attention=attention,
      snr_gamma=snr_gamma,
    )

  if not weights:
    return model(None, shapes)
  # Built before the weights are read, so that wrong settings fail early.
  tokenizer = _tokenizer(folder / 'tokenizer', config)
  planned = model(tokenizer, shapes)
  placed = partitioner.place(planned).base if partitioner else {}
  return model(tokenizer, _read(folder, shapes, variant, stored, placed))


def read_pipeline(folder: pathlib.Path) -> PipelineConfig:
  """Reads the settings of every part.

  Args:
    folder: With model_index.json and the parts that it lists.

  Raises the same errors as `from_diffusers`.
  """
  with_vae = _check_index(folder)
  noise, sampler = read_scheduler(folder / 'scheduler/scheduler_config.json')
  try:
    return PipelineConfig(
      read_unet(folder / 'unet/config.json'),
      read_clip_text(folder / 'text_encoder/config.json'),
      read_vae(folder / 'vae/config.json') if with_vae else None,
      noise,
      sampler,
    )
  except ValueError as error:
    if str(folder) in str(error):
      raise
    raise ValueError(f'{folder}: {error}') from error


def _check_index(folder: pathlib.Path) -> bool:
  """Checks model_index.json and returns whether it has a vae."""
  file = folder / 'model_index.json'
  found = read_json(file)
  values.one_of(
    found.get('_class_name'),
    f'{file}: _class_name',
    ('StableDiffusionPipeline',),
  )
  parts = {
    name: (None, None)
    if value is None
    else tuple(values.items(value, f'{file}: {name}', 2))
    for name, value in found.items()
    if name not in _HARMLESS
  }
  if unknown := sorted(parts.keys() - {*_CLASSES, *_UNUSED}):
    raise ValueError(
      f'{file} has parts unknown here, which may change what the model '
      f'computes: {", ".join(map(values.plain, unknown))}'
    )
  for name, classes in _CLASSES.items():
    _, kind = parts.get(name, (None, None))
    if kind is None and name != 'vae':
      raise ValueError(f'{file} has no {name}')
    if kind is not None and classes is not None:
      values.one_of(kind, f'{file}: {name}', classes)
  if parts.get('safety_checker', (None, None))[1] is not None:
    logging.info('%s: its safety checker is not used here', folder)
  return parts.get('vae', (None, None))[1] is not None


def _tokenizer(folder: pathlib.Path, config: PipelineConfig) -> Tokenizer:
  if not folder.is_dir():
    raise FileNotFoundError(
      f'no folder {folder}: a part of the model is missing; get it again'
    )
  tokenizer = open_tokenizer(folder)
  if not isinstance(tokenizer, Tokenizer):
    raise ValueError(f'{folder}: a SentencePiece model is not supported here')
  for name in ('bos_id', 'eos_id'):
    if getattr(tokenizer, name) is None:
      raise ValueError(
        f'{folder}: the tokenizer has no {name[:3]}_token, which opens or ends '
        'every text of a text encoder; name it in tokenizer_config.json'
      )
  return tokenizer.without_tokens_from(config.text.vocab_size)


def _read(folder, shapes, variant, dtype, placed: Mapping[str, Any]):
  """Reads the weights of all parts, after checking all names and shapes."""
  opened = {}
  for part in PARTS:
    if part.name in shapes:
      tensors = open_part(folder, part, variant)
      names = tensor_names(shapes[part.name])
      expected = slots(shapes[part.name], names)
      check_tensors(str(folder / part.name), expected, tensors)
      opened[part.name] = names, tensors
  return {
    name: assemble(
      str(folder / name),
      shapes[name],
      names,
      tensors,
      dtype,
      jax.tree.leaves(placed[name]) if placed else None,
    )
    for name, (names, tensors) in opened.items()
  }
