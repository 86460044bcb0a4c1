"""The lines of a file of any size, indexed once and read on demand."""

import array
import os
import pathlib
from collections.abc import Sequence

# Bytes of one line, without its end. A book has a megabyte or two. Parsing
# eight takes seconds if they were written to be slow to parse.
LONGEST = 2**23
# The offsets of this many lines take 1 GiB of memory.
MOST_LINES = 2**27
_CHUNK = 2**20


class Lines(Sequence):
  """The lines of a file as bytes, by index, without their ends (LF or CRLF).

  Only the offsets of the lines are kept in memory. White space after the last
  line end is not a line.

  Args:
    file: The file.
    limit: Use only this many lines; the rest of the file is not read.
    longest: The largest allowed number of bytes in a line.

  Raises:
    FileNotFoundError: There is no such file.
    OSError: It cannot be read, or was changed after its lines were indexed.
    ValueError: It is not a file, or has more than `MOST_LINES` lines; or, when
      a line is requested, that line is too long.
  """

  def __init__(
    self,
    file: pathlib.Path,
    *,
    limit: int | None = None,
    longest: int = LONGEST,
  ):
    self.file, self.longest = file, longest
    self._stream = None
    # The offset of each line, and the offset at which another would begin.
    self._starts = array.array('Q', [0])
    if not file.exists():
      raise FileNotFoundError(f'no {file.name} in {file.parent}')
    if not file.is_file():
      raise ValueError(f'{file} is not a file')
    try:
      self._state = _state(os.stat(file))
      self._find(MOST_LINES + 1 if limit is None else limit)
    except OSError as error:
      raise OSError(f'{file} cannot be read: {error.strerror}') from error
    if len(self) > MOST_LINES:
      raise ValueError(f'{file} has more than {MOST_LINES:,} lines: split it')

  def __len__(self) -> int:
    return len(self._starts) - 1

  def __getitem__(self, index: int) -> bytes:
    if not 0 <= index < len(self):
      raise IndexError(f'{self.file} has {len(self)} lines, not line {index}')
    start, end = self._starts[index], self._starts[index + 1]
    if end - start > self.longest + 2:
      raise ValueError(
        f'{self.place(index)}: a line of {end - start:,} bytes, at most '
        f'{self.longest:,} are read'
      )
    data = self._read(start, end - start)
    return data.removesuffix(b'\n').removesuffix(b'\r')

  def place(self, index: int) -> str:
    """The file and the line number, which counts from 1 as in editors."""
    return f'{self.file}:{index + 1}'

  def close(self) -> None:
    """Closes the file; it is opened again when a line is requested."""
    stream, self._stream = self._stream, None
    if stream is not None:
      stream.close()

  def __getstate__(self) -> dict:
    return self.__dict__ | {'_stream': None}

  def __del__(self):
    if hasattr(self, '_stream'):
      self.close()

  def _find(self, most: int) -> None:
    blank = True
    with self.file.open('rb') as stream:
      place = 0
      while chunk := stream.read(_CHUNK):
        begin = 0
        while end := chunk.find(b'\n', begin) + 1:
          self._starts.append(place + end)
          if len(self) == most:
            return
          begin, blank = end, True
        blank = blank and not chunk[begin:].strip()
        place += len(chunk)
    if not blank:
      self._starts.append(place)

  def _read(self, start: int, size: int) -> bytes:
    try:
      if self._stream is None:
        self._stream = self.file.open('rb', buffering=0)
      number = self._stream.fileno()
      if _state(os.fstat(number)) == self._state:
        data = os.pread(number, size, start)
        if len(data) == size:
          return data
    except OSError as error:
      raise OSError(f'{self.file} cannot be read: {error.strerror}') from error
    raise OSError(f'{self.file} was changed while it was in use')


def _state(facts: os.stat_result) -> tuple[int, int]:
  """Values that change when a file is written to or replaced."""
  return facts.st_size, facts.st_mtime_ns
