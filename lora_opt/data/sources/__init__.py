"""Sources: random-access sequences of plain dict rows.

A task takes one source for training and one for evaluation. Any sequence of
dicts is a source; those here read files, generate puzzles or open prepared
data sets. All are opened on first use, so creating one (for example from a
configuration) costs nothing. All say in words where a row came from:

  source.where(3)  ->  'arc_easy/train.jsonl:4'

A row that cannot be read raises a ValueError when it is accessed, so that one
policy, that of the task, decides what happens to it. If a file turns out to be
damaged as a whole, this raises an OSError, which no policy ignores.
"""

from lora_opt.data.sources._class_folders import ClassFolders
from lora_opt.data.sources._folder import Folder
from lora_opt.data.sources._huggingface import HuggingFace
from lora_opt.data.sources._image_folder import ImageFolder
from lora_opt.data.sources._instruction_files import InstructionFiles
from lora_opt.data.sources._instructions import (
  ListedChoices,
  NaturalInstructions,
)
from lora_opt.data.sources._jsonl import JsonLines
from lora_opt.data.sources._reasoning_gym import ReasoningGym
from lora_opt.data.sources._rows import Row, describe, where
from lora_opt.data.sources._tfds import Tfds

__all__ = [
  'ClassFolders',
  'Folder',
  'HuggingFace',
  'ImageFolder',
  'InstructionFiles',
  'JsonLines',
  'ListedChoices',
  'NaturalInstructions',
  'ReasoningGym',
  'Row',
  'Tfds',
  'describe',
  'where',
]
