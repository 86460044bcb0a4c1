"""Which modules of a base an adapter of PEFT adapts, by PEFT's own rules."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lora_opt.models.pretrained.adapter_config import AdapterConfig
from lora_opt.reading import name_patterns

# What 'all-linear' leaves out.
TABLES = ('embedding', 'head')
CLASSIFIERS = ('classifier', 'score')


class Module(NamedTuple):
  """A module of transformers that PEFT could adapt.

  Attributes:
    name: Its whole name, such as 'model.layers.0.self_attn.q_proj'.
    linear: Whether 'all-linear' takes it in.
  """

  name: str
  linear: bool


@dataclasses.dataclass(frozen=True)
class Adapted:
  """An adapted module with what its factors are scaled by."""

  rank: int
  alpha: float


def adapted_modules(
  config: AdapterConfig, modules: Sequence[Module]
) -> dict[str, Adapted]:
  """Finds the modules that an adapter adapts.

  Args:
    config: Its settings.
    modules: All that could be.

  Returns:
    Name of each adapted module: its rank and alpha.

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
  """PEFT's rule for an entry of target_modules.

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
  # A module that is listed by its whole name is adapted in any layer.
  whole = found & set(targets)
  numbers, layers = _layer_numbers(config, names), set(config.layers)
  return whole | {name for name in found if numbers.get(name) in layers}


def _listed(
  config: AdapterConfig, key: str, listed: str | list[str], names: list[str]
) -> set[str]:
  """The names that a regular expression or a list of ends has."""
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
  # PEFT takes the first of several patterns that matches.
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
  """The names that one of several patterns matches."""
  return {
    name
    for row in rows
    for name, match in zip(names, row, strict=True)
    if match is not None
  }


def _by_pattern(
  config: AdapterConfig, key: str, table: Mapping, names: list[str]
) -> dict:
  """What the first matching pattern of a table says of each name."""
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
  # PEFT looks for the whole name last.
  return {name: table[name] for name in names if name in table} | found
