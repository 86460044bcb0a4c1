"""Writes a model and its adapter as one Hugging Face folder."""

import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from lora_opt import progress, writing
from lora_opt.data import hub
from lora_opt.data.images import ImageProcessor
from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.language_model import LanguageModel
from lora_opt.models.lora import check_dtype
from lora_opt.models.pretrained.assemble import all_finite
from lora_opt.models.pretrained.family import Slot, slots
from lora_opt.models.pretrained.peft_names import has_head
from lora_opt.models.quantized import (
  QuantizedKernel,
  dequantize,
  leaves_by_path,
)
from lora_opt.models.sequence_classifier import SequenceClassifier
from lora_opt.models.variables import Tree
from lora_opt.reading.json_text import read_json

# Settings, tokenizer and templates; not the weights.
COPIED = (
  '*.json',
  '*.txt',
  '*.model',
  '*.jinja',
  '1_Pooling/config.json',
  'additional_chat_templates/*.jinja',
)
ADAPTER = ('lora_a', 'lora_b', 'magnitude')


def merge_adapter(
  folder: str | os.PathLike,
  lora: Tree | None,
  model: LanguageModel | SequenceClassifier,
  *,
  source: str | os.PathLike | None = None,
  dtype: str | None = None,
  labels: Sequence[str] | None = None,
  shard_bytes: int = 4 * 1024**3,
) -> None:
  """Writes a model with its adapter merged in, as transformers saves a model.

  Each tensor is merged in float32 and rounded once. A quantized kernel is
  dequantized first, so that the result computes what our model computed; it is
  not the original base plus the adapter. An adapter on the embedding or the
  head of a model with tied embeddings unties the two.

  Args:
    folder: Where to write; must not exist.
    lora: The adapter, with the head if one is trained; None to write the model
      of the checkpoint.
    model: The adapter's model; this process must hold all of it.
    source: The Hugging Face folder (or name on the hub, see
      `lora_opt.data.hub`) that the model came from. Its tokenizer
      files are copied, its config.json with the fields that change. None to
      generate them, as for a model from a GGUF file; this is not possible for
      text encoders and SentencePiece models.
    dtype: Type of the tensors, 'float32' or 'bfloat16'; by default that of the
      base, or float32 if it is quantized.
    labels: For a classifier, the names of the labels in order; by default those
      of the model if it has any, else LABEL_0, LABEL_1 ...
    shard_bytes: Size of a file in bytes above which another one is started;
      host memory holds one file at a time.

  Raises:
    FileExistsError: If the folder exists.
    FileNotFoundError: If `source` has no config.json.
    ValueError: If the settings cannot be written without a `source`, `dtype` is
      unknown, there is not one label per output, or weights are not finite.
  """
  folder = pathlib.Path(folder)
  if folder.exists() or folder.is_symlink():
    raise FileExistsError(f'{folder} exists; merge into a new folder')
  if dtype is not None:
    check_dtype(dtype)
  if source is not None:
    source = hub.model_folder(source)
  settings = _settings(model, source)
  if model.family.abstract_head is not None:
    settings = _with_head(settings, model, labels or model.labels)
  if lora is None:
    # Without an adapter, put back what its start took out of the base.
    lora = model.start or {}
  leaves = _leaves(model, lora)
  # In T5's config.json this setting means that the output is scaled; that the
  # head is untied follows from its tensor.
  if 'head/table' in leaves and not getattr(
    model.config, 'scale_output', False
  ):
    settings['tie_word_embeddings'] = False
  with writing.draft_folder(folder) as part:  # never half a model
    kind = _write_weights(part, leaves, lora, model, dtype, shard_bytes)
    if source is None:
      model.tokenizer.save(part)
      if model.family.abstract_head is None:
        generation = _generation(model.tokenizer)
        _write_json(part / 'generation_config.json', generation)
    else:
      _copy_settings(source, part)
    # Use the older name of the type, which every version of transformers reads.
    settings.pop('dtype', None)
    _write_json(part / 'config.json', settings | {'torch_dtype': kind})


def _leaves(model: LanguageModel, lora: Tree) -> dict[str, Any]:
  """All arrays by path; an adapter on embedding or head unties the two."""
  leaves = leaves_by_path(model.base)
  # Heads that are trained in full are in the trainable tree.
  leaves |= {
    path: leaf
    for path, leaf in leaves_by_path(lora).items()
    if path.rpartition('/')[2] not in ADAPTER
  }
  tied = 'head/table' in model.family.names and 'head/table' not in leaves
  if tied and not lora.keys().isdisjoint(('embedding', 'head')):
    leaves['head/table'] = leaves['embedding/table']
  return leaves


