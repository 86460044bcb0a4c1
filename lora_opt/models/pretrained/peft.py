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
from flax import traverse_util
from safetensors.numpy import save_file

from lora_opt import writing
from lora_opt.models.pretrained.assemble import assemble, disassemble
from lora_opt.models.pretrained.family import (
  TensorName,
  leaves_by_path,
  linear,
)
from lora_opt.models.pretrained.files import open_safetensors
from lora_opt.models.start import join_start, split_start
from lora_opt.reading.json_text import read_json

if TYPE_CHECKING:
  from lora_opt.models.causal_lm import CausalLM, Tree

WEIGHTS, CONFIG = 'adapter_model.safetensors', 'adapter_config.json'
# For a head that transformers has no module for: the adapter is one of the
# bare encoder, and the head has a file of its own beside it.
FEATURES, HEAD = 'FEATURE_EXTRACTION', 'head.safetensors'
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
  start = model.start
  if start is not None:
    abstract = jax.eval_shape(join_start, abstract, start)
  names = peft_names(abstract, model)
  if any(name.startswith(HEAD) for name, _ in names.values()):
    head = open_safetensors(folder / HEAD)
    tensors |= {f'{HEAD}/{name}': tensor for name, tensor in head.items()}
  # Which parts of a head are trained is up to the adapter.
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


def peft_names(trainable: Tree, model: CausalLM) -> dict[str, TensorName]:
  """Path of everything trained: its name in PEFT's format.

  A head is saved whole, as PEFT does with modules_to_save. Where transformers
  has no module for it the name begins with that of another file.
  """
  prefix, names = 'base_model.model.', {}
  for path in leaves_by_path(trainable):
    site, _, factor = path.rpartition('/')
    if site.startswith('head/') and model.task_type == FEATURES:
      name = f'{HEAD}/{site.removeprefix("head/")}'
      bias = TensorName(f'{name}.bias')
      names[path] = bias if factor == 'bias' else linear(f'{name}.weight')
    elif site.startswith('head/'):
      name, transposed = model.family.names[path]
      names[path] = TensorName(prefix + name, transposed)
    elif factor == 'magnitude':
      module = prefix + _module(model, site)
      names[path] = TensorName(f'{module}.lora_magnitude_vector')
    else:
      module = prefix + _module(model, site)
      names[path] = linear(f'{module}.{FACTORS[factor]}.weight')
      if site.rpartition('/')[2] == 'embedding':
        names[path] = TensorName(f'{module}.{EMBEDDING_FACTORS[factor]}')
  return names


def _module(model: CausalLM, site: str) -> str:
  """The name of a projection in transformers, {} for the layer."""
  family = model.family
  weight = family.names.get(f'{site}/kernel') or family.names[f'{site}/table']
  module = weight.name.removesuffix('.weight')
  if model.task_type == FEATURES:
    return module.removeprefix(family.prefix)  # in the bare encoder
  return module


def _target_modules(model: CausalLM) -> list[str] | str:
  """Ends of module names that match the adapted projections and no other.

  Where no end does that in every layer, one regular expression.
  """
  projections = model.config.projections
  adapted = model.lora_config.sites(projections)
  others = [_module(model, p) for p in projections.keys() - adapted.keys()]
  others += _head_modules(model)
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


def _head_modules(model: CausalLM) -> list[str]:
  """Names in transformers of the linear maps of a trained head."""
  return [
    name.removesuffix('.weight')
    for path, (name, _) in model.family.names.items()
    if path.startswith('head/') and path.endswith('/kernel')
  ]


def _saved_modules(model: CausalLM) -> list[str]:
  """PEFT's modules_to_save: what is trained whole."""
  if model.task_type != 'SEQ_CLS':
    return []
  prefix = model.family.prefix
  tops = [m.removeprefix(prefix).split('.')[0] for m in _head_modules(model)]
  return sorted(set(tops))


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
  if model.start is not None:
    # Twice the rank at the same scale.
    rank, alpha = 2 * rank, alpha * (math.sqrt(2) if lora.rslora else 2)
  saved = _saved_modules(model)
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
  } | ({'modules_to_save': saved} if saved else {})


# Settings of PEFT with which an adapter is more than A and B at its targets.
_UNSUPPORTED = (
  *('rank_pattern', 'alpha_pattern', 'lora_bias', 'layers_to_transform'),
  *('layer_replication', 'trainable_token_indices', 'target_parameters'),
  *('alora_invocation_tokens', 'use_qalora', 'use_bdlora', 'kasa_config'),
)
_CHANGES_THE_BASE = 'pissa|olora|loftq|corda|lora_ga'


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
  for key in _UNSUPPORTED:
    if found.get(key):
      raise ValueError(f'{path}: {key}={found[key]!r} is not supported')
  start = found.get('init_lora_weights')
  if isinstance(start, str) and re.match(_CHANGES_THE_BASE, start.lower()):
    raise ValueError(
      f'{path}: init_lora_weights={start!r} took a part out of the base, which '
      'the adapter as it is saved does not say. Save it with PEFT by '
      'save_pretrained(..., path_initial_model_for_weight_conversion=START), '
      'START being the adapter before training'
    )
  # PEFT lists the usual names of a head, there or not.
  known = {*_saved_modules(model), 'classifier', 'score'}
  saved = found.get('modules_to_save') or []
  if saved and (model.task_type != 'SEQ_CLS' or set(saved) - known):
    raise ValueError(
      f'{path}: modules_to_save={saved!r} is not supported for '
      f'{model.task_type}, only the modules of the head are'
    )


def _targets(targets: str | list[str], model: CausalLM, site: str) -> bool:
  """Whether PEFT's target_modules, a regex or ends of names, has a site."""
  module = _module(model, site).format(0)
  if isinstance(targets, str):
    return re.fullmatch(targets, module) is not None
  return any(_ends_with(module, end) for end in targets)
