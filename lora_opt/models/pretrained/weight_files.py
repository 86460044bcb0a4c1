"""Opens the weights of a Hugging Face folder, in one file or several."""

import pathlib
from collections.abc import Callable

from lora_opt.models.pretrained.besides import check_copy
from lora_opt.models.pretrained.files import StoredTensor, open_safetensors
from lora_opt.models.pretrained.torch_file import open_torch
from lora_opt.reading import values
from lora_opt.reading.files import inside
from lora_opt.reading.json_text import read_json
from lora_opt.reading.values import plain

SAFETENSORS, TORCH = 'model.safetensors', 'pytorch_model.bin'


def open_weights(folder: pathlib.Path) -> dict[str, StoredTensor]:
  """Lists the tensors of a model folder without reading them.

  Looks, in transformers' order, for model.safetensors, for
  model.safetensors.index.json and the files it names, and for the same two of
  pytorch_model.bin.

  Args:
    folder: The folder.

  Returns:
    The tensors by name.

  Raises:
    FileNotFoundError: If there are no weights, or a file of an index is
      missing.
    OSError: If a file cannot be read.
    ValueError: If a file is damaged or cut short, or the index is wrong.
    ImportError: If only torch can read the weights and it is not installed.
  """
  for name, open_file in ((SAFETENSORS, open_safetensors), (TORCH, open_torch)):
    file, index = folder / name, folder / f'{name}.index.json'
    if file.exists() or file.is_symlink():
      return open_file(file)
    if index.exists() or index.is_symlink():
      return open_index(index, open_file)
  raise FileNotFoundError(
    f'no {SAFETENSORS} in {folder}, nor {SAFETENSORS}.index.json, {TORCH} or '
    f'{TORCH}.index.json'
  )


def open_index(
  index: pathlib.Path,
  open_file: Callable[[pathlib.Path], dict[str, StoredTensor]],
) -> dict[str, StoredTensor]:
  """Lists the tensors of all files that an index names.

  As in transformers, this includes tensors that the index does not list.
  """
  places = read_json(index).get('weight_map')
  if not values.table(places, f'{index}: weight_map'):
    raise ValueError(f'{index}: weight_map is empty')
  folder, files, listed = index.parent, {}, {}
  for name, place in places.items():
    file = inside(folder, place, f'{index}: tensor {plain(name)}')
    if file not in files:
      if not file.exists():
        raise FileNotFoundError(
          f'no {plain(place)} in {folder}, where {index.name} puts tensor '
          f'{plain(name)}; get the file again'
        )
      files[file] = open_file(file)
    listed[name] = file
  tensors = {}
  for content in files.values():
    for name, tensor in content.items():
      if name in tensors:
        check_copy(tensor, tensors[name])
      tensors.setdefault(name, tensor)
  for name, file in listed.items():
    if name not in files[file]:
      found = tensors[name].file if name in tensors else None
      raise ValueError(
        f'{index} puts tensor {plain(name)} into {plain(file.name)}, which '
        f'does not hold it ({f"{found} does" if found else "no file does"}); '
        'get the index and its files again'
      )
  return tensors
