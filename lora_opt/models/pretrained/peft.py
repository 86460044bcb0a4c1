"""Adapters in the format of PEFT: adapter_model.safetensors and its config.

Written and read without torch, which only adapter_model.bin needs. PEFT keeps
lora_A as (rank, fan_in) and lora_B as (fan_out, rank), one tensor per layer.
"""

import json
import os
import pathlib

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from lora_opt import writing
from lora_opt.data import hub
from lora_opt.models.causal_lm import CausalLM
from lora_opt.models.pretrained.adapter_base import without_base
from lora_opt.models.pretrained.adapter_check import check_adapter
from lora_opt.models.pretrained.adapter_config import (
  AdapterConfig,
  read_adapter_config,
)
from lora_opt.models.pretrained.adapter_tensors import WEIGHTS, open_adapter
from lora_opt.models.pretrained.assemble import assemble, disassemble
from lora_opt.models.pretrained.files import open_safetensors
from lora_opt.models.pretrained.peft_names import (
  HEAD,
  peft_config,
  peft_names,
  spelled,
)
from lora_opt.models.quantized import leaves_by_path
from lora_opt.models.start import join_start, split_start
from lora_opt.models.variables import Tree

CONFIG = 'adapter_config.json'


def export_adapter(
  folder: str | os.PathLike, lora: Tree, model: CausalLM
) -> None:
  """Writes an adapter that `peft` loads onto the same base model.

  An adapter that started from the base (PiSSA, OLoRA) is written as a plain
  adapter of twice the rank. It makes the same change to the original base:
  a @ b minus the value of a @ b at the start.

  Args:
    folder: Where to write; created if it does not exist.
    lora: The adapter.
    model: Supplies the settings and the name of the base.

  Raises:
    ValueError: If the model has no adapter settings.
  """
  config = peft_config(model)
  start = model.start
  if start is not None:
    lora = join_start(lora, start)
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  files = {WEIGHTS: {}}
  for name, tensor in disassemble(lora, peft_names(lora, model)).items():
    file, _, name = name.rpartition('/')
    part = files.setdefault(file or WEIGHTS, {})
    part[name] = tensor.astype(np.float32)
  # Renamed into place, so that a reader never sees half a file.
  for file, tensors in files.items():
    with writing.draft(folder / file) as draft:
      save_file(tensors, draft, metadata={'format': 'pt'})
  writing.write_text(folder / CONFIG, json.dumps(config, indent=2) + '\n')


def import_adapter(folder: str | os.PathLike, model: CausalLM) -> Tree:
  """Reads an adapter written by `export_adapter` or by PEFT.

  Args:
    folder: Folder with adapter_config.json and adapter_model.safetensors (or
      adapter_model.bin, if torch is installed); or a name on the hub, see
      `lora_opt.data.hub`.
    model: The model; the adapter must match its adapter settings.

  Returns:
    The adapter, structured as `model.init` returns it.

  Raises:
    FileNotFoundError: If a file is missing.
    ValueError: If the settings of the adapter differ from those of the model,
      or a tensor is missing, unknown or mis-shaped, or a file is damaged.
  """
  folder = hub.model_folder(folder)
  config = _config_in(folder)
  check_adapter(config, model, _is_older(folder, model))
  tensors = {
    spelled(model.family, name): tensor
    for name, tensor in open_adapter(folder).items()
  }
  tensors = without_base(tensors, model)
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  start = model.start
  if start is not None:
    abstract = jax.eval_shape(join_start, abstract, start)
  names = peft_names(abstract, model)
  if any(name.name.startswith(HEAD) for name in names.values()):
    head = open_safetensors(folder / HEAD)
    tensors |= {f'{HEAD}/{name}': tensor for name, tensor in head.items()}
  # The adapter decides which parts of a head are trained.
  untrained = {
    f'head/{path}': leaf
    for path, leaf in leaves_by_path(getattr(model, 'head', {})).items()
    if names[f'head/{path}'].name not in tensors
  }
  wanted = leaves_by_path(abstract)
  wanted = {path: wanted[path] for path in wanted.keys() - untrained.keys()}
  found = assemble(
    str(folder / WEIGHTS),
    traverse_util.unflatten_dict(wanted, sep='/'),
    names,
    tensors,
    'float32',
  )
  found = traverse_util.unflatten_dict(
    leaves_by_path(found) | untrained, sep='/'
  )
  lora = jax.tree.map(lambda x, like: x.astype(like.dtype), found, abstract)
  if start is None:
    return lora
  return split_start(str(folder / WEIGHTS), lora, start)


def _is_older(folder: pathlib.Path, model: CausalLM) -> bool:
  """Whether an adapter uses names that transformers used before version 5."""
  family = model.family
  return bool(family.spelled) and any(
    spelled(family, name) != name for name in open_adapter(folder)
  )


def _config_in(folder: pathlib.Path) -> AdapterConfig:
  """Reads the settings in a folder; the error names subfolders with some."""
  if not (folder / CONFIG).exists() and folder.is_dir():
    others = sorted(path.parent.name for path in folder.glob(f'*/{CONFIG}'))
    if others:
      raise FileNotFoundError(
        f'no {CONFIG} in {folder}; it holds the adapters {", ".join(others)}: '
        'name the folder of one'
      )
  return read_adapter_config(folder / CONFIG)
