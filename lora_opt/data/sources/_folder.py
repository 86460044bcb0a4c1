"""A data set by name, in whatever format its folder holds."""

import dataclasses
import functools
import glob
from collections.abc import Sequence
from typing import Any

from lora_opt.data.sources._huggingface import HuggingFace
from lora_opt.data.sources._instruction_files import InstructionFiles
from lora_opt.data.sources._jsonl import JsonLines
from lora_opt.data.sources._rows import Row, describe, where
from lora_opt.data.sources._tfds import Tfds
from lora_opt.reading.copies import local_copy
from lora_opt.reading.lines import LONGEST


@dataclasses.dataclass(frozen=True, eq=False)
class Folder(Sequence):
  """A split of the data set `name`, read from `folder`/`name`.

  These files are looked for, in this order:

    arc_easy/train.jsonl                 JsonLines
    arc_easy/1.0.0/dataset_info.json     Tfds (lora_opt.data.prepare)
    arc_easy/train/state.json            HuggingFace
    arc_easy/train-*.parquet, arc_easy/data/train-*.parquet
    super_ni/*.meta.json                 InstructionFiles

  Args:
    name: name of the data set.
    split: name of the split, such as 'train'.
    folder: folder of all data sets; a configuration sets this once.
    limit: use the first `limit` rows only.
    longest: bytes that a row may have; a longer one raises a ValueError.

  Raises (at first use):
    FileNotFoundError: none of these files exists.
  """

  name: str
  split: str
  folder: str = ''
  limit: int | None = None
  longest: int = LONGEST

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Row:
    return self._source[index]

  def where(self, index: int) -> str:
    """Says in words where row `index` came from."""
    return where(self._source, index)

  def facts(self) -> dict[str, Any]:
    """The facts of the source that was found."""
    return describe(self._source)

  @functools.cached_property
  def _source(self) -> Sequence[Row]:
    base = local_copy(self.folder, self.name)
    home = base / self.name
    lines = home / f'{self.split}.jsonl'
    if lines.is_file():
      return JsonLines(str(lines), limit=self.limit, longest=self.longest)
    if any(home.glob('*.*.*/dataset_info.json')):
      return Tfds(self.name, self.split, str(base), self.limit, self.longest)
    split = glob.escape(self.split)
    files = (f'{split}/state.json', f'{split}*.parquet')
    if any(any(home.glob(p)) or any(home.glob(f'data/{p}')) for p in files):
      return HuggingFace(str(home), self.split, self.limit, self.longest)
    if any(home.glob('*.meta.json')):
      return InstructionFiles(str(home), self.split, self.limit, self.longest)
    raise FileNotFoundError(
      f'no data for {self.name!r}, split {self.split!r}: there is no {lines} '
      f"and no prepared set in {home}. Prepare it from the publisher's files: "
      f'python -m lora_opt.data.prepare {self.name} --raw FOLDER --data_dir '
      f'{base}; or point DATA_DIR elsewhere'
    )
