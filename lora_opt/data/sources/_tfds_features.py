"""Features of TFDS: the fields that a folder's features.json declares.

The file names Python classes, but none of them is imported. The few that hold
text and numbers are known by name; fields of any other class are not read.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lora_opt.data.sources._tf_example import Value
from lora_opt.reading import values
from lora_opt.reading.json_text import read_json
from lora_opt.reading.values import shown

_PREFIX = 'tensorflow_datasets.core.features.'
_DICT = 'features_dict.FeaturesDict'
_SEQUENCE = 'sequence_feature.Sequence'
_TEXT = 'text_feature.Text'
_LABEL = 'class_label_feature.ClassLabel'
_TENSORS = ('tensor_feature.Tensor', 'scalar.Scalar')
_TRANSLATION = 'translation_feature.Translation'
_KINDS = {
  'string': bytes,
  'object': bytes,
  'bool': bool,
  **{f'{sign}int{bits}': int for sign in ('', 'u') for bits in (8, 16, 32, 64)},
  **dict.fromkeys(('float16', 'bfloat16', 'float32', 'float64'), float),
}

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Field:
  """One list of values in a record.

  Attributes:
    path: names of the dicts that the field is in, then its own name.
    kind: bytes, float, int or bool.
    shape: shape of the values; None for a size that may be any number.
    is_label: whether the value is the number of a label.
  """

  path: tuple[str, ...]
  kind: type
  shape: Shape
  is_label: bool = False

  def value(self, found: tuple[type, list[Value]] | None) -> Any:
    """Makes the value in a row (text, lists) from what the record holds.

    Raises:
      ValueError: the record does not hold what the field declares.
    """
    if found is None:
      raise ValueError('no value')
    kind, items = found
    if kind is not {bool: int}.get(self.kind, self.kind) and items:
      raise ValueError(f'must hold {self.kind.__name__}, found {kind.__name__}')
    return _shaped([_plain(self.kind, item) for item in items], self.shape)


@dataclasses.dataclass(frozen=True)
class Features:
  """The fields of a data set, and the classes of those that are not read."""

  fields: tuple[Field, ...]
  unread: Mapping[str, str]

  @property
  def labels(self) -> set[str]:
    """The names of the fields that hold the number of a label."""
    return {'/'.join(field.path) for field in self.fields if field.is_label}

  def row(self, record: Mapping[str, tuple[type, list[Value]]]) -> dict:
    """Makes the row of a parsed record.

    Raises:
      ValueError: the record does not hold what the features declare.
    """
    row: dict[str, Any] = {}
    for field in self.fields:
      *outer, name = field.path
      place = row
      for part in outer:
        place = place.setdefault(part, {})
      key = '/'.join(field.path)
      try:
        place[name] = field.value(record.get(key))
      except ValueError as error:
        raise ValueError(f'field {key!r}: {error}') from None
    return row


def read_features(file: pathlib.Path) -> Features:
  """Reads the features that a file declares.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not a file of TFDS, or none of its fields can be read.
  """
  unread: dict[str, str] = {}
  fields = tuple(_fields(read_json(file), (), (), str(file), unread))
  if not fields:
    raise ValueError(f'{file}: no field of text or numbers: {shown(unread)}')
  return Features(fields, unread)


def _fields(
  node: Any,
  path: tuple[str, ...],
  outer: Shape,
  place: str,
  unread: dict[str, str],
) -> Iterator[Field]:
  """The fields in a node of the file; `outer` is the enclosing shape."""
  place = f'{place}, feature {"/".join(path)!r}' if path else place
  full = values.text(values.table(node, place).get('pythonClassName'), place)
  name = full.removeprefix(_PREFIX) if full.startswith(_PREFIX) else ''
  if name in (_DICT, _TRANSLATION):
    for key, inner in _inner(node, name, place):
      yield from _fields(inner, (*path, key), outer, place, unread)
  elif name == _SEQUENCE and not outer:
    inside = values.table(node.get('sequence'), place)
    size = _size(inside.get('length', -1), place)
    yield from _fields(inside.get('feature'), path, (size,), place, unread)
  elif name == _TEXT:
    yield Field(path, bytes, outer)
  elif name == _LABEL:
    yield Field(path, int, outer, is_label=not outer)
  elif name in _TENSORS and (field := _tensor(node, path, outer, place)):
    yield field
  else:
    unread['/'.join(path)] = full[:200]


def _inner(node: dict, name: str, place: str) -> list[tuple[str, Any]]:
  """The names and nodes of the features of a node that has several."""
  if name == _DICT:
    inside = values.table(node.get('featuresDict'), place)
    return list(values.table(inside.get('features'), place).items())
  inside = values.table(node.get('translation'), place)
  languages = values.items(inside.get('languages'), f'{place}: languages')
  text = {'pythonClassName': _PREFIX + _TEXT}
  return [(values.text(language, place), text) for language in languages]


def _tensor(
  node: dict, path: tuple[str, ...], outer: Shape, place: str
) -> Field | None:
  """The field of a tensor; None if it is stored in a way that is not read."""
  tensor = values.table(node.get('tensor'), place)
  kind = _KINDS.get(values.text(tensor.get('dtype'), f'{place}: dtype'))
  shape = values.table(tensor.get('shape', {}), f'{place}: shape')
  dimensions = values.items(shape.get('dimensions', []), f'{place}: shape')
  sizes = tuple(_size(dimension, place) for dimension in dimensions)
  plain = tensor.get('encoding', 'none') == 'none' and not tensor.get(
    'optional'
  )
  if kind is None or not plain or not all((*outer, *sizes)[1:]):
    return None
  return Field(path, kind, (*outer, *sizes))


def _size(value: Any, place: str) -> int | None:
  """A dimension, which the JSON of protobuf writes as text; -1 is any size."""
  if isinstance(value, str) and len(value) < 10:
    value = int(value) if value.lstrip('-').isdecimal() else value
  size = values.integer(value, f'{place}: a dimension', -1, 10**9)
  return None if size == -1 else size


def _plain(kind: type, item: Value) -> Any:
  if kind is bytes:
    try:
      return item.decode()
    except UnicodeDecodeError:
      raise ValueError(f'not UTF-8: {shown(item, 60)}') from None
  if kind is float:
    # The shortest decimal for this float32: 3.8 and not 3.7999999523.
    return float(str(np.float32(item)))
  if kind is bool:
    if item not in (0, 1):
      raise ValueError(f'must be 0 or 1, found {item}')
    return bool(item)
  return item


def _shaped(items: Sequence[Any], shape: Shape) -> Any:
  """Puts values into nested lists of a shape, whose first size may be None."""
  inner = math.prod(shape[1:])
  count = shape[0] if shape else 1
  if count is None:
    count = len(items) // inner if inner else 0
  if count * inner != len(items):
    wanted = ' x '.join('any' if n is None else str(n) for n in shape) or '1'
    raise ValueError(f'{len(items)} values, declared are {wanted}')
  if not shape:
    return items[0]
  if len(shape) == 1:
    return list(items)
  return [
    _shaped(items[start : start + inner], shape[1:])
    for start in range(0, len(items), inner or 1)
  ]
