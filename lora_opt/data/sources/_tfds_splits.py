"""Parses how splits of TFDS are requested: 'train', 'train[:90%]', 'a+b'."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lora_opt.data.sources._tfds_folder import Shard
from lora_opt.reading.values import shown

_PART = re.compile(r'(?P<split>[\w-]+)(\[(?P<slice>[^\]]*)\])?')
_BOUND = re.compile(
  r'((?P<value>-?\d+(_\d+)*)(?P<part>\.\d+)?(?P<unit>%|shard)?)?', re.ASCII
)


class Piece(NamedTuple):
  """Consecutive records of a file."""

  shard: Shard
  start: int
  stop: int


def pieces(
  spec: str, splits: Mapping[str, Sequence[Shard]], title: str
) -> list[Piece]:
  """The records that a split of TFDS such as 'train[:90%]+test' stands for.

  Percentages are rounded to the nearest row, as TFDS does.

  Raises:
    ValueError: there is no such split, or it is empty.
  """
  found = []
  for part in spec.split('+'):
    match = _PART.fullmatch(part.strip())
    if match and match['split'] == 'all' and not match['slice']:
      found += [(shards, *_all(shards)) for shards in splits.values()]
      continue
    if not match or match['split'] not in splits:
      raise ValueError(
        f'{title}: no split {shown(part.strip())}; the splits are '
        f'{", ".join(splits)}'
      )
    shards = splits[match['split']]
    bounds = _all(shards)
    if match['slice'] is not None:
      bounds = _sliced(match['slice'], shards, title)
    found.append((shards, *bounds))
  result = [piece for one in found for piece in _cut(*one)]
  if not any(piece.start < piece.stop for piece in result):
    raise ValueError(f'{title}: there is no row in it')
  return result


def _all(shards: Sequence[Shard]) -> tuple[int, int]:
  return 0, sum(shard.count for shard in shards)


def _sliced(text: str, shards: Sequence[Shard], title: str) -> tuple[int, int]:
  """The first row of a slice and the row after its last."""
  sides = [_BOUND.fullmatch(side) for side in text.split(':')]
  given = [side for side in sides if side and side['value']]
  units = {side['unit'] for side in given}
  one_shard = len(sides) == 1 and units == {'shard'}
  if (
    not all(sides)
    or len(units) != 1
    or not (len(sides) == 2 or one_shard)
    or (units != {'%'} and any(side['part'] for side in given))
  ):
    raise ValueError(
      f'{title}: {shown(text)} is not a slice such as 10:20, :90% or 0shard'
    )
  (unit,) = units
  counts = [shard.count for shard in shards]
  total = len(counts) if unit == 'shard' else sum(counts)

  def bound(side: re.Match, default: int) -> int:
    if not side['value']:
      return default
    number = int(side['value'])
    if unit == '%':
      number = round(float(side[0].rstrip('%')) * sum(counts) / 100)
    if abs(number) > total:
      raise ValueError(
        f'{title}: {shown(text)} is beyond the {total} that there are'
      )
    return number + total if number < 0 else number

  start = bound(sides[0], 0)
  stop = start + 1 if one_shard else bound(sides[1], total)
  if start > stop:
    raise ValueError(f'{title}: {shown(text)} ends before it begins')
  if unit == 'shard':
    start, stop = sum(counts[:start]), sum(counts[:stop])
  return start, stop


def _cut(shards: Sequence[Shard], start: int, stop: int) -> list[Piece]:
  """Rows `start` to `stop` of the concatenated files."""
  found, first = [], 0
  for shard in shards:
    begin, end = max(start - first, 0), min(stop - first, shard.count)
    # Empty files are included, so that they are checked too.
    if begin < end or (begin == end and not shard.count):
      found.append(Piece(shard, begin, end))
    first += shard.count
  return found
