"""Reads rows of arrow and parquet files, in a separate process.

A damaged file can make pyarrow crash or fill the memory, so this runs where
neither does harm (`lora_opt.reading.confined`), and returns JSON. It imports
nothing of `lora_opt`, to start quickly.
"""

import abc
import functools
import json
import os
from collections.abc import Iterator
from typing import Any

# Other memory pools, and the threads of BLAS, reserve more address space than
# the process may have.
os.environ['ARROW_DEFAULT_MEMORY_POOL'] = 'system'
os.environ['OPENBLAS_NUM_THREADS'] = '1'

import numpy as np
import pyarrow as pa
from pyarrow import parquet

pa.set_cpu_count(1)
pa.set_io_thread_count(1)

_STEP = 64  # rows converted to Python objects at once: each may be large
_BATCH = 256  # rows of parquet decoded at once
_REPLY = 2**23  # characters after which a reply ends
_DEPTH = 20  # levels of nested lists and structures
_END = b'\xff\xff\xff\xff\0\0\0\0'  # marks the end of a stream
_MAGIC = b'ARROW1'  # at both ends of an arrow file


def work(what: str, path: str, *arguments: Any) -> Any:
  """The entry point of the process: calls `count`, `rows` or `features`."""
  works = {'count': count, 'rows': rows, 'features': features}
  return works[what](path, *arguments)


def features(path: str) -> str:
  """The JSON by which `datasets` describes the columns; '' if there is none.

  Raises:
    ValueError: it is far longer than any description of columns.
  """
  text = (_reader(path).metadata or {}).get(b'huggingface', b'')
  if len(text) > _REPLY:
    raise ValueError(f'{len(text):,} bytes that describe the columns')
  return text.decode()


def count(path: str, limit: int | None) -> int:
  """The number of rows in a file; counting may stop at the limit."""
  return _reader(path).count(limit)


def rows(path: str, start: int, wanted: int, longest: int) -> bytes:
  """Rows from `start` on, as JSON; at least one, about as many as wanted.

  Returns:
    An object with `names`, the columns whose values are given; `unread`, the
    types of the other columns; and `rows`, for each row a list of the values,
    or a text that says why there are none.
  """
  reader = _reader(path)
  found, size = [], 0
  for piece in reader.pieces(start):
    for text in _row_texts(piece, longest):
      found.append(text)
      size += len(text)
    if len(found) >= wanted or size > _REPLY:
      break
  if not found:
    raise ValueError(f'there is no row {start}, though more are declared')
  head = json.dumps({'names': reader.names, 'unread': reader.unread})
  return f'{head[:-1]}, "rows": [{",".join(found)}]}}'.encode()


