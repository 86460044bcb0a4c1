"""Describes the checkpoints of one architecture.

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
  """The name of one of our arrays in a checkpoint, and how it is stored."""

  name: str  # {} stands for the layer: the array has the layers on axis 0
  # Whether it is stored with its axes reversed, as torch's linear maps
  # (fan_out, fan_in) and convolutions are.
  transposed: bool = False
  ones: int = 0  # number of leading axes of size 1 in the checkpoint


def linear(name: str) -> TensorName:
  """The name of a torch Linear's weight."""
  return TensorName(name, transposed=True)


class Family(NamedTuple):
  """How checkpoints of one architecture are turned into models.

  There is one constant per architecture; `families.FAMILIES` lists them by
  model_type.

  Attributes:
    read_config: Reads the model's config from a config.json; asks for every
      setting that matters.
    harmless: Settings of config.json that do not change the computation.
    names: Maps the path of each of our arrays to its `TensorName`. May include
      arrays that only some configs have.
    abstract_base: Returns the base weights of a config as a tree of
      `jax.ShapeDtypeStruct`.
    model: The model class, called with name, family, config, tokenizer, base,
      lora_config, dtype, remat, unroll and its own settings by keyword.
    files: Writes the family's models to files, and reads adapters from files.
    besides: For a config, returns rules for the tensors that a checkpoint may
      hold besides its parameters, such as the copy of a tied embedding.
    prefix: Prefix of names that is missing in checkpoints without a head.
    write_config: The inverse of `read_config`, for models from elsewhere:
      returns the content of a config.json. None if there are no such models.
    settle: Completes a config where config.json leaves something open, given
      the names of the stored tensors.
    renamed: Maps parts of names in old checkpoints to their current spelling.
    abstract_head: For models with a trained head, returns the head as a tree of
      `jax.ShapeDtypeStruct` for a config and a number of outputs. Its arrays
      are in `names` too, under 'head/'; a checkpoint may lack them.
    classifier: Name of transformers' class for the model with such a head.
    open_input: For a folder and a config, opens what turns an example into the
      network's input; None for a tokenizer.
    spelled: Maps parts of names that transformers uses in memory since version
      5, and PEFT in adapters, to their spelling in checkpoints and in `names`.
    bystanders: Linear maps that transformers' class has but our model lacks. An
      exported adapter must not match them by accident.
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

  path: str  # path of our array
  layer: int | None  # index on its axis 0; None if the tensor is all of it
  shape: tuple[int, ...]  # as stored in the checkpoint
  transposed: bool  # whether ours is the transpose


def slots(base: Tree, names: Mapping[str, TensorName]) -> dict[str, Slot]:
  """Relates every tensor of a checkpoint to a part of our tree.

  Args:
    base: Nested dict of arrays or of their shapes.
    names: A family's table; must have every path of `base`.

  Returns:
    The slots by tensor name, in the order of `base` and of the layers.

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
