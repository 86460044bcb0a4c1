"""Checks that a PEFT adapter computes the same in our model as in PEFT."""

import pathlib
from collections.abc import Collection

from absl import logging

from lora_opt.models.causal_lm import CausalLM
from lora_opt.models.pretrained.adapter_config import AdapterConfig
from lora_opt.models.pretrained.adapter_targets import (
  CLASSIFIERS,
  TABLES,
  Module,
  adapted_modules,
  ends_with,
)
from lora_opt.models.pretrained.peft_names import (
  FEATURES,
  fan_in_fan_out,
  has_head,
  head_modules,
  module_name,
  peft_config,
  saved_modules,
  unspelled,
)
from lora_opt.models.quantized import leaves_by_path
from lora_opt.reading.values import shown


def check_adapter(
  config: AdapterConfig, model: CausalLM, older: bool = False
) -> None:
  """Checks that an adapter would compute the same here as in PEFT.

  Args:
    config: The adapter's settings.
    model: The model that it is loaded onto.
    older: Whether it uses the names that `peft_names.unspelled` returns.

  Raises:
    ValueError: If it would not; the message names the file and the setting.
  """
  wanted = peft_config(model)
  _check_kind(config, model)
  modules = _modules(model, older)
  adapted = adapted_modules(
    config,
    [module for those in modules.values() for module in those] + _head(model),
  )
  _check_sites(config, model, modules, adapted.keys())
  for name, found in adapted.items():
    for key, ours in (('r', found.rank), ('lora_alpha', found.alpha)):
      if ours != wanted[key]:
        pattern = 'alpha_pattern' if key == 'lora_alpha' else 'rank_pattern'
        by = f' for {name} by {pattern}' if getattr(config, pattern) else ''
        raise ValueError(
          f'{config.path}: {key} is {ours:g}{by}, the model has '
          f'{wanted[key]:g} everywhere'
        )
  for key, ours in (('use_rslora', config.rslora), ('use_dora', config.dora)):
    if ours != wanted[key]:
      raise ValueError(
        f'{config.path}: {key} is {ours}, the model has {wanted[key]}'
      )
  _say_base(config, model)


def _check_kind(config: AdapterConfig, model: CausalLM) -> None:
  """Raises ValueError for an adapter of another kind of model."""
  if config.task_type not in (None, model.task_type):
    raise ValueError(
      f'{config.path}: task_type is {shown(config.task_type)}, the model is of '
      f'{model.task_type}'
    )
  if config.fan_in_fan_out and not fan_in_fan_out(
    model, model.config.projections
  ):
    raise ValueError(
      f'{config.path}: fan_in_fan_out says that the base stores its linear '
      f'maps as GPT-2 does, and {model.name} does not: the adapter is one of '
      'another kind of model'
    )
  # PEFT lists the usual names of a head, whether they exist or not.
  known = {*saved_modules(model), *CLASSIFIERS}
  if config.saved and (not has_head(model) or set(config.saved) - known):
    raise ValueError(
      f'{config.path}: modules_to_save={shown(config.saved)} are trained '
      f'whole, which is not supported for {model.task_type}, only the modules '
      'of a head of labels are; merge the adapter into its base with PEFT'
    )
  _check_bias(config, model)


def _check_bias(config: AdapterConfig, model: CausalLM) -> None:
  """Raises ValueError if biases of the base were trained."""
  if config.bias == 'none':
    return
  sites = model.lora_config.sites(model.config.projections)
  trained = [
    path
    for path in leaves_by_path(model.base)
    if path.endswith('/bias')
    and (config.bias == 'all' or path.removesuffix('/bias') in sites)
  ]
  if trained:
    raise ValueError(
      f'{config.path}: bias={config.bias!r} means that biases of the base are '
      f'trained too, here {len(trained)} such as {trained[0]}, which is not '
      'supported; merge the adapter into its base with PEFT'
    )


def _modules(model: CausalLM, older: bool) -> dict[str, list[Module]]:
  """The modules that PEFT could adapt, by projection; one per layer."""
  leaves = leaves_by_path(model.family.abstract_base(model.config))
  found = {}
  for site in model.config.projections:
    name = module_name(model, site)
    if older:
      name = unspelled(model.family, name)
    layers = leaves[f'{site}/kernel'].shape[0] if '{}' in name else 1
    linear = site.rpartition('/')[2] not in TABLES
    found[site] = [Module(name.format(i), linear) for i in range(layers)]
  return found


def _head(model: CausalLM) -> list[Module]:
  """The linear maps of a trained head, which never have an adapter here."""
  found = []
  for name in head_modules(model):
    if model.task_type == FEATURES:
      name = name.removeprefix(model.family.prefix)
    last = any(ends_with(name, end) for end in CLASSIFIERS)
    found.append(Module(name, linear=not last))
  return found


def _check_sites(
  config: AdapterConfig,
  model: CausalLM,
  modules: dict[str, list[Module]],
  adapted: Collection[str],
) -> None:
  """Raises ValueError unless model and adapter adapt the same modules."""
  for module in _head(model):
    if module.name in adapted:
      raise ValueError(
        f'{config.path}: target_modules gives an adapter to {module.name}, '
        'which is part of the head and trained whole here'
      )
  theirs = []
  for site, those in modules.items():
    names = [module.name for module in those if module.name in adapted]
    if names and len(names) < len(those):
      raise ValueError(
        f'{config.path} adapts {len(names)} of the {len(those)} layers of '
        f'{site}, such as {names[0]}; here all layers have an adapter or none'
      )
    theirs += [site] if names else []
  ours = model.lora_config.sites(model.config.projections)
  if set(theirs) != ours.keys():
    said = ', '.join(
      f'{key} is {shown(value)}'
      for key, value in (
        ('target_modules', config.targets),
        ('exclude_modules', config.exclude),
        ('layers_to_transform', config.layers),
        ('modules_to_save', config.saved),
      )
      if value or key == 'target_modules'
    )
    raise ValueError(
      f'{config.path}: {said}, which adapts {", ".join(theirs) or "nothing"}; '
      f'the model adapts {", ".join(ours)}'
      + (f'. Set its LoRA target to {"|".join(theirs)!r}' if theirs else '')
    )
  if config.ties and {'embedding', 'head'} & {
    site.rpartition('/')[2] for site in ours
  }:
    raise ValueError(
      f'{config.path}: ensure_weight_tying makes embedding and head share one '
      'adapter, which is not supported'
    )


def _say_base(config: AdapterConfig, model: CausalLM) -> None:
  """Logs a warning if the adapter names another base than the model."""

  def last(name):
    return pathlib.PurePath(name.replace('\\', '/')).name.casefold()

  if config.base and last(config.base) != last(model.name):
    logging.warning(
      '%s: the adapter was trained on %s, and is loaded onto %s. Shapes are '
      'checked; whether the weights are the same is not recorded',
      config.path,
      shown(config.base),
      model.name,
    )
