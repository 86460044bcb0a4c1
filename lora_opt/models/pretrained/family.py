"""What there is to know about the checkpoints of one architecture.

A family's table of names is the only place that relates our arrays to the
tensors of a checkpoint: loading, exporting, PEFT's names and the checks of an
index file all go through `slots`.
"""

import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from lora_opt.models.model_files import ModelFiles
from lora_opt.models.pretrained.besides import Besides
from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.models.quantized import leaves_by_path
from lora_opt.models.variables import Tree


class TensorName(NamedTuple):
  """What one of our arrays is called in a checkpoint, and how it lies there."""

  name: str  # {} stands for the layer: the array has the layers on axis 0
  # Stored with its axes the other way round, as torch's linear maps
  # (fan_out, fan_in) and convolutions are.
  transposed: bool = False
  ones: int = 0  # axes of one entry that it has there in front


def linear(name: str) -> TensorName:
  """The name of a torch Linear's weight."""
  return TensorName(name, transposed=True)


class Family(NamedTuple):
  """How the checkpoints of one architecture become a model here.

  A constant per architecture; `families.FAMILIES` lists them by model_type.

  Attributes:
    read_config: Returns the model's config for a config.json; asks for every
      setting that matters.
    harmless: Settings of config.json that do not change the computation.
    names: Path of our array: its `TensorName`. May list arrays that only some
      configs have.
    abstract_base: Returns the tree of `jax.ShapeDtypeStruct` of a config.
    model: The model class, called with name, family, config, tokenizer, base,
      lora_config, dtype, remat, unroll and its own settings by keyword.
    files: What writes its models to files, and reads adapters from them.
    besides: Returns, for a config, what a checkpoint may hold besides its
      parameters, such as the copy of a tied embedding, and what it must be.
    prefix: Start of the names that checkpoints saved without a head leave out.
    write_config: The inverse of `read_config`, for models from elsewhere: the
      content of a config.json; None if there are none.
    settle: Returns the config when the names of the stored tensors are known,
      for what config.json leaves open.
    renamed: What of a name old checkpoints spell differently: what it is now.
    abstract_head: For models with a trained head, returns its tree of
      `jax.ShapeDtypeStruct` for a config and a number of outputs. Its names
      are in `names` too, under 'head/'; a checkpoint may lack them.
    classifier: transformers' class of the model with such a head.
    open_input: Opens, for a folder and a config, what makes the network's input
      of an example; None for a tokenizer.
    spelled: What of a name transformers has in memory, and PEFT in adapters,
      since version 5: how it is in checkpoints, and in `names`.
    bystanders: Linear maps of transformers' class that the model lacks here;
      an adapter must not name them by accident.
  """

  read_config: Callable[[ConfigFile], Any]
  harmless: tuple[str, ...]
  names: Mapping[str, TensorName]
  abstract_base: Callable[[Any], Tree]
  model: Callable[..., Any]
  files: ModelFiles
  besides: Callable[[Any], Besides]
  prefix: str = ''
  write_config: Callable[[Any], dict[str, Any]] | None = None
  settle: Callable[[Any, Collection[str]], Any] = lambda config, names: config
  renamed: Mapping[str, str] = {}
  abstract_head: Callable[[Any, int], Tree] | None = None
  classifier: str | None = None
  open_input: Callable[[pathlib.Path, Any], Any] | None = None
  spelled: Mapping[str, str] = {}
  bystanders: tuple[str, ...] = ()


class Slot(NamedTuple):
  """Where one tensor of a checkpoint belongs in our tree."""

  path: str  # of our array
  layer: int | None  # index on its axis 0; None when the tensor is all of it
  shape: tuple[int, ...]  # as stored in the checkpoint
  transposed: bool  # whether ours is the transpose


def slots(base: Tree, names: Mapping[str, TensorName]) -> dict[str, Slot]:
  """Relates every tensor of a checkpoint to a part of our tree.

  Args:
    base: Nested dict of arrays or of their shapes.
    names: A family's table; must have every path of `base`.

  Returns:
    Name of the tensor: its slot, in the order of `base` and of the layers.

  >>> import jax
  >>> base = {'up': {'kernel': jax.ShapeDtypeStruct((2, 3, 5), 'float32')}}
  >>> found = slots(base, {'up/kernel': linear('h.{}.up.weight')})
  >>> found['h.1.up.weight']
  Slot(path='up/kernel', layer=1, shape=(5, 3), transposed=True)
  """
  found = {}
  for path, leaf in leaves_by_path(base).items():
    name, transposed, ones = names[path]
    stacked = '{}' in name
    shape = (1,) * ones + tuple(leaf.shape[stacked:])
    if transposed:
      shape = shape[::-1]
    for layer in range(leaf.shape[0]) if stacked else (None,):
      found[name.format(layer)] = Slot(path, layer, shape, transposed)
  return found
