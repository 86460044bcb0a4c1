"""Reads which layers use sliding-window attention from config.json."""

from typing import Any

from lora_opt.models.config import DecoderConfig
from lora_opt.models.pretrained.config_file import ConfigFile

_KINDS = {'sliding_attention': True, 'full_attention': False}


def by_layer(
  settings: ConfigFile, default: tuple[bool, ...]
) -> tuple[bool, ...]:
  """Reads from layer_types whether each layer is windowed.

  Args:
    settings: The file.
    default: Used if the list is absent; has an entry for each layer.

  Raises:
    ValueError: If a type is unknown, or there is not one for each layer.
  """
  kinds = settings.items('layer_types', None, null=True)
  if kinds is None:
    return default
  if len(kinds) != len(default):
    raise ValueError(
      f'{settings.place}: layer_types has {len(kinds)} entries, must have one '
      f'for each of {len(default)} layers'
    )
  for kind in kinds:
    if not isinstance(kind, str) or kind not in _KINDS:
      settings.refuse('layer_types', kind, _KINDS)
  return tuple(_KINDS[kind] for kind in kinds)


def layer_types(config: DecoderConfig) -> list[str]:
  """The layer_types of a config; the inverse of `by_layer`."""
  names = {windowed: kind for kind, windowed in _KINDS.items()}
  windowed = config.windowed_layers or (False,) * config.num_layers
  return [names[each] for each in windowed]


def used(
  settings: ConfigFile, default: tuple[bool, ...], size: int | None
) -> dict[str, Any]:
  """Reads the window of `DecoderConfig`, which use_sliding_window turns on.

  Args:
    settings: The file.
    default: Which layers have a window if layer_types is absent.
    size: Used if sliding_window is absent.
  """
  size = settings.integer('sliding_window', size, null=True)
  use = settings.boolean('use_sliding_window', False)
  if settings.is_null('sliding_window') or not use:
    size = None
  if size is None:
    default = (False,) * len(default)
  windowed = by_layer(settings, default)
  if not any(windowed):
    return {}
  return {'window': size or 0, 'windowed_layers': windowed}


def written(config: DecoderConfig) -> dict[str, Any]:
  """The window settings of a config; the inverse of `used`."""
  if not any(config.windowed_layers):
    return {'use_sliding_window': False}
  return {
    'use_sliding_window': True,
    'sliding_window': config.window,
    'layer_types': layer_types(config),
  }
