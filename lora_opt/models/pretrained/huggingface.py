"""Models from Hugging Face folders, without torch."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from lora_opt.data import hub
from lora_opt.data.tokenizer import Tokenizer
from lora_opt.data.tokenizer_folder import open_tokenizer
from lora_opt.models.frozen import of_shapes, quantized_paths, with_base
from lora_opt.models.lora import LoraConfig, check_dtype
from lora_opt.models.pretrained.assemble import (
  assemble,
  head_names,
  parameter_names,
  second_names,
)
from lora_opt.models.pretrained.besides import (
  check_besides,
  difference,
  rule_of,
)
from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.models.pretrained.families import FAMILIES
from lora_opt.models.pretrained.family import Family, Tree, slots
from lora_opt.models.pretrained.files import StoredTensor
from lora_opt.models.pretrained.head_labels import labels_of_head
from lora_opt.models.pretrained.placing import shardings_of
from lora_opt.models.pretrained.weight_files import open_weights


def from_folder(
  path: str | os.PathLike,
  *,
  lora: LoraConfig | None = None,
  name: str | None = None,
  dtype: str = 'float32',
  param_dtype: str | None = None,
  remat: str = 'projections',
  unroll: int = 1,
  attention: str = 'auto',
  partitioner: Any | None = None,
  quantize: str | None = None,
  weights: bool = True,
  new_head: bool = False,
  **settings,
):
  """Loads a model from a Hugging Face folder; config.json says which kind.

  Args:
    path: Folder with config.json, the tokenizer (for image models,
      preprocessor_config.json) and model.safetensors, or several weight files
      with model.safetensors.index.json. If torch is installed,
      pytorch_model.bin works too. Or org/name on the Hugging Face Hub, see
      `lora_opt.data.hub`.
    lora: Adapter settings, None for none.
    name: Name of the model, by default the path.
    dtype: Type of the computation, 'float32' or 'bfloat16'.
    param_dtype: Type of the stored weights, by default `dtype`.
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan over layers.
    attention: How attention is computed, see `lora_opt.models.attend`.
    partitioner: Places the weights on a mesh, such as
      `lora_opt.training.partitioning.Partitioner`; None for one device. They
      are read shard by shard: the host never holds a second full copy.
    quantize: 'int8', 'int4' or 'nf4' quantizes the kernels of projections, see
      `quantize_kernel`; None keeps them in `param_dtype`.
    weights: False reads only config.json, and the folder needs no other file.
      The model then has shapes for weights and no tokenizer; use it to plan.
    new_head: Do not load the last linear map of the folder's head, for an
      encoder that will learn other labels.
    **settings: Further settings of the model class.

  Returns:
    The model, for example a `CausalLM`.

  Raises:
    FileNotFoundError: If the folder or a file in it is missing.
    ImportError: If only torch can read the weights and it is not installed.
    ValueError: If a file is damaged or cut short, the architecture or a
      setting of it is not supported, a tensor is missing, unknown, mis-shaped
      or wrongly typed, or the parts do not fit together.
  """
  folder = hub.model_folder(path)
  if not folder.is_dir():
    raise FileNotFoundError(f'no model folder at {folder}')
  family, config = read_config(folder / 'config.json')
  if new_head and family.abstract_head is None:
    raise ValueError(
      f'{folder / "config.json"} is that of a {family.model.__name__}, which '
      'has no head of labels: leave out new_head'
    )
  known = {field.name for field in dataclasses.fields(family.model)}
  if unknown := sorted(settings.keys() - known):
    raise ValueError(
      f'{folder / "config.json"} is that of a {family.model.__name__}, '
      f'which has no setting {", ".join(unknown)}; leave it out, or take '
      'another folder'
    )
  if weights:
    tensors = open_weights(folder)
    config = untied(family, family.settle(config, tensors.keys()), tensors)
  stored = param_dtype or dtype
  check_dtype(stored)
  abstract = family.abstract_base(config)
  # Built before the weights are read, so that wrong settings fail early.
  model = family.model(
    name=name or hub.plain_name(path),
    family=family,
    config=config,
    tokenizer=_input(folder, family, config) if weights else None,
    base=abstract,
    lora_config=lora,
    dtype=dtype,
    remat=remat,
    unroll=unroll,
    attention=attention,
    **settings,
  )
  if not weights:
    return of_shapes(model, stored, quantize)
  stored_as = parameter_names(family, config, tensors)
  _check_rest(model, tensors, stored_as)
  base = assemble(
    str(folder),
    abstract,
    family.names,
    {full: tensors[key] for full, key in stored_as.items()},
    stored,
    shardings_of(model, partitioner),
    quantized_paths(model, quantize),
  )
  if family.abstract_head is not None:
    head = _read_head(str(folder), model, tensors, new_head)
    labels = ()
    if 'out' in head:
      file = ConfigFile(folder / 'config.json')
      labels = labels_of_head(file, model.outputs)
    model = dataclasses.replace(
      model, head=head, labels=labels, head_labels=labels
    )
    if 'out' in head and model.drawn:
      logging.warning(
        '%s has a head, but lacks %s, which is drawn at random',
        folder,
        ', '.join(model.drawn),
      )
  return with_base(model, base, quantize)


def _check_rest(
  model: Any, tensors: Mapping[str, Any], stored_as: Mapping[str, str]
) -> None:
  """Raises ValueError if a tensor that is not read contradicts one that is."""
  family, whole = model.family, model.base
  read = dict(stored_as)
  if family.abstract_head is not None:
    head = family.abstract_head(model.config, model.outputs)
    whole = {**whole, 'head': head}
    read |= head_names(family, {'head': head}, tensors)
  known = slots(whole, family.names)
  again = second_names(family, known, tensors)
  check_besides(family.besides(model.config), tensors, read, again)


def untied(
  family: Family, config: Any, tensors: Mapping[str, StoredTensor]
) -> Any:
  """Unties the config's head if the checkpoint's differs from its embedding.

  As in transformers, a stored head that is not the embedding is used, whatever
  tie_word_embeddings says.

  Args:
    family: The checkpoint's family.
    config: The config according to config.json.
    tensors: The checkpoint's tensors by name.
  """
  head = family.names.get('head/table')
  if head is None or head.name not in tensors:
    return config
  if not config.tie_embeddings:
    return config
  head = tensors[head.name]
  copy = rule_of(family.besides(config), head.name)
  stored_as = parameter_names(family, config, tensors)
  table = tensors[stored_as[copy.of]]
  reason = difference(head, table)
  if reason is None:
    return config
  logging.warning(
    '%s is used: config.json ties it to %s, but %s',
    *(head.where, table.name, reason),
  )
  return dataclasses.replace(config, tie_embeddings=False)


def _input(folder: pathlib.Path, family: Family, config: Any) -> Any:
  """Opens what turns examples into inputs of the network, e.g. a tokenizer."""
  if family.open_input is not None:
    return family.open_input(folder, config)
  tokenizer = open_tokenizer(folder)
  if isinstance(tokenizer, Tokenizer):
    return tokenizer.without_tokens_from(config.vocab_size)
  return tokenizer


def _read_head(
  source: str, model: Any, tensors: Mapping[str, Any], new: bool
) -> Tree:
  """Reads the parts of a trained head that are stored and wanted."""
  family, found = model.family, {}
  whole = family.abstract_head(model.config, model.outputs)
  if new:
    whole = {name: part for name, part in whole.items() if name != 'out'}
  for name, part in whole.items():
    part = {'head': {name: part}}
    stored_as = head_names(family, part, tensors)
    if stored_as:
      there = {full: tensors[key] for full, key in stored_as.items()}
      if name == 'out':
        _check_outputs(family, model.outputs, there)
      read = assemble(source, part, family.names, there, 'float32')
      found |= read['head']
  return found


def _check_outputs(family: Family, outputs: int, head: Mapping) -> None:
  """Raises ValueError if a checkpoint's head has another number of outputs."""
  bias = head.get(family.names['head/out/bias'].name)
  if bias is not None and bias.shape != (outputs,):
    raise ValueError(
      f'{bias.file}: tensor {bias.name} has shape {bias.shape}, outputs='
      f'{outputs} (NUM_OUTPUTS) calls for {(outputs,)}; ask for as many as the '
      'head has, or start a new head by models.from_folder.new_head = True'
    )


def read_config(file: pathlib.Path) -> tuple[Family, Any]:
  """Reads a config.json.

  Returns:
    The family of the model and its config.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it is not JSON, or has a setting that is not supported.
  """
  settings = ConfigFile(file)
  family = settings.choose('model_type', FAMILIES)
  try:
    config = family.read_config(settings)
  except ValueError as error:
    if str(file.parent) in str(error):
      raise
    raise ValueError(f'{file}: {error}') from error  # sizes that do not fit
  settings.check_all_asked(family.harmless)
  return family, config
