"""Opens the weights of one part of a diffusers folder; only safetensors."""

import pathlib
from typing import NamedTuple

from absl import logging

from lora_opt.models.diffusion.names import TEXT
from lora_opt.models.pretrained.besides import (
  Buffer,
  check_besides,
  is_range,
)
from lora_opt.models.pretrained.files import StoredTensor, open_safetensors
from lora_opt.models.pretrained.weight_files import open_index

_END, _INDEX = '.safetensors', '.safetensors.index.json'
_PICKLES = ('*.bin', '*.ckpt', '*.pt', '*.pth', '*.msgpack', '*.h5')
# The first names of the maps in the autoencoder's attention.
_OLD = {
  'query': 'to_q',
  'key': 'to_k',
  'value': 'to_v',
  'proj_attn': 'to_out.0',
}
_POSITIONS = 'embeddings.position_ids'


class Part(NamedTuple):
  """A part of a folder that has weights."""

  name: str  # name of its folder
  stem: str  # start of the names of its files


PARTS = (
  Part('unet', 'diffusion_pytorch_model'),
  Part('text_encoder', 'model'),
  Part('vae', 'diffusion_pytorch_model'),
)


def open_part(
  folder: pathlib.Path, part: Part, variant: str | None
) -> dict[str, StoredTensor]:
  """Lists the tensors of a part by their current names.

  Args:
    folder: Folder of the whole model.
    part: The part.
    variant: Which of several files: 'fp16' for diffusion_pytorch_model.fp16.
      safetensors; None for the file without a variant, or the only one.

  Returns:
    The tensors by name.

  Raises:
    FileNotFoundError: There are no such weights.
    ValueError: They are pickles, damaged, or there are several variants.
  """
  place = folder / part.name
  file = _file(place, part, variant)
  if file.name.endswith(_INDEX):
    tensors = open_index(file, open_safetensors)
  else:
    tensors = open_safetensors(file)
  found = {}
  for name, tensor in tensors.items():
    new = _today(part, name)
    if new in found:
      raise ValueError(
        f'{tensor.where} and {found[new].name} are names of the same tensor'
      )
    found[new] = tensor
  if _POSITIONS in found:
    rule = Buffer(is_range, 'the numbers of the positions')
    positions = {_POSITIONS: found.pop(_POSITIONS)}
    check_besides({_POSITIONS: rule}, positions, {}, {})
  return found


def _file(place: pathlib.Path, part: Part, variant: str | None) -> pathlib.Path:
  """Finds the file, or the index of several files."""
  if not place.is_dir():
    raise FileNotFoundError(
      f'no folder {place}: a part of the model is missing; get it again'
    )
  stem = part.stem if variant is None else f'{part.stem}.{variant}'
  for name in (f'{stem}{_END}', f'{stem}{_INDEX}', *_dotted(part, variant)):
    if (place / name).exists() or (place / name).is_symlink():
      return place / name
  others = sorted(
    file.name.removeprefix(f'{part.stem}.').split('.')[0]
    for file in place.glob(f'{part.stem}.*{_END}')
    if not file.name.startswith(f'{part.stem}{_END}')
  )
  others = sorted({name for name in others if '-of-' not in name})
  if variant is None and len(others) == 1:
    logging.info('%s has a variant alone: %s', place, others[0])
    return _file(place, part, others[0])
  if others:
    raise ValueError(
      f'{place} has no {stem}{_END}, but the variant(s) {", ".join(others)}: '
      f'say which by variant={others[0]!r}'
    )
  pickles = sorted(
    file.name for pattern in _PICKLES for file in place.glob(pattern)
  )
  if pickles:
    raise ValueError(
      f'{place / pickles[0]} is not a safetensors file: opening it can run '
      'what its author wrote, so it is not read. Get the safetensors files of '
      'the model, or load it with diffusers where you trust it and save it by '
      'save_pretrained(folder, safe_serialization=True)'
    )
  raise FileNotFoundError(f'no {stem}{_END} in {place}, nor {stem}{_INDEX}')


def _dotted(part: Part, variant: str | None) -> tuple[str, ...]:
  """The name of a variant's index, with the variant in another place."""
  return () if variant is None else (f'{part.stem}{_END}.index.{variant}.json',)


def _today(part: Part, name: str) -> str:
  if part.name == 'text_encoder':
    return name.removeprefix(TEXT)
  if part.name == 'vae':
    *module, kind, leaf = name.split('.')
    if kind in _OLD and module[-2:-1] == ['attentions']:
      return '.'.join((*module, _OLD[kind], leaf))
  return name
