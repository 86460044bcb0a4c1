"""Llama-family models from Hugging Face folders, without torch."""

import os
import pathlib

import numpy as np

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.causal_lm import CausalLM, check_settings
from lora_opt.models.config import DecoderConfig
from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.files import open_safetensors, read_json
from lora_opt.models.pretrained.llama import assemble

# config.json settings that would change the computation: the value we have.
FIXED = {
  'hidden_act': 'silu',
  'attention_bias': False,
  'mlp_bias': False,
  'sliding_window': None,
}


def from_folder(
  path: str | os.PathLike,
  *,
  lora: LoraConfig | None = None,
  name: str | None = None,
  dtype: str = 'float32',
  param_dtype: str | None = None,
  remat: str = 'projections',
  unroll: int = 1,
) -> CausalLM:
  """Loads a Llama-family model as Hugging Face saves it.

  Args:
    path: Folder with config.json, tokenizer.json and model.safetensors, or
      several weight files with model.safetensors.index.json.
    lora: Adapter settings, None for none.
    name: Name of the model, by default the path.
    dtype: Type of the computation, 'float32' or 'bfloat16'.
    param_dtype: Type of the stored weights, by default `dtype`.
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan over layers.

  Returns:
    The model.

  Raises:
    FileNotFoundError: If the folder or a file in it is missing.
    ValueError: If a file is damaged or cut short, the architecture is not
      Llama, or the parts do not fit together.
  """
  folder = pathlib.Path(path)
  if not folder.is_dir():
    raise FileNotFoundError(f'no model folder at {folder}')
  config = read_config(folder / 'config.json')
  tokenizer = Tokenizer.from_folder(folder)
  stored = param_dtype or dtype
  check_settings(config, tokenizer, lora, remat, dtype, stored)
  tensors = {}
  for file in _weight_files(folder):
    tensors |= open_safetensors(file)
  if config.tie_embeddings:
    tensors.pop('lm_head.weight', None)  # a copy of the embedding
  tensors = {
    key: tensor
    for key, tensor in tensors.items()
    if not key.endswith('rotary_emb.inv_freq')  # old files; follows from config
  }
  shapes = {key: tensor.shape for key, tensor in tensors.items()}
  base = assemble(
    str(folder), config, stored, 'hugging_face', shapes, tensors.__getitem__
  )
  return CausalLM(
    name or str(folder), config, tokenizer, base, lora, dtype, remat, unroll
  )


def read_config(file: pathlib.Path) -> DecoderConfig:
  """Reads the sizes of a Llama model from a config.json.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it is not JSON or describes something else than Llama.
  """
  found = read_json(file)
  kind = found.get('model_type')
  if kind not in ('llama', 'mistral'):
    raise ValueError(
      f'{file}: model_type {kind!r} is not supported; llama and mistral are'
    )
  for key, value in FIXED.items():
    if found.get(key, value) != value:
      raise ValueError(
        f'{file}: {key}={found[key]!r} is not supported, only {value!r} is'
      )
  try:
    heads = found['num_attention_heads']
    head_dim = found.get('head_dim') or found['hidden_size'] // heads
    theta, divisors = _rope(file, found, head_dim)
    return DecoderConfig(
      vocab_size=found['vocab_size'],
      embed_dim=found['hidden_size'],
      num_layers=found['num_hidden_layers'],
      num_heads=heads,
      num_kv_heads=found.get('num_key_value_heads') or heads,
      head_dim=head_dim,
      mlp_dim=found['intermediate_size'],
      rope_theta=theta,
      rope_divisors=divisors,
      norm_eps=found['rms_norm_eps'],
      tie_embeddings=found.get('tie_word_embeddings', False),
      max_length=found.get('max_position_embeddings', 2048),
    )
  except KeyError as error:
    raise ValueError(f'{file} has no {error}') from error


def _rope(file, found, head_dim):
  """Returns theta and the divisors of the frequencies."""
  # transformers 5 keeps theta inside rope_parameters, older ones outside.
  rope = found.get('rope_parameters') or found.get('rope_scaling') or {}
  theta = float(rope.get('rope_theta') or found.get('rope_theta') or 10_000.0)
  kind = rope.get('rope_type') or rope.get('type') or 'default'
  if kind == 'default':
    return theta, ()
  if kind == 'linear':
    return theta, (float(rope['factor']),) * (head_dim // 2)
  if kind != 'llama3':
    raise ValueError(
      f'{file}: rope scaling {kind!r} is not supported; default, linear and '
      'llama3 are'
    )
  wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
  turns = rope['original_max_position_embeddings'] / wavelengths
  low, high = rope['low_freq_factor'], rope['high_freq_factor']
  # 0 for wavelengths beyond the original context, 1 for short ones.
  smooth = np.clip((turns - low) / (high - low), 0, 1)
  frequency = (1 - smooth) / rope['factor'] + smooth
  return theta, tuple(float(x) for x in 1 / frequency)


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  index = folder / 'model.safetensors.index.json'
  names = {'model.safetensors'}
  if index.is_file():
    names = set(read_json(index).get('weight_map', {}).values())
  return [folder / name for name in sorted(names)]