class _Reader(abc.ABC):
  """One file: its columns, and its rows from any index on."""

  def __init__(self, schema: pa.Schema):
    self.names = [name for name in schema.names if _known(schema.field(name))]
    self.unread = {
      field.name: str(field.type)[:80] for field in schema if not _known(field)
    }
    self.metadata = schema.metadata
    self._next, self._pieces = 0, iter(())

  @abc.abstractmethod
  def count(self, limit: int | None) -> int:
    """The number of rows; counting may stop at the limit."""

  @abc.abstractmethod
  def batches(self, start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches from the one with row `start` on, and their first row's index."""

  def pieces(self, start: int) -> Iterator[pa.RecordBatch]:
    """Consecutive rows from `start` on, a few at a time."""
    if start != self._next or start == 0:
      self._pieces, self._next = self._sliced(start), start
    for piece in self._pieces:
      self._next += piece.num_rows
      yield piece

  def _sliced(self, start: int) -> Iterator[pa.RecordBatch]:
    for first, batch in self.batches(start):
      batch = batch.select(self.names)
      for place in range(max(0, start - first), batch.num_rows, _STEP):
        yield batch.slice(place, _STEP)


class _Parquet(_Reader):
  def __init__(self, path: str):
    self._file = parquet.ParquetFile(
      path,
      memory_map=False,
      pre_buffer=False,  # pages are read one by one
      buffer_size=2**20,
      page_checksum_verification=True,
    )
    facts = self._file.metadata
    groups = range(facts.num_row_groups)
    self._sizes = [facts.row_group(group).num_rows for group in groups]
    if min(self._sizes, default=0) < 0 or sum(self._sizes) != facts.num_rows:
      raise ValueError(
        f'{facts.num_rows} rows are declared, {sum(self._sizes)} in its parts'
      )
    super().__init__(_with_own_names(self._file.schema_arrow))

  def count(self, limit: int | None) -> int:
    return sum(self._sizes)

  def batches(self, start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    first = 0
    for group, size in enumerate(self._sizes):
      if first + size > start:
        found = 0
        for batch in self._file.iter_batches(
          _BATCH, row_groups=[group], columns=self.names, use_threads=False
        ):
          found += batch.num_rows
          if found > size:
            break
          yield first + found - batch.num_rows, batch
        if found != size:
          raise ValueError(f'{size} rows are declared, {found} were found')
      first += size


class _Arrow(_Reader):
  """A stream, as from `save_to_disk`, or a file, which ends in an index."""

  def __init__(self, path: str):
    self._path = path
    with pa.memory_map(path) as data:
      self._is_file = data.read(len(_MAGIC)) == _MAGIC
    super().__init__(_with_own_names(self._open()[1].schema))

  def _open(self) -> tuple[pa.NativeFile, pa.RecordBatchStreamReader]:
    data = pa.memory_map(self._path)
    data.seek(8 if self._is_file else 0)  # a file contains a stream
    return data, pa.ipc.open_stream(data)

  def count(self, limit: int | None) -> int:
    data, stream = self._open()
    total, batches = 0, 0
    expected = self._declared() if self._is_file else None
    while batches != expected:
      try:
        total += stream.read_next_batch().num_rows
      except StopIteration:
        break
      batches += 1
      if limit is not None and total >= limit:
        return total
    rest = data.size() - data.tell()
    if self._is_file:
      data.seek(data.size() - 10)
      # After the batches come the end of the stream, which some writers leave
      # out, the index, its size and the magic bytes.
      rest -= int.from_bytes(data.read(4), 'little') + 10
      whole = batches == expected and rest in (0, len(_END))
    else:
      data.seek(max(0, data.tell() - len(_END)))
      whole = rest == 0 and data.read(len(_END)) == _END
    if not whole:
      raise ValueError(
        f'cut short or damaged: no end of the stream behind {total} rows'
      )
    return total

  def _declared(self) -> int:
    with pa.memory_map(self._path) as data:
      return pa.ipc.open_file(data).num_record_batches

  def batches(self, start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    first = 0
    for batch in self._open()[1]:
      if first + batch.num_rows > start:
        yield first, batch
      first += batch.num_rows


def _reader(path: str) -> _Reader:
  facts = os.stat(path)
  return _opened(path, (facts.st_ino, facts.st_size, facts.st_mtime_ns))


@functools.lru_cache(maxsize=4)
def _opened(path: str, state: tuple[int, ...]) -> _Reader:
  del state  # part of the key, so that a changed file is opened anew
  return (_Parquet if path.endswith('.parquet') else _Arrow)(path)


def _with_own_names(schema: pa.Schema) -> pa.Schema:
  if len(set(schema.names)) < len(schema.names):
    raise ValueError(f'two columns have one name: {str(schema.names)[:200]}')
  return schema


def _known(field: pa.Field, depth: int = 0) -> bool:
  """Whether the values of a column can go into JSON as they are."""
  kind = field.type
  if pa.types.is_dictionary(kind):
    return depth == 0 and _known(pa.field('', kind.value_type), 1)
  if depth < _DEPTH and _is_list(kind):
    return _known(kind.value_field, depth + 1)
  if depth < _DEPTH and pa.types.is_struct(kind):
    names = {inner.name for inner in kind}
    return len(names) == kind.num_fields and all(
      _known(inner, depth + 1) for inner in kind
    )
  return (
    pa.types.is_null(kind)
    or pa.types.is_boolean(kind)
    or pa.types.is_integer(kind)
    or pa.types.is_floating(kind)
    or pa.types.is_string(kind)
    or pa.types.is_large_string(kind)
    or pa.types.is_string_view(kind)
  )


def _is_list(kind: pa.DataType) -> bool:
  return (
    pa.types.is_list(kind)
    or pa.types.is_large_list(kind)
    or pa.types.is_fixed_size_list(kind)
  )


def _row_texts(piece: pa.RecordBatch, longest: int) -> Iterator[str]:
  """For each row, the JSON of its values or of what is wrong with it."""
  columns = [
    column.dictionary_decode()
    if pa.types.is_dictionary(column.type)
    else column
    for column in piece.columns
  ]
  names = piece.schema.names
  whole = all([_is_utf8(column) for column in columns])
  values = [_values(column) for column in columns] if whole else []
  for place in range(piece.num_rows):
    if whole:
      row = [column[place] for column in values]
    else:
      row = _row(names, [column.slice(place, 1) for column in columns])
    text = json.dumps(row)
    if len(text) > longest:
      text = json.dumps(f'{len(text):,} bytes, at most {longest:,} are read')
    yield text


def _row(names: list[str], columns: list[pa.Array]) -> list[Any] | str:
  """The values of a row, or what is wrong with it."""
  row = []
  for name, column in zip(names, columns, strict=True):
    try:
      row += _values(column)
    except UnicodeDecodeError:
      return f'field {name!r}: not UTF-8'
  return row


def _is_utf8(column: pa.Array) -> bool:
  """Whether all text is UTF-8; damage of another kind raises an error."""
  try:
    column.validate(full=True)
  except pa.ArrowInvalid as error:
    if 'UTF8' in str(error):
      return False
    raise
  return True


def _values(column: pa.Array) -> list[Any]:
  values, exact = column.to_pylist(), _decimals(column.type)
  return values if exact is None else [exact(value) for value in values]


def _decimals(kind: pa.DataType):
  """A function that turns float32(3.8) into 3.8; None if none is needed."""
  if pa.types.is_float16(kind) or pa.types.is_float32(kind):
    narrow = np.float16 if pa.types.is_float16(kind) else np.float32
    return lambda value: None if value is None else float(str(narrow(value)))
  if _is_list(kind) and (inner := _decimals(kind.value_type)):
    return lambda value: value and [inner(item) for item in value]
  if pa.types.is_struct(kind):
    inner = {f.name: g for f in kind if (g := _decimals(f.type))}
    if inner:
      return lambda value: (
        value and value | {name: f(value[name]) for name, f in inner.items()}
      )
  return None
