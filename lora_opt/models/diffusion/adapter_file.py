"""Adapters in diffusers' file format: pytorch_lora_weights.safetensors.

Names are 'unet.' or 'text_encoder.' followed by PEFT's names; rank and alpha
are in the header. Files of kohya's trainer and of older versions of diffusers
can be read too.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import save

from lora_opt import writing
from lora_opt.data import hub
from lora_opt.models.diffusion.adapter_names import (
  Found,
  read_names,
  read_settings,
)
from lora_opt.models.diffusion.names import TEXT, tensor_names, with_prefix
from lora_opt.models.diffusion.text_to_image import TextToImage
from lora_opt.models.pretrained.assemble import assemble, disassemble
from lora_opt.models.pretrained.family import TensorName, slots
from lora_opt.models.pretrained.files import open_safetensors
from lora_opt.models.quantized import leaves_by_path
from lora_opt.models.variables import Tree

WEIGHTS = 'pytorch_lora_weights.safetensors'
METADATA = 'lora_adapter_metadata'
# The prefixes of our parts in the file.
_PREFIXES = {'unet': 'unet.', 'text_encoder': f'text_encoder.{TEXT}'}


def export_adapter(
  folder: str | os.PathLike, lora: Tree, model: TextToImage
) -> None:
  """Writes an adapter that diffusers loads by `load_lora_weights(folder)`.

  Args:
    folder: Where to write; created if it does not exist.
    lora: The adapter.
    model: Supplies the settings.

  Raises:
    ValueError: If the model has no adapter settings.
  """
  if model.lora_config is None:
    raise ValueError(
      f'model {model.name} has no adapter; pass lora=LoraConfig(...)'
    )
  spread = spread_out(lora, model)
  names = adapter_names(spread)
  tensors = {
    name: tensor.astype(np.float32)
    for name, tensor in disassemble(spread, names).items()
  }
  said = json.dumps(_metadata(model, tensors), indent=2, sort_keys=True)
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  data = save(tensors, metadata={'format': 'pt', METADATA: said})
  writing.write_bytes(folder / WEIGHTS, _with_sorted_metadata(data))


def import_adapter(path: str | os.PathLike, model: TextToImage) -> Tree:
  """Reads an adapter of diffusers or of kohya's trainer.

  Args:
    path: A safetensors file, or a folder with pytorch_lora_weights.safetensors
      or with a single safetensors file; or a name on the hub, see
      `lora_opt.data.hub`.
    model: The model; the adapter must match its adapter settings.

  Returns:
    The adapter, structured as `model.init` returns it.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the model has no adapter or another scale, the adapter is
      for other modules, a tensor is missing, unknown or mis-shaped, or the
      file is damaged.
  """
  if model.lora_config is None:
    raise ValueError(
      f'model {model.name} has no adapter; pass lora=LoraConfig(...)'
    )
  file = _file(hub.model_folder(path))
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  spread = jax.eval_shape(lambda lora: spread_out(lora, model), abstract)
  names = adapter_names(spread)
  wanted = slots(spread, names)
  found = read_names(file, open_safetensors(file), wanted)
  _check_modules(file, found, wanted, model)
  _check_scale(file, found, wanted, model)
  read = assemble(str(file), spread, names, found.tensors, 'float32')
  return jax.tree.map(
    lambda x, like: x.reshape(like.shape).astype(like.dtype), read, abstract
  )


def adapter_names(spread: Tree) -> dict[str, TensorName]:
  """The names of an adapter's arrays; convolutions must have all their axes."""
  names = {}
  for part, tree in spread.items():
    own = with_prefix(tensor_names(tree), _PREFIXES[part])
    names |= {f'{part}/{path}': name for path, name in own.items()}
  return names


