"""Rows of a folder in the formats of Hugging Face datasets."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

from lora_opt.data.sources._rows import Row, Rows, file_facts


@dataclasses.dataclass(frozen=True, eq=False)
class HuggingFace(Rows):
  """A split in a folder of Hugging Face `datasets`, read with pyarrow alone.

  Two forms are known: what `save_to_disk` writes (data-*.arrow), and a clone
  of a data set repository (parquet files whose names begin with the split's,
  as train-00000-of-00001.parquet, in the folder itself or in data/).

  Args:
    folder: the folder of the data set, or of one configuration of it.
    split: 'train', say.
    limit: use the first `limit` rows only.

  Raises (at first use):
    FileNotFoundError: no such folder or split in it.
    ValueError: the files are damaged.
  """

  folder: str
  split: str
  limit: int | None = None

  @property
  def title(self) -> str:
    return f'{self.folder} split {self.split!r}'

  def facts(self) -> dict[str, Any]:
    """The files, their sizes and their SHA-256."""
    return {'split': self.split, 'files': file_facts(*self._files)}

  @functools.cached_property
  def _files(self) -> list[pathlib.Path]:
    folder = pathlib.Path(self.folder).expanduser()
    state = folder / self.split / 'state.json'
    if state.is_file():
      named = json.loads(state.read_text(encoding='utf-8'))['_data_files']
      return [state.parent / file['filename'] for file in named]
    for place in (folder, folder / 'data'):
      files = sorted(
        path
        for end in ('-*.parquet', '.parquet')
        for path in place.glob(self.split + end)
      )
      if files:
        return files
    raise FileNotFoundError(
      f'{folder} holds no split {self.split!r}: looked for '
      f'{self.split}/state.json (of save_to_disk) and {self.split}-*.parquet'
    )

  def _load(self) -> list[Row]:
    import pyarrow as pa  # slow, and only here: not every run needs it
    from pyarrow import parquet

    def table(path):
      if path.suffix == '.parquet':
        return parquet.read_table(path)
      with pa.memory_map(str(path)) as file:
        return pa.ipc.open_stream(file).read_all()

    files = self._files
    try:
      tables = [table(path) for path in files]
    except (pa.ArrowInvalid, OSError) as error:
      raise ValueError(f'{self.title}: damaged file: {error}') from error
    return pa.concat_tables(tables).to_pylist()
