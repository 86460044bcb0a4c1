"""The tensors of a Hugging Face folder, in one file or several.

Safetensors is read with NumPy alone, PyTorch's own format only where torch is
installed.
"""

import importlib.util
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from lora_opt.models.pretrained.files import StoredTensor, open_safetensors
from lora_opt.reading.json_text import read_json

SAFETENSORS, TORCH = 'model.safetensors', 'pytorch_model.bin'


def open_weights(folder: pathlib.Path) -> dict[str, StoredTensor]:
  """Lists the tensors of a model folder without reading them.

  Looked for, in this order: model.safetensors.index.json and the files it
  names, model.safetensors, and the same two for pytorch_model.bin.

  Args:
    folder: The folder.

  Returns:
    Name: tensor.

  Raises:
    FileNotFoundError: If there are no weights, or a file of an index is
      missing.
    ValueError: If a file is damaged or cut short, or the index is wrong.
    ImportError: If only torch can read the weights and it is not installed.
  """
  for name, open_file in ((SAFETENSORS, open_safetensors), (TORCH, open_torch)):
    index = folder / f'{name}.index.json'
    if index.is_file():
      return _open_index(index, open_file)
    if (folder / name).is_file():
      return open_file(folder / name)
  raise FileNotFoundError(
    f'no {SAFETENSORS} in {folder}, nor {SAFETENSORS}.index.json, {TORCH} or '
    f'{TORCH}.index.json'
  )


def _open_index(
  index: pathlib.Path,
  open_file: Callable[[pathlib.Path], dict[str, StoredTensor]],
) -> dict[str, StoredTensor]:
  """Lists the tensors that an index names, each from the file it says."""
  places = read_json(index).get('weight_map')
  if not isinstance(places, Mapping) or not places:
    raise ValueError(
      f'{index} has no weight_map, expected a table of tensors and their files'
    )
  files = {}
  for name, place in places.items():
    if not isinstance(place, str):
      raise ValueError(
        f'{index} puts tensor {name} into {place!r}, expected a file name'
      )
    if place not in files:
      if not (index.parent / place).is_file():
        raise FileNotFoundError(
          f'no {place} in {index.parent}, where {index.name} puts tensor '
          f'{name}; get the file again'
        )
      files[place] = open_file(index.parent / place)
  tensors = {}
  for name, place in places.items():
    if name not in files[place]:
      found = [file for file, content in files.items() if name in content]
      raise ValueError(
        f'{index} puts tensor {name} into {place}, which does not hold it '
        f'({f"{found[0]} does" if found else "no other file does"}); get the '
        'index and its files again'
      )
    tensors[name] = files[place][name]
  return tensors


def open_torch(file: pathlib.Path) -> dict[str, StoredTensor]:
  """Lists the tensors of a file of `torch.save`; they may stay in memory.

  Args:
    file: A state dictionary. Nothing but tensors is unpickled.

  Returns:
    Name: tensor. Files since torch 1.6 are mapped, older ones are read whole.

  Raises:
    ImportError: If torch is not installed.
    ValueError: If the file is damaged, cut short, or holds something else.
  """
  if importlib.util.find_spec('torch') is None:
    raise ImportError(
      f'{file} can only be read with torch: install it, or convert the file to '
      'safetensors'
    )
  import torch

  try:
    content = torch.load(
      file, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(file)
    )
  except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise ValueError(
      f'{file} ({file.stat().st_size} bytes) is not a complete file of '
      f'torch.save with tensors alone: {reason}'
    ) from error
  wrong = [
    name
    for name, value in getattr(content, 'items', dict().items)()
    if not isinstance(value, torch.Tensor)
  ]
  if not isinstance(content, Mapping) or wrong:
    what = wrong[0] if wrong else type(content).__name__
    raise ValueError(
      f'{file}: {what} is no tensor, expected a table of tensors'
    )
  return {name: _stored(file, name, t) for name, t in content.items()}


def _stored(file, name, tensor) -> StoredTensor:
  import torch

  def read() -> np.ndarray:
    plain = tensor.detach().contiguous()
    if plain.dtype == torch.bfloat16:  # NumPy learns it from ml_dtypes alone
      return plain.view(torch.int16).numpy().view(jnp.bfloat16)
    return plain.numpy()

  kind = str(tensor.dtype).removeprefix('torch.')
  try:
    dtype = np.dtype(getattr(jnp, kind))
  except (AttributeError, TypeError) as error:
    raise ValueError(
      f'{file}: tensor {name} is of type {kind}, expected a plain number'
    ) from error
  return StoredTensor(file, name, tuple(tensor.shape), dtype, read)
