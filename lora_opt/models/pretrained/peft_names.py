"""PEFT's names for the parts of an adapter, and its settings for an adapter."""

import math
from collections.abc import Iterable

import jax

from lora_opt.models.causal_lm import CausalLM
from lora_opt.models.pretrained.adapter_targets import ends_with
from lora_opt.models.pretrained.family import Family, TensorName, linear
from lora_opt.models.quantized import leaves_by_path
from lora_opt.models.variables import Tree

# For a head that transformers has no module for: the adapter is saved for the
# bare encoder, and the head in a separate file beside it.
FEATURES, HEAD = 'FEATURE_EXTRACTION', 'head.safetensors'
FACTORS = {'lora_a': 'lora_A', 'lora_b': 'lora_B'}
# PEFT's A of an embedding starts at zero, so it is our lora_b: see
# `models.vocabulary`.
EMBEDDING_FACTORS = {'lora_a': 'lora_embedding_B', 'lora_b': 'lora_embedding_A'}


def peft_names(trainable: Tree, model: CausalLM) -> dict[str, TensorName]:
  """Maps the path of every trained array to its name in PEFT's format.

  A head is saved in full, as PEFT does with modules_to_save. If transformers
  has no module for it, the name begins with that of a separate file.
  """
  prefix, names = 'base_model.model.', {}
  for path in leaves_by_path(trainable):
    site, _, factor = path.rpartition('/')
    if site.startswith('head/') and model.task_type == FEATURES:
      name = f'{HEAD}/{site.removeprefix("head/")}'
      bias = TensorName(f'{name}.bias')
      names[path] = bias if factor == 'bias' else linear(f'{name}.weight')
    elif site.startswith('head/'):
      name = model.family.names[path]
      names[path] = name._replace(name=prefix + name.name)
    elif factor == 'magnitude':
      module = prefix + module_name(model, site)
      names[path] = TensorName(f'{module}.lora_magnitude_vector')
    else:
      module = prefix + module_name(model, site)
      names[path] = linear(f'{module}.{FACTORS[factor]}.weight')
      if site.rpartition('/')[2] == 'embedding':
        names[path] = TensorName(f'{module}.{EMBEDDING_FACTORS[factor]}')
  return names


def peft_config(model: CausalLM) -> dict:
  lora = model.lora_config
  if lora is None:
    raise ValueError(
      f'model {model.name} has no adapter; pass lora=LoraConfig(...)'
    )
  rank, alpha = lora.rank, lora.alpha
  if model.start is not None:
    # Twice the rank at the same scale.
    rank, alpha = 2 * rank, alpha * (math.sqrt(2) if lora.rslora else 2)
  saved = saved_modules(model)
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
    'fan_in_fan_out': fan_in_fan_out(
      model, model.lora_config.sites(model.config.projections)
    ),
    'inference_mode': True,
  } | ({'modules_to_save': saved} if saved else {})


def module_name(model: CausalLM, site: str) -> str:
  """The name of a projection in transformers, with {} for the layer."""
  family = model.family
  weight = family.names.get(f'{site}/kernel') or family.names[f'{site}/table']
  module = weight.name.removesuffix('.weight')
  if model.task_type == FEATURES:
    module = module.removeprefix(family.prefix)  # in the bare encoder
  return spelled(family, module)


def spelled(family: Family, name: str) -> str:
  """The name that transformers uses in memory for a module or tensor.

  Since version 5 it may differ from the name in checkpoints.
  """
  name = f'{name}.'
  for new, old in family.spelled.items():
    name = name.replace(old, new)
  return name.removesuffix('.')


def unspelled(family: Family, name: str) -> str:
  """The inverse of `spelled`: the name in checkpoints and older versions."""
  name = f'{name}.'
  for new, old in family.spelled.items():
    name = name.replace(new, old)
  return name.removesuffix('.')


def _target_modules(model: CausalLM) -> list[str]:
  """Ends of module names that match the adapted projections and no others.

  If no end does that for all layers at once, there is one per layer.
  """
  projections = model.config.projections
  adapted = model.lora_config.sites(projections)
  others = [module_name(model, p) for p in projections.keys() - adapted.keys()]
  others += [*head_modules(model), *model.family.bystanders]
  ends = {p: _shortest_end(module_name(model, p), others) for p in adapted}
  adapter = leaves_by_path(jax.eval_shape(model.init, jax.random.key(0)))
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
  return next(e for e in ends if not any(ends_with(o, e) for o in others))


def head_modules(model: CausalLM) -> list[str]:
  """transformers' names for the linear maps of a trained head."""
  return [
    name.name.removesuffix('.weight')
    for path, name in model.family.names.items()
    if path.startswith('head/') and path.endswith('/kernel')
  ]


def has_head(model: CausalLM) -> bool:
  """Whether transformers has a class for the model with its trained head."""
  return model.family.abstract_head is not None and model.task_type != FEATURES


def saved_modules(model: CausalLM) -> list[str]:
  """PEFT's modules_to_save: the modules that are trained in full."""
  if not has_head(model):
    return []
  prefix = model.family.prefix
  tops = [m.removeprefix(prefix).split('.')[0] for m in head_modules(model)]
  return sorted(set(tops))


def fan_in_fan_out(model: CausalLM, sites: Iterable[str]) -> bool:
  """Whether transformers stores one of them untransposed, as in GPT-2."""
  names = model.family.names
  return any(
    not names[f'{site}/kernel'].transposed
    for site in sites
    if f'{site}/kernel' in names
  )
