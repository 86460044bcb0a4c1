"""Adapters in the format of PEFT: adapter_model.safetensors and its config.

Written and read without torch. PEFT keeps lora_A as (rank, fan_in) and lora_B
as (fan_out, rank), one tensor per layer.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from lora_opt.models.pretrained.files import open_safetensors, read_json

if TYPE_CHECKING:
  from lora_opt.models.causal_lm import CausalLM, Tree

WEIGHTS, CONFIG = 'adapter_model.safetensors', 'adapter_config.json'
FACTORS = {'lora_a': 'lora_A', 'lora_b': 'lora_B'}


def export_adapter(
  folder: str | os.PathLike, lora: Tree, model: CausalLM
) -> None:
  """Writes an adapter that `peft` loads onto the same base model.

  Args:
    folder: Where to write; made if it does not exist.
    lora: The adapter.
    model: Supplies the settings and the name of the base.

  Raises:
    ValueError: If the model has no adapter settings.
  """
  config = _peft_config(model)
  tensors = {}
  for path, factor in _leaves(lora):
    name = _peft_name(path)
    for layer, matrix in enumerate(np.asarray(factor, np.float32)):
      tensors[name.format(layer)] = np.ascontiguousarray(matrix.T)
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  # Renamed into place, so that a reader never sees half a file.
  draft = folder / f'.{WEIGHTS}'
  save_file(tensors, draft, metadata={'format': 'pt'})
  draft.replace(folder / WEIGHTS)
  draft = folder / f'.{CONFIG}'
  draft.write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
  draft.replace(folder / CONFIG)


def import_adapter(folder: str | os.PathLike, model: CausalLM) -> Tree:
  """Reads an adapter written by `export_adapter` or by PEFT.

  Args:
    folder: Where adapter_model.safetensors and adapter_config.json are.
    model: Its adapter settings say what is expected.

  Returns:
    The adapter, as `model.init` makes it.

  Raises:
    FileNotFoundError: If a file is missing.
    ValueError: If the settings of the adapter are not those of the model, or
      a tensor is missing, unknown or mis-shaped, or a file is damaged.
  """
  folder = pathlib.Path(folder)
  _check_config(folder / CONFIG, _peft_config(model))
  tensors = open_safetensors(folder / WEIGHTS)
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  expected = {
    _peft_name(path).format(layer): leaf.shape[:0:-1]
    for path, leaf in _leaves(abstract)
    for layer in range(leaf.shape[0])
  }
  actual = {name: tensor.shape for name, tensor in tensors.items()}
  for name in sorted(expected.keys() | actual.keys()):
    if expected.get(name) != actual.get(name):
      raise ValueError(
        f'{folder / WEIGHTS}: {name} has shape {actual.get(name)}, the model '
        f'calls for {expected.get(name)} (None: no such tensor)'
      )

  def stack(path, leaf):
    name = _peft_name(jax.tree_util.keystr(path, simple=True, separator='/'))
    layers = range(leaf.shape[0])
    factor = np.stack([tensors[name.format(i)].T for i in layers])
    return jnp.asarray(factor.astype(leaf.dtype))

  return jax.tree_util.tree_map_with_path(stack, abstract)


def _leaves(lora):
  flat, _ = jax.tree.flatten_with_path(lora)
  keystr = jax.tree_util.keystr
  return [(keystr(p, simple=True, separator='/'), leaf) for p, leaf in flat]


def _peft_name(path: str) -> str:
  """layers/attention/q/lora_a: its PEFT name, {} for the layer."""
  _, part, projection, factor = path.split('/')
  part = {'attention': 'self_attn', 'mlp': 'mlp'}[part]
  return (
    f'base_model.model.model.layers.{{}}.{part}.{projection}_proj.'
    f'{FACTORS[factor]}.weight'
  )


def _peft_config(model: CausalLM) -> dict:
  lora = model.lora_config
  if lora is None:
    raise ValueError(
      f'model {model.name} has no adapter; pass lora=LoraConfig(...)'
    )
  sites = lora.sites(model.config.projections)
  whole = int(lora.alpha) == lora.alpha
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': model.name,
    'target_modules': sorted(f'{p.rpartition("/")[2]}_proj' for p in sites),
    'r': lora.rank,
    'lora_alpha': int(lora.alpha) if whole else lora.alpha,
    'use_rslora': lora.rslora,
    'lora_dropout': lora.dropout,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
  }


def _check_config(path: pathlib.Path, wanted: dict) -> None:
  """Raises ValueError if the adapter would mean something else here."""
  found = read_json(path)
  keys = ('peft_type', 'r', 'lora_alpha', 'use_rslora', 'target_modules')
  for key in keys:
    value = found.get(key, False)
    if key == 'target_modules' and not isinstance(value, str):
      value = sorted(value or [])
    if value != wanted[key]:
      raise ValueError(
        f'{path}: {key} is {value!r}, the model has {wanted[key]!r}'
      )
  unsupported = ('use_dora', 'rank_pattern', 'alpha_pattern', 'lora_bias')
  for key in (*unsupported, 'layers_to_transform', 'modules_to_save'):
    if found.get(key):
      raise ValueError(f'{path}: {key}={found[key]!r} is not supported')