def _write_weights(folder, leaves, lora, model, dtype, shard_bytes) -> str:
  """Writes the tensors to as many files as needed; returns their type."""
  adapter = leaves_by_path(lora)
  kind = jnp.dtype(dtype or _stored_dtype(leaves))
  files, room = [], 0
  for name, slot in slots(leaves, model.family.names).items():
    size = kind.itemsize * int(np.prod(slot.shape))
    if not files or size > room:
      files.append({})
      room = shard_bytes
    files[-1][name] = slot
    room -= size
  places = {}
  for number, content in enumerate(files, 1):
    file = 'model.safetensors'
    if len(files) > 1:
      file = f'model-{number:05}-of-{len(files):05}.safetensors'
    with np.errstate(over='ignore', invalid='ignore'):
      tensors = {
        name: _merged(slot, leaves, adapter, model.lora_config).astype(kind)
        for name, slot in progress.counted(
          content.items(), f'merging {file} of {len(files)}'
        )
      }
    for name, tensor in tensors.items():
      if not all_finite(tensor):
        raise ValueError(
          f'{name} would be written with values that are not finite: its '
          f'adapter has diverged, or {kind.name} cannot hold them'
        )
    with progress.waiting(f'writing {file}'):
      save_file(tensors, folder / file, metadata={'format': 'pt'})
    places |= dict.fromkeys(content, file)
  if len(files) > 1:
    total = sum((folder / file).stat().st_size for file in {*places.values()})
    index = {'metadata': {'total_size': total}, 'weight_map': places}
    _write_json(folder / 'model.safetensors.index.json', index)
  return kind.name


def _stored_dtype(leaves: dict[str, Any]) -> jnp.dtype:
  if any(isinstance(leaf, QuantizedKernel) for leaf in leaves.values()):
    return jnp.float32
  return max(leaves.values(), key=lambda leaf: leaf.size).dtype


def _merged(slot: Slot, leaves, adapter, lora_config) -> np.ndarray:
  """Returns one tensor of the checkpoint, as contiguous float32."""

  def part(array):
    chosen = array if slot.layer is None else array[slot.layer]
    if isinstance(chosen, QuantizedKernel):
      chosen = dequantize(chosen, jnp.float32)
    return np.asarray(chosen, np.float32)

  site, _, role = slot.path.rpartition('/')
  weight = part(leaves[slot.path])
  if role in ('kernel', 'table') and f'{site}/lora_a' in adapter:
    a, b = (part(adapter[f'{site}/{name}']) for name in ('lora_a', 'lora_b'))
    change = lora_config.scale * a @ b
    # A table has a row for each token: it is the transpose of a kernel.
    weight = weight + (change.T if role == 'table' else change)
    if f'{site}/magnitude' in adapter:
      norms = np.linalg.norm(weight, axis=0)
      weight *= part(adapter[f'{site}/magnitude']) / np.maximum(norms, 1e-38)
  weight = weight.T if slot.transposed else weight
  return np.ascontiguousarray(weight).reshape(slot.shape)


def _settings(model, source) -> dict[str, Any]:
  """The content of config.json."""
  if source is not None:
    return read_json(source / 'config.json')
  writable = isinstance(model.tokenizer, Tokenizer | ImageProcessor)
  if model.family.write_config is None or not writable:
    raise ValueError(
      f'model {model.name}: settings or tokenizer of its kind cannot be '
      'written, only copied: give source, the Hugging Face folder it came from'
    )
  settings = model.family.write_config(model.config)
  if isinstance(model.tokenizer, Tokenizer):
    settings = _special_ids(model.tokenizer) | settings
  return settings


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
  """The ids of BOS, EOS and padding; transformers' defaults differ by class."""
  ids = {
    'bos_token_id': tokenizer.bos_id,
    'eos_token_id': tokenizer.eos_id,
    'pad_token_id': tokenizer.pad_id,
  }
  return {name: value for name, value in ids.items() if value is not None}


def _generation(tokenizer: Tokenizer) -> dict[str, Any]:
  """The content of generation_config.json; the end of a turn is an EOS too."""
  settings: dict[str, Any] = _special_ids(tokenizer)
  if tokenizer.chat_template and tokenizer.eos_id is not None:
    try:
      ends = tokenizer.stops(chat=True).ids
    except ValueError:  # the template does not show where turns end
      ends = tokenizer.stops(chat=False).ids
    settings['eos_token_id'] = sorted(ends)
  return settings


def _with_head(
  found: dict[str, Any],
  model: SequenceClassifier,
  labels: Sequence[str],
) -> dict[str, Any]:
  """The content of config.json for a head of labels or numbers.

  Args:
    found: The settings of the folder the model came from, which may describe
      another head.
    model: The model with the head.
    labels: Names of the labels; () for numbers.
  """
  count = model.outputs
  labels = labels or [f'LABEL_{index}' for index in range(count)]
  if len(labels) != count or len(set(labels)) != count:
    raise ValueError(
      f'labels={list(labels)!r}: model {model.name} has {count} output(s) and '
      'needs as many different labels'
    )
  stale = ('num_labels', '_num_labels', 'finetuning_task')
  settings = {k: v for k, v in found.items() if k not in stale} | {
    'id2label': {str(index): label for index, label in enumerate(labels)},
    'label2id': {label: index for index, label in enumerate(labels)},
    'problem_type': 'single_label_classification',
  }
  if count == 1:
    settings['problem_type'] = 'regression'
  if has_head(model):
    settings['architectures'] = [model.family.classifier]
  return settings


def _copy_settings(source: pathlib.Path, folder: pathlib.Path) -> None:
  for pattern in COPIED:
    for file in source.glob(pattern):
      # Skip folders, and pipes that would block.
      if file.is_file() and not file.name.endswith('.index.json'):
        copy = folder / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)


def _write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
  file.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
