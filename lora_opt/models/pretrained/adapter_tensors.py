"""Opens the tensors of a PEFT adapter, in any of PEFT's files and spellings."""

import dataclasses
import pathlib
import re

from lora_opt.models.pretrained.files import StoredTensor, open_safetensors
from lora_opt.models.pretrained.weight_files import open_torch
from lora_opt.reading.values import shown

WEIGHTS, TORCH = 'adapter_model.safetensors', 'adapter_model.bin'
PREFIX = 'base_model.model.'

# Names as in a model in memory, which contain the name of the adapter.
_INSIDE = (
  re.compile(r'(?P<start>.+\.lora_[AB])\.(?P<adapter>[^.]+)(?P<end>\.weight)'),
  re.compile(
    r'(?P<start>.+\.(lora_embedding_[AB]|lora_magnitude_vector))'
    r'(\.(?P<adapter>[^.]+?))??(\.weight)?(?P<end>)'
  ),
  re.compile(
    r'(?P<start>.+)\.modules_to_save\.(?P<adapter>[^.]+)(?P<end>\.[^.]+)'
  ),
)


def open_adapter(folder: pathlib.Path) -> dict[str, StoredTensor]:
  """Lists the tensors of an adapter by the names that PEFT saves them under.

  Args:
    folder: Folder with adapter_model.safetensors, or adapter_model.bin if torch
      is installed.

  Returns:
    The tensors by name. Tensors that a program saved from a model in memory,
    without the prefix or with the adapter's name inside, are renamed.

  Raises:
    FileNotFoundError: If the folder has neither file.
    ImportError: If only torch can read the file and it is not installed.
    ValueError: If a file is damaged, or holds several adapters.
  """
  file = folder / WEIGHTS
  if not file.exists() and (folder / TORCH).exists():
    file = folder / TORCH
    tensors = open_torch(file)
  else:
    tensors = open_safetensors(file)
  prefixed = any(name.startswith(PREFIX) for name in tensors)
  found, adapters = {}, set()
  for name, tensor in tensors.items():
    plain, adapter = saved_name(name if prefixed else PREFIX + name)
    adapters |= {adapter} if adapter else set()
    if plain in found:
      raise ValueError(
        f'{file}: {shown(name)} and {shown(found[plain].name)} are names of '
        'the same tensor'
      )
    found[plain] = dataclasses.replace(tensor, name=name)
  if len(adapters) > 1:
    raise ValueError(
      f'{file} holds several adapters: {shown(sorted(adapters))}; save one '
      'with PEFT'
    )
  return found


def saved_name(name: str) -> tuple[str, str]:
  """Returns PEFT's name for a saved tensor, and the adapter's name or ''.

  >>> saved_name('model.q_proj.lora_A.default.weight')
  ('model.q_proj.lora_A.weight', 'default')
  >>> saved_name('model.q_proj.lora_A.weight')
  ('model.q_proj.lora_A.weight', '')
  >>> saved_name('model.embed_tokens.lora_embedding_A')
  ('model.embed_tokens.lora_embedding_A', '')
  >>> saved_name('score.modules_to_save.mine.weight')
  ('score.weight', 'mine')
  """
  for inside in _INSIDE:
    if match := inside.fullmatch(name):
      return match['start'] + match['end'], match['adapter'] or ''
  return name, ''
