"""Opens files of `torch.save`, if torch is installed."""

import importlib.util
import pathlib
import warnings
import zipfile
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from lora_opt.models.pretrained.files import StoredTensor
from lora_opt.reading.files import check_file
from lora_opt.reading.values import plain, shown


def open_torch(file: pathlib.Path) -> dict[str, StoredTensor]:
  """Lists the tensors of a file of `torch.save`; they may stay in memory.

  Args:
    file: File with a state dictionary. Only tensors are unpickled.

  Returns:
    The tensors by name. Files written since torch 1.6 are memory-mapped, older
    ones are read whole.

  Raises:
    FileNotFoundError: If there is no such file.
    OSError: If it cannot be read.
    ImportError: If torch is not installed.
    ValueError: If the file is damaged, cut short, or holds something else.
  """
  size = check_file(file)
  if importlib.util.find_spec('torch') is None:
    raise ImportError(
      f'{file} can only be read with torch: install it, or convert the file to '
      'safetensors'
    )
  import torch

  with file.open('rb'):
    pass  # a file that cannot be read must not be reported as damaged
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # about types that torch has deprecated
      content = torch.load(
        file,
        map_location='cpu',
        weights_only=True,
        mmap=zipfile.is_zipfile(file),
      )
  # Damage makes torch's readers of archives and pickles fail in many ways.
  except Exception as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise ValueError(
      f'{file} ({size} bytes) is not a complete file of torch.save with '
      f'tensors alone: {shown(reason, 300)}'
    ) from error
  if not isinstance(content, Mapping):
    raise ValueError(
      f'{file}: {type(content).__name__} is not a tensor, expected a table of '
      'tensors'
    )
  for name, tensor in content.items():
    if not isinstance(name, str):
      raise ValueError(f'{file}: {shown(name)} is not a name of a tensor')
    if not isinstance(tensor, torch.Tensor):
      raise ValueError(
        f'{file}: {plain(name)} is not a tensor, expected a table of tensors'
      )
  return {name: _stored(file, name, t) for name, t in content.items()}


def _stored(file, name, tensor) -> StoredTensor:
  import torch

  def read() -> np.ndarray:
    whole = tensor.detach().contiguous()
    if whole.dtype == torch.bfloat16:  # NumPy knows it only through ml_dtypes
      return whole.view(torch.int16).numpy().view(jnp.bfloat16)
    return whole.numpy()

  where = f'{file}: tensor {plain(name)}'
  kind = str(tensor.dtype).removeprefix('torch.')
  if tensor.layout != torch.strided or tensor.device.type != 'cpu':
    raise ValueError(
      f'{where} is of layout {tensor.layout} on {tensor.device}, expected a '
      'dense tensor with values; save the model without it'
    )
  # An expanded tensor is not a weight, and copying it could fill the memory.
  if tensor.numel() > max(1, tensor.untyped_storage().nbytes()):
    raise ValueError(
      f'{where} has shape {tuple(tensor.shape)}, but the file holds fewer '
      'numbers'
    )
  try:
    dtype = np.dtype(getattr(jnp, kind))
  except (AttributeError, TypeError) as error:
    raise ValueError(
      f'{where} is of type {kind}, expected a plain number'
    ) from error
  return StoredTensor(file, name, tuple(tensor.shape), dtype, read)
