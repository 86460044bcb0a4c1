"""Writes models to files; the format is passed in, models know no formats."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from lora_opt.models.variables import Tree


class ModelFiles(NamedTuple):
  """The functions that write a model to files and read its adapters.

  Attributes:
    export: (folder, adapter, model), writes the adapter.
    load_adapter: (folder, model), returns the adapter in the form of
      `model.init`.
    merge: (folder, adapter, model, source=, dtype=), writes model and adapter
      as one model; also takes labels= for classifiers.
  """

  export: Callable[[str | os.PathLike, Tree, Any], None]
  load_adapter: Callable[[str | os.PathLike, Any], Tree]
  merge: Callable[..., None]


class Family(Protocol):
  """The part of a checkpoint family that a model uses.

  The full definition is in `lora_opt.models.pretrained.family`.
  """

  files: ModelFiles
