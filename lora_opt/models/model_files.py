"""How a model comes to files: its format is given to it, it knows none."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from lora_opt.models.variables import Tree


class ModelFiles(NamedTuple):
  """What writes a model to files and reads its adapters.

  Attributes:
    export: (folder, adapter, model), writes the adapter.
    load_adapter: (folder, model), returns the adapter as `model.init` makes it.
    merge: (folder, adapter, model, source=, dtype=), writes model and adapter
      as one; for classifiers with labels= too.
  """

  export: Callable[[str | os.PathLike, Tree, Any], None]
  load_adapter: Callable[[str | os.PathLike, Any], Tree]
  merge: Callable[..., None]


class Family(Protocol):
  """What a model needs to know of what its checkpoints are like.

  All of it is in `lora_opt.models.pretrained.family`.
  """

  files: ModelFiles
