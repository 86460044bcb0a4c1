"""Writes a text-to-image model, optionally with its adapter, for diffusers."""

import json
import os
import pathlib
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from lora_opt import writing
from lora_opt.data import hub
from lora_opt.models.diffusion.names import TEXT, tensor_names, with_prefix
from lora_opt.models.diffusion.part_settings import settings_of
from lora_opt.models.diffusion.text_to_image import TextToImage
from lora_opt.models.diffusion.weights import PARTS
from lora_opt.models.lora import check_dtype
from lora_opt.models.pretrained.assemble import all_finite, disassemble
from lora_opt.models.quantized import leaves_by_path
from lora_opt.models.variables import Tree

# Files that are copied from a source folder: settings, tokenizer, and the
# weights of parts that are not read here. Pickles are never copied.
_COPIED = ('.json', '.txt', '.model')
_UNREAD = ('safety_checker', 'feature_extractor', 'image_encoder')


def save_pipeline(
  folder: str | os.PathLike,
  model: TextToImage,
  lora: Tree | None = None,
  *,
  base: Tree | None = None,
  source: str | os.PathLike | None = None,
  dtype: str | None = None,
) -> None:
  """Writes a model, with an adapter merged into its weights.

  Each tensor is merged in float32 and rounded once.

  Args:
    folder: Where to write; must not exist.
    model: The model; this process must hold all of it.
    lora: The adapter to merge; None for none.
    base: Weights to use instead of the model's, such as trained ones.
    source: The folder that the model came from, whose settings, tokenizer and
      other parts are copied; None to generate settings and tokenizer.
    dtype: Type of the tensors, 'float32' or 'bfloat16'; by default the base's.

  Raises:
    FileExistsError: If the folder exists.
    FileNotFoundError: If `source` is not a diffusers folder.
    ValueError: For an unknown `dtype`, or weights that are not finite.
  """
  folder = pathlib.Path(folder)
  if folder.exists() or folder.is_symlink():
    raise FileExistsError(f'{folder} exists; merge into a new folder')
  if dtype is not None:
    check_dtype(dtype)
  if source is not None:
    source = hub.pipeline_folder(source, None)
    if not (source / 'model_index.json').exists():
      raise FileNotFoundError(f'no model_index.json in {source}')
  base = model.base if base is None else base
  with writing.draft_folder(folder) as draft:
    if source is None:
      _write_settings(draft, model)
    else:
      _copy_settings(source, draft)
    for part in PARTS:
      if part.name in base:
        tree = _merged(base[part.name], (lora or {}).get(part.name, {}), model)
        kind = jnp.dtype(dtype or leaves_by_path(base)[_first(base)].dtype)
        _write_weights(draft / part.name, part, tree, kind)


def _first(base: Tree) -> str:
  return next(iter(leaves_by_path(base)))


def _merged(base: Tree, lora: Tree, model: TextToImage) -> dict[str, Any]:
  """Returns the float32 arrays by path, with the adapter added."""
  found, adapter = leaves_by_path(base), leaves_by_path(lora)
  merged = {}
  for path, leaf in found.items():
    weight = np.asarray(leaf, np.float32)
    site = path.removesuffix('kernel')
    if f'{site}lora_a' in adapter:
      a, b = (
        np.asarray(adapter[f'{site}{name}'], np.float32)
        for name in ('lora_a', 'lora_b')
      )
      with np.errstate(over='ignore', invalid='ignore'):
        change = model.lora_config.scale * (a @ b)
        weight = weight + change.reshape(weight.shape)
    merged[path] = weight
  return merged


def _write_weights(folder, part, leaves, kind) -> None:
  folder.mkdir(exist_ok=True)
  names = tensor_names(leaves)
  if part.name == 'text_encoder':
    # Every version of transformers reads names with this prefix.
    names = with_prefix(names, TEXT)
  with np.errstate(over='ignore', invalid='ignore'):
    tensors = {
      name: tensor.astype(kind)
      for name, tensor in disassemble(leaves, names).items()
    }
  for name, tensor in tensors.items():
    if not all_finite(tensor):
      raise ValueError(
        f'{part.name}: {name} would be written with values that are not '
        f'finite: training has diverged, or {kind.name} cannot hold them'
      )
  file = folder / f'{part.stem}.safetensors'
  save_file(tensors, file, metadata={'format': 'pt'})


def _write_settings(folder: pathlib.Path, model: TextToImage) -> None:
  files = settings_of(model.config)
  files['text_encoder/config.json'] |= {
    f'{name}_token_id': getattr(model.tokenizer, f'{name}_id')
    for name in ('bos', 'eos', 'pad')
  }
  for name, content in files.items():
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
  (folder / 'tokenizer').mkdir()
  model.tokenizer.save(folder / 'tokenizer')


def _copy_settings(source: pathlib.Path, folder: pathlib.Path) -> None:
  for file in sorted(source.glob('*.json')) + sorted(source.glob('*/*')):
    whole = file.parent.name in _UNREAD and file.suffix == '.safetensors'
    wanted = file.suffix in _COPIED and not file.name.endswith('.index.json')
    if file.is_file() and (whole or wanted):
      copy = folder / file.relative_to(source)
      copy.parent.mkdir(exist_ok=True)
      shutil.copyfile(file, copy)
