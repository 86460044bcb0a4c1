"""Reads PEFT's adapter_config.json.

Each setting is used, known to have no effect, or refused. Tested against the
fields of peft 0.21.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from lora_opt.models.pretrained.config_file import Settings
from lora_opt.reading import values
from lora_opt.reading.json_text import read_json
from lora_opt.reading.values import shown

# Settings that are read below.
USED = frozenset(
  """
  alpha_pattern base_model_name_or_path bias ensure_weight_tying
  exclude_modules fan_in_fan_out init_lora_weights layers_pattern
  layers_to_transform lora_alpha lora_dropout modules_to_save peft_type r
  rank_pattern revision target_modules task_type use_dora use_rslora
  """.split()  # noqa: SIM905
)
# How PEFT loads an adapter, and parameters of initialisation or training: none
# of them changes what a saved adapter computes.
WITHOUT_EFFECT = frozenset(
  """
  auto_mapping corda_config eva_config inference_mode loftq_config
  lora_ga_config megatron_core peft_version qalora_group_size runtime_config
  """.split()  # noqa: SIM905
)
# Settings of adapters that are more than A and B at their targets, and why.
REFUSED = {
  'alora_invocation_tokens': 'the adapter begins behind certain tokens',
  'arrow_config': 'several adapters share the tokens among them',
  'kasa_config': 'its factors have singular values between them',
  'layer_replication': 'layers of the base are used several times',
  'lora_bias': 'its factors have biases',
  'megatron_config': 'its base is split as Megatron does it',
  'monteclora_config': 'its factors are drawn from a distribution',
  'target_parameters': 'it adapts parameters by their names, not modules',
  'trainable_token_indices': 'rows of the embedding are trained too',
  'use_bdlora': 'its factors are block diagonal',
  'use_qalora': 'its factors read the means of groups of inputs',
  'velora_config': 'its activations are compressed',
}
_ADVICE = 'merge it into its base with PEFT and load the result instead'

# Initialisations that leave the base as it is; the others take a part out.
PLAIN_STARTS = ('gaussian', 'eva', 'orthogonal', 'mica')
CHANGES_THE_BASE = 'pissa|olora|loftq|corda|lora_ga'


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """The settings of adapter_config.json that affect what an adapter computes.

  Attributes:
    path: The file.
    rank: Rank of the factors.
    alpha: The scale is alpha / rank, or alpha / sqrt(rank) for rsLoRA.
    rank_pattern: Maps regular expressions over module names to other ranks.
    alpha_pattern: The same for alpha.
    rslora: Whether the scale is that of rsLoRA.
    dora: Whether it is a DoRA adapter, with a magnitude per column.
    targets: Ends of the names of adapted modules, or a regular expression.
    exclude: The same for modules that are not adapted.
    layers: Numbers of the layers that are adapted; empty for all.
    layers_pattern: Regular expressions for what precedes such a number.
    saved: Names of modules that are trained in full.
    bias: Which biases are trained: 'none', 'all' or 'lora_only'.
    fan_in_fan_out: Whether the base stores linear maps as GPT-2 does.
    ties: Whether tied modules share an adapter.
    task_type: PEFT's name of the model's task; None if absent.
    base: Name of the base it was trained on; None if absent.
  """

  path: pathlib.Path
  rank: int
  alpha: float
  rank_pattern: Mapping[str, int]
  alpha_pattern: Mapping[str, float]
  rslora: bool
  dora: bool
  targets: str | list[str]
  exclude: str | list[str]
  layers: list[int]
  layers_pattern: list[str]
  saved: list[str]
  bias: str
  fan_in_fan_out: bool
  ties: bool
  task_type: str | None
  base: str | None


def read_adapter_config(path: pathlib.Path) -> AdapterConfig:
  """Reads the adapter_config.json of a LoRA adapter.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: It is not JSON, a setting is of a wrong type, or the adapter is
      more than factors at some modules of the base.
  """
  found = read_json(path)
  settings = Settings(str(path), found)
  settings.expect('peft_type', 'LORA')
  if 'peft_type' not in settings:
    raise ValueError(f"{path} has no 'peft_type', expected 'LORA'")
  for key, reason in REFUSED.items():
    if found.get(key):
      raise ValueError(
        f'{path}: {key}={shown(found[key])} is not supported: {reason}; '
        f'{_ADVICE}'
      )
  _check_known(path, found)
  _check_start(path, found.get('init_lora_weights'))
  settings.number('lora_dropout', 0.0, above=None, least=0, most=1)
  settings.text('revision', None, null=True)
  targets = _names(settings, 'target_modules')
  layers, pattern = _layers(settings, targets)
  return AdapterConfig(
    path=path,
    rank=settings.integer('r', 8, most=2**20),
    alpha=settings.number('lora_alpha', 8, above=None),
    rank_pattern=_pattern(settings, 'rank_pattern', values.integer, 1, 2**20),
    alpha_pattern=_pattern(settings, 'alpha_pattern', values.number),
    rslora=settings.boolean('use_rslora', False, null=True),
    dora=settings.boolean('use_dora', False, null=True),
    targets=targets,
    exclude=_names(settings, 'exclude_modules'),
    layers=layers,
    layers_pattern=pattern,
    saved=_texts(settings, 'modules_to_save'),
    bias=settings.choose(
      'bias', {b: b for b in ('none', 'all', 'lora_only')}, 'none'
    ),
    fan_in_fan_out=settings.boolean('fan_in_fan_out', False, null=True),
    ties=settings.boolean('ensure_weight_tying', False, null=True),
    task_type=settings.text('task_type', None, null=True),
    base=settings.text('base_model_name_or_path', None, null=True),
  )


def _check_known(path: pathlib.Path, found: Mapping[str, Any]) -> None:
  known = {*USED, *WITHOUT_EFFECT, *REFUSED}
  unknown = [key for key in sorted(found.keys() - known) if found[key]]
  if unknown:
    key = unknown[0]
    raise ValueError(
      f'{path}: {shown(key)[1:-1]}={shown(found[key])} is unknown here, and '
      'may change what the adapter computes; delete it if it does not'
    )


def _check_start(path: pathlib.Path, start: Any) -> None:
  if start is None or isinstance(start, bool):
    return
  name = start.lower() if isinstance(start, str) else ''
  if re.match(CHANGES_THE_BASE, name):
    raise ValueError(
      f'{path}: init_lora_weights={shown(start)} took a part out of the base, '
      'which the adapter as it is saved does not say. Save it with PEFT by '
      'save_pretrained(..., path_initial_model_for_weight_conversion=START), '
      'START being the adapter before training'
    )
  if name not in PLAIN_STARTS:
    raise ValueError(
      f'{path}: init_lora_weights={shown(start)} is unknown here, and may have '
      f'changed the base; known are true, false, {", ".join(PLAIN_STARTS)}'
    )


def _layers(
  settings: Settings, targets: str | list[str]
) -> tuple[list[int], list[str]]:
  """Reads layers_to_transform and layers_pattern, by PEFT's rules."""
  layers = _one_or_more(settings, 'layers_to_transform', values.integer)
  pattern = _one_or_more(settings, 'layers_pattern', values.text)
  for key, value in (
    ('layers_to_transform', layers),
    ('layers_pattern', pattern),
  ):
    if value and isinstance(targets, str):
      raise ValueError(
        f'{settings.place}: {key} selects among the names that target_modules '
        f'lists, but that is the expression {shown(targets)}'
      )
  if pattern and not layers:
    raise ValueError(
      f'{settings.place}: layers_pattern without layers_to_transform'
    )
  return layers, pattern


def _one_or_more(settings: Settings, key: str, check) -> list:
  found = settings.list_or_one(key)
  return [check(one, f'{settings.place}: {key}') for one in found]


def _names(settings: Settings, key: str) -> str | list[str]:
  """Reads a regular expression, or a list of names."""
  if settings.is_text(key):
    return settings.text(key)
  return _texts(settings, key)


def _texts(settings: Settings, key: str) -> list[str]:
  found = settings.items(key, [], null=True)
  return [values.text(one, f'{settings.place}: {key}') for one in found]


def _pattern(settings: Settings, key: str, check, *bounds) -> dict[str, Any]:
  return {
    name: check(value, f'{settings.place}: {key}: {shown(name)}', *bounds)
    for name, value in settings.table(key, {}, null=True).items()
  }
