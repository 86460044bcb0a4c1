"""Finds the modules that a PEFT adapter adapts, by PEFT's own rules."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lora_opt.models.pretrained.adapter_config import AdapterConfig
from lora_opt.reading import name_patterns

# Modules that 'all-linear' leaves out.
TABLES = ('embedding', 'head')
CLASSIFIERS = ('classifier', 'score')


class Module(NamedTuple):
  """A module of transformers that PEFT could adapt.

  Attributes:
    name: Its full name, such as 'model.layers.0.self_attn.q_proj'.
    linear: Whether 'all-linear' includes it.
  """

  name: str
  linear: bool


@dataclasses.dataclass(frozen=True)
class Adapted:
  """The rank and alpha of an adapted module, which scale its factors."""

  rank: int
  alpha: float


def adapted_modules(
  config: AdapterConfig, modules: Sequence[Module]
) -> dict[str, Adapted]:
  """Finds the modules that an adapter adapts.

  Args:
    config: The adapter's settings.
    modules: All modules that could be adapted.

  Returns:
    The rank and alpha of each adapted module, by its name.

  Raises:
    ValueError: A pattern is not a regular expression, or takes too long.
  """
  names = [module.name for module in modules]
  targeted = _targeted(config, modules)
  excluded = _listed(config, 'exclude_modules', config.exclude, names)
  excluded |= _any_match(
    name_patterns.find_each(
      config.saved,
      names,
      f'{config.path}: modules_to_save',
      within=r'(^|.*\.){}($|\..*)',
      how='match',
    ),
    names,
  )
  names = [name for name in names if name in targeted - excluded]
  ranks = _by_pattern(config, 'rank_pattern', config.rank_pattern, names)
  alphas = _by_pattern(config, 'alpha_pattern', config.alpha_pattern, names)
  return {
    name: Adapted(ranks.get(name, config.rank), alphas.get(name, config.alpha))
    for name in names
  }


def ends_with(module: str, end: str) -> bool:
  """Whether an entry of target_modules matches a module, by PEFT's rule.

  >>> ends_with('model.layers.0.mlp.up_proj', 'up_proj')
  True
  >>> ends_with('model.layers.0.mlp.up_proj', 'proj')
  False
  """
  return module == end or module.endswith(f'.{end}')


def _targeted(config: AdapterConfig, modules: Sequence[Module]) -> set[str]:
  targets = config.targets
  if isinstance(targets, str) and targets.lower() == 'all-linear':
    return {module.name for module in modules if module.linear}
  names = [module.name for module in modules]
  found = _listed(config, 'target_modules', targets, names)
  if not config.layers:
    return found
  # A module that is listed by its full name is adapted in any layer.
  whole = found & set(targets)
  numbers, layers = _layer_numbers(config, names), set(config.layers)
  return whole | {name for name in found if numbers.get(name) in layers}


def _listed(
  config: AdapterConfig, key: str, listed: str | list[str], names: list[str]
) -> set[str]:
  """The names that match a regular expression or a list of ends."""
  if isinstance(listed, str):
    if not listed:
      return set()
    matches = name_patterns.find(listed, names, f'{config.path}: {key}')
    return _any_match([matches], names)
  whole, ends = set(listed), tuple(f'.{end}' for end in listed)
  return {name for name in names if name in whole or name.endswith(ends)}


def _layer_numbers(config: AdapterConfig, names: list[str]) -> dict[str, int]:
  """The number of the layer that each module is in."""
  place, found = f'{config.path}: layers_pattern', {}
  # PEFT takes the first pattern that matches.
  within = r'(?:^|.*?\.){}\.(?P<idx>\d+)\.'
  if not config.layers_pattern:
    within = r'.*?\.[^.]*\.(?P<idx>\d+)\.'
  rows = name_patterns.find_each(
    config.layers_pattern or [''], names, place, within=within, how='match'
  )
  for row in reversed(rows):
    found |= {
      name: int(number)
      for name, number in zip(names, row, strict=True)
      if number
    }
  return found


def _any_match(
  rows: Sequence[Sequence[str | None]], names: Sequence[str]
) -> set[str]:
  """The names that match at least one of several patterns."""
  return {
    name
    for row in rows
    for name, match in zip(names, row, strict=True)
    if match is not None
  }


def _by_pattern(
  config: AdapterConfig, key: str, table: Mapping, names: list[str]
) -> dict:
  """The value of the first pattern in a table that matches, for each name."""
  found, patterns = {}, list(table)
  rows = name_patterns.find_each(
    patterns,
    names,
    f'{config.path}: {key}',
    within=r'(.*\.)?({})$',
    how='match',
  )
  for pattern, row in reversed(list(zip(patterns, rows, strict=True))):
    found |= dict.fromkeys(_any_match([row], names), table[pattern])
  # PEFT tries the full name after all patterns.
  return {name: table[name] for name in names if name in table} | found