def spread_out(lora: Tree, model: TextToImage) -> Tree:
  """Reshapes the factors of convolutions to kernels.

  (width * height * in, rank) becomes (width, height, in, rank), and
  (rank, out) becomes the (1, 1, rank, out) of the convolution up.
  """
  kernels, found = leaves_by_path(model.base), {}
  for path, leaf in leaves_by_path(lora).items():
    site, _, factor = path.rpartition('/')
    kernel = kernels[f'{site}/kernel']
    if kernel.ndim == 4:
      shape = kernel.shape[:3] if factor == 'lora_a' else (1, 1, leaf.shape[0])
      leaf = leaf.reshape(*shape, leaf.shape[-1])
    found[path] = leaf
  return traverse_util.unflatten_dict(found, sep='/')


def _with_sorted_metadata(data: bytes) -> bytes:
  """Makes the bytes of a file depend on its content only.

  The library writes metadata in a different order each time.
  """
  size = int.from_bytes(data[:8], 'little')
  header = json.loads(data[8 : 8 + size])
  metadata = header.pop('__metadata__')
  header = {'__metadata__': dict(sorted(metadata.items())), **header}
  text = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # as the format requires
  return len(text).to_bytes(8, 'little') + text + data[8 + size :]


def _metadata(model: TextToImage, tensors: Mapping[str, Any]) -> dict[str, Any]:
  """PEFT's settings of each part, with the part's name as prefix."""
  lora, said = model.lora_config, {}
  for part in ('unet', 'text_encoder'):
    # Text encoders of older versions have a further prefix. Targets are ends of
    # names, so they do not need it.
    prefix = _PREFIXES[part]
    targets = {
      name.removeprefix(prefix).rpartition('.lora_')[0]
      for name in tensors
      if name.startswith(prefix)
    }
    if targets:
      settings = {
        'r': lora.rank,
        'lora_alpha': int(lora.alpha) if lora.alpha % 1 == 0 else lora.alpha,
        'use_rslora': lora.rslora,
        'lora_dropout': lora.dropout,
        'target_modules': sorted(targets),
        'bias': 'none',
      }
      said |= {f'{part}.{key}': value for key, value in settings.items()}
  return said


def _file(path: pathlib.Path) -> pathlib.Path:
  if not path.is_dir():
    if path.suffix != '.safetensors':
      raise FileNotFoundError(f'no safetensors file or folder at {path}')
    return path
  if (path / WEIGHTS).exists():
    return path / WEIGHTS
  others = sorted(path.glob('*.safetensors'))
  if len(others) == 1:
    return others[0]
  names = ', '.join(file.name for file in others) or 'no safetensors file'
  raise FileNotFoundError(f'no {WEIGHTS} in {path}; it holds {names}')


def _check_modules(file, found: Found, wanted, model) -> None:
  """Raises ValueError unless model and adapter adapt the same modules."""
  ours, theirs = (
    {name.rpartition('.lora_')[0] for name in names}
    for names in (wanted, found.tensors)
  )
  for problem, modules in (
    ('adapts', theirs - ours),
    ('does not adapt', ours - theirs),
  ):
    if modules:
      few = ', '.join(sorted(modules)[:3])
      more = f' and {len(modules) - 3} more' if len(modules) > 3 else ''
      raise ValueError(
        f'{file} {problem} {few}{more}, unlike the model; set its LoRA target='
        f'{model.lora_config.target!r} to what the adapter was trained on'
      )


def _check_scale(file, found: Found, wanted, model) -> None:
  """Raises ValueError unless rank and scale are the model's."""
  lora = model.lora_config
  settings = read_settings(file, METADATA)
  for name in wanted:
    module, _, factor = name.rpartition('.lora_')
    if factor != 'A.weight' or name not in found.tensors:
      continue  # missing tensors are reported when they are read
    rank = found.tensors[name].shape[0]
    if rank != lora.rank:
      raise ValueError(
        f'{file}: the rank of {module} is {rank}, the model has {lora.rank}'
      )
    scale = settings.scale(module, rank, found.alphas.get(module))
    if not np.isclose(scale, lora.scale, rtol=1e-3):
      raise ValueError(
        f'{file}: the change of {module} is multiplied by {scale:g}, the model '
        f'has {lora.scale:g}; set LoRA alpha to {scale * rank:g}'
      )
