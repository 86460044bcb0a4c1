"""Reads adapters of diffusers and kohya, in any of their spellings.

    unet.MODULE.lora_A.weight, .lora_B.weight          diffusers today
    unet.MODULE.lora.down.weight, .up.weight           older versions
    unet.ATTENTION.processor.to_q_lora.down.weight     first versions
    lora_unet_MODULE.lora_down.weight, .lora_up.weight, .alpha    kohya

Kohya's MODULE has _ for every dot, and lora_te_ stands for the text encoder.
"""

import dataclasses
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from lora_opt.models.diffusion.names import TEXT
from lora_opt.models.pretrained.files import StoredTensor
from lora_opt.models.pretrained.safetensors_header import read_metadata
from lora_opt.reading import values
from lora_opt.reading.json_text import parse_json

_FACTORS = {'down': 'A', 'up': 'B'}
# In the first files, the map of the attention and the factor share one name.
_AT_FIRST = re.compile(r'\.(?:processor\.)?to_(q|k|v|out)_lora\.(down|up)\.')
_BEFORE = re.compile(r'\.(?:lora|lora_linear_layer)\.(down|up)\.weight$')
_KOHYA = re.compile(
  r'lora_(?P<part>unet|te|te1)_(?P<module>[^.]+)\.'
  r'(?P<rest>lora_(?P<factor>down|up)\.weight|alpha)'
)
_TEXT_MAPS = {'q': 'q_proj', 'k': 'k_proj', 'v': 'v_proj', 'out': 'out_proj'}


class Found(NamedTuple):
  """The content of an adapter's file.

  Attributes:
    tensors: The tensors by the names that diffusers uses today.
    alphas: The alpha of each module, in kohya's files.
  """

  tensors: dict[str, StoredTensor]
  alphas: dict[str, float]


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
  """The settings in a file's header, by part; {} for parts without settings."""

  place: str
  parts: Mapping[str, Mapping[str, Any]]

  def scale(self, module: str, rank: int, alpha: float | None) -> float:
    """Returns the factor that the change of a module is multiplied by.

    Args:
      module: Name of the module, with its part.
      rank: Rank of its factors.
      alpha: The alpha that is stored beside the factors, or None.
    """
    part, _, name = module.partition('.')
    said = self.parts.get(part, {})
    place = f'{self.place}: {part}.'
    if alpha is None:
      alpha = values.number(
        said.get('lora_alpha', rank), f'{place}lora_alpha', above=0
      )
      patterns = said.get('alpha_pattern') or {}
      for key, value in values.table(patterns, f'{place}alpha_pattern').items():
        if name.removeprefix(TEXT).endswith(key.removeprefix('^')):
          alpha = values.number(value, f'{place}alpha_pattern', above=0)
    if said.get('use_rslora') is True:
      return alpha / rank**0.5
    return alpha / rank


def read_settings(file: pathlib.Path, key: str) -> AdapterSettings:
  """Reads the settings in a file's header.

  Raises:
    ValueError: They are damaged, or belong to another kind of adapter.
  """
  place = f'{file}: {key}'
  said = read_metadata(file).get(key)
  parts: dict[str, dict[str, Any]] = {}
  if said is not None:
    found = values.table(parse_json(said, place), place)
    for name, value in found.items():
      part, _, setting = name.partition('.')
      parts.setdefault(part, {})[setting] = value
  for part, settings in parts.items():
    for name in ('use_dora', 'lora_bias'):
      if settings.get(name):
        raise ValueError(
          f'{place}: {part}.{name}={values.shown(settings[name])} is not '
          'supported'
        )
    if settings.get('bias', 'none') != 'none':
      raise ValueError(
        f'{place}: {part}.bias={values.shown(settings["bias"])} means that '
        'biases were trained too, which is not supported'
      )
  return AdapterSettings(place, parts)


def read_names(
  file: pathlib.Path,
  tensors: Mapping[str, StoredTensor],
  wanted: Collection[str],
) -> Found:
  """Renames the tensors of a file as diffusers does today.

  Args:
    file: The file.
    tensors: Its tensors.
    wanted: The names that are expected; kohya's names are matched with them.

  Raises:
    ValueError: Two names stand for the same tensor, or a tensor is not part of
      an adapter.
  """
  flat = {
    _flat(name.rpartition('.lora_')[0]): name.rpartition('.lora_')[0]
    for name in wanted
  }
  found, alphas = {}, {}
  for name, tensor in tensors.items():
    match = _KOHYA.fullmatch(name)
    if match is None:
      new = _today(name)
    else:
      part = 'unet' if match['part'] == 'unet' else 'text_encoder'
      module = f'{part}_{match["module"]}'
      module = flat.get(module, f'{part}.{match["module"]}')
      if match['rest'] == 'alpha':
        alphas[module] = _number(tensor)
        continue
      new = f'{module}.lora_{_FACTORS[match["factor"]]}.weight'
    if '.lora_' not in new:
      raise ValueError(f'{tensor.where} is not a factor of an adapter')
    if new in found:
      raise ValueError(
        f'{tensor.where} and {values.plain(found[new].name)} are names of the '
        'same tensor'
      )
    found[new] = tensor
  return Found(found, alphas)


def _today(name: str) -> str:
  is_text = name.startswith('text_encoder.')
  if is_text and not name.startswith(f'text_encoder.{TEXT}'):
    name = name.replace('text_encoder.', f'text_encoder.{TEXT}', 1)

  def attention(match):
    place = 'to_out.0' if match[1] == 'out' else f'to_{match[1]}'
    if is_text:
      place = _TEXT_MAPS[match[1]]
    return f'.{place}.lora_{_FACTORS[match[2]]}.'

  name = _AT_FIRST.sub(attention, name)
  return _BEFORE.sub(lambda m: f'.lora_{_FACTORS[m[1]]}.weight', name)


def _flat(module: str) -> str:
  return module.replace('.', '_')


def _number(tensor: StoredTensor) -> float:
  if tensor.shape not in ((), (1,)):
    raise ValueError(
      f'{tensor.where} has shape {tensor.shape}, expected a number'
    )
  value = float(tensor.open().reshape(()))
  return values.number(value, tensor.where, above=0)
