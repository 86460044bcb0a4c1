"""Adapters in the format of PEFT: adapter_model.safetensors and its config.

Written and read without torch. PEFT keeps lora_A as (rank, fan_in) and lora_B
as (fan_out, rank), one tensor per layer.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
from typing import TYPE_CHECKING

import jax
import numpy as np
from safetensors.numpy import save_file

from lora_opt.models.pretrained.assemble import assemble, disassemble
from lora_opt.models.pretrained.family import (
  TensorName,
  leaves_by_path,
  linear,
)
from lora_opt.models.pretrained.files import open_safetensors, read_json
from lora_opt.models.start import join_start, split_start, start_of

if TYPE_CHECKING:
  from lora_opt.models.causal_lm import CausalLM, Tree

WEIGHTS, CONFIG = 'adapter_model.safetensors', 'adapter_config.json'
FACTORS = {'lora_a': 'lora_A', 'lora_b': 'lora_B'}
# There A starts at zero, so it is our lora_b: see `models.vocabulary`.
EMBEDDING_FACTORS = {'lora_a': 'lora_embedding_B', 'lora_b': 'lora_embedding_A'}


def export_adapter(
  folder: str | os.PathLike, lora: Tree, model: CausalLM
) -> None:
  """Writes an adapter that `peft` loads onto the same base model.

  One that started from the base (PiSSA, OLoRA) is written as the plain adapter
  of twice the rank that changes the original base as much: a @ b less what
  they were at the start.

  Args:
    folder: Where to write; made if it does not exist.
    lora: The adapter.
    model: Supplies the settings and the name of the base.

  Raises:
    ValueError: If the model has no adapter settings.
  """
  config = _peft_config(model)
  start = start_of(model)
  if start is not None:
    lora = join_start(lora, start)
  tensors = {
    name: tensor.astype(np.float32)
    for name, tensor in disassemble(lora, peft_names(lora, model)).items()
  }
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
  _check_config(folder / CONFIG, model)
  tensors = {
    name: tensor
    for name, tensor in open_safetensors(folder / WEIGHTS).items()
    # PEFT adds the base's own table to the adapter of an embedding or head.
    if not name.endswith('.base_layer.weight')
  }
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  start = start_of(model)
  if start is not None:
    abstract = jax.eval_shape(join_start, abstract, start)
  lora = assemble(
    str(folder / WEIGHTS),
    abstract,
    peft_names(abstract, model),
    tensors,
    model.lora_config.dtype,
  )
  if start is None:
    return lora
  return split_start(str(folder / WEIGHTS), lora, start)


def peft_names(lora: Tree, model: CausalLM) -> dict[str, TensorName]:
  """Path of every factor: its name in PEFT's format."""
  names = {}
  for path in leaves_by_path(lora):
    site, _, factor = path.rpartition('/')
    module = f'base_model.model.{_module(model, site)}'
    if factor == 'magnitude':
      names[path] = TensorName(f'{module}.lora_magnitude_vector')
      continue
    names[path] = linear(f'{module}.{FACTORS[factor]}.weight')
    if site.rpartition('/')[2] == 'embedding':
      names[path] = TensorName(f'{module}.{EMBEDDING_FACTORS[factor]}')
  return names


def _module(model: CausalLM, site: str) -> str:
  """The name of a projection in transformers, {} for the layer."""
  names = model.family.names
  weight = names.get(f'{site}/kernel') or names[f'{site}/table']
  return weight.name.removesuffix('.weight')


def _target_modules(model: CausalLM) -> list[str]:
  """Ends of module names that match the adapted projections and no other."""
  projections = model.config.projections
  adapted = model.lora_config.sites(projections)
  others = [_module(model, p) for p in projections.keys() - adapted.keys()]
  ends = {p: _shortest_end(_module(model, p), others) for p in adapted}
  adapter = leaves_by_path(jax.eval_shape(model.init, jax.random.key(0)))
  # An end that reaches back beyond the layer's number: one for each layer.
  return sorted(
    {
      end.format(layer)
      for path, end in ends.items()
      for layer in range(
        adapter[f'{path}/lora_a'].shape[0] if '{}' in end else 1
      )
    }
  )


def _shortest_end(module: str, others: list[str]) -> str:
  parts = module.split('.')
  ends = ('.'.join(parts[i:]) for i in reversed(range(len(parts))))
  return next(e for e in ends if not any(_ends_with(o, e) for o in others))


def _ends_with(module: str, end: str) -> bool:
  """PEFT's rule for an entry of target_modules."""
  return module == end or module.endswith(f'.{end}')


def _peft_config(model: CausalLM) -> dict:
  lora = model.lora_config
  if lora is None:
    raise ValueError(
      f'model {model.name} has no adapter; pass lora=LoraConfig(...)'
    )
  rank, alpha = lora.rank, lora.alpha
  if start_of(model) is not None:
    # Twice the rank at the same scale.
    rank, alpha = 2 * rank, alpha * (math.sqrt(2) if lora.rslora else 2)
  return {
    'peft_type': 'LORA',
    'task_type': model.task_type,
    'base_model_name_or_path': model.name,
    'target_modules': _target_modules(model),
    'r': rank,
    'lora_alpha': int(alpha) if int(alpha) == alpha else alpha,
    'use_rslora': lora.rslora,
    'use_dora': lora.dora,
    'lora_dropout': lora.dropout,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
  }


def _check_config(path: pathlib.Path, model: CausalLM) -> None:
  """Raises ValueError if the adapter would mean something else here."""
  found, wanted = read_json(path), _peft_config(model)
  for key in ('peft_type', 'r', 'lora_alpha', 'use_rslora', 'use_dora'):
    if found.get(key, False) != wanted[key]:
      raise ValueError(
        f'{path}: {key} is {found.get(key, False)!r}, the model has '
        f'{wanted[key]!r}'
      )
  targets = found.get('target_modules') or []
  theirs = {p for p in model.config.projections if _targets(targets, model, p)}
  ours = model.lora_config.sites(model.config.projections)
  if theirs != ours.keys():
    raise ValueError(
      f'{path}: target_modules is {targets!r} and adapts '
      f'{", ".join(sorted(theirs))}; the model adapts {", ".join(ours)}'
    )
  unsupported = ('rank_pattern', 'alpha_pattern', 'lora_bias')
  for key in (*unsupported, 'layers_to_transform', 'modules_to_save'):
    if found.get(key):
      raise ValueError(f'{path}: {key}={found[key]!r} is not supported')


def _targets(targets: str | list[str], model: CausalLM, site: str) -> bool:
  """Whether PEFT's target_modules, a regex or ends of names, has a site."""
  module = _module(model, site).format(0)
  if isinstance(targets, str):
    return re.fullmatch(targets, module) is not None
  return any(_ends_with(module, end) for end in targets)
