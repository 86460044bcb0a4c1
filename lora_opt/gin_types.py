"""Checks configured values against the type annotations of functions.

Values without an annotation, or with one that is not understood here, are
accepted as they are. Functions check ranges and further conditions themselves.
"""

import collections.abc
import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

_WORDS = {
  bool: 'True or False',
  float: 'a number',
  int: 'a whole number',
  str: 'a text',
  type(None): 'None',
}


class Function(typing.NamedTuple):
  """Placeholder for a function that is named but not called."""

  name: str


class Unknown:
  """Placeholder for the value that a function will return."""


def hints(function: Callable[..., Any]) -> dict[str, Any]:
  """The annotation of every argument that has one.

  >>> def area(width: int, height: 'float', depth=1) -> None: ...
  >>> hints(area)
  {'width': <class 'int'>, 'height': <class 'float'>}
  """
  called = function.__init__ if inspect.isclass(function) else function
  called = inspect.unwrap(called)
  try:
    found = inspect.get_annotations(called, eval_str=True)
  except Exception:  # some names are imported for type checkers only
    return {}
  return {name: hint for name, hint in found.items() if name != 'return'}


def fits(value: Any, hint: Any) -> bool:
  """Whether a value is valid for an argument with this annotation.

  >>> fits(8, int), fits('8', int), fits(True, int), fits(8, float)
  (True, False, False, True)
  >>> fits(None, int | None), fits([1, 'a'], collections.abc.Sequence[int])
  (True, False)
  """
  origin = typing.get_origin(hint)
  if isinstance(value, Unknown) or hint is Any:
    return True
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, one) for one in typing.get_args(hint))
  if origin is typing.Literal:
    return value in typing.get_args(hint)
  if origin is typing.Annotated:
    return fits(value, typing.get_args(hint)[0])
  if hint is None or hint is type(None):
    return value is None
  kind = origin or hint
  if not isinstance(kind, type) or getattr(kind, '_is_protocol', False):
    return True
  return _is_a(value, kind) and _parts_fit(value, kind, typing.get_args(hint))


def _is_a(value: Any, kind: type) -> bool:
  if kind is object:
    return True
  if isinstance(value, Function):
    return kind in (collections.abc.Callable, type)
  if isinstance(value, bool) or kind is bool:
    return isinstance(value, bool) and kind is bool
  if kind is float:
    return isinstance(value, int | float)
  if issubclass(kind, os.PathLike):
    return isinstance(value, str | kind)
  if isinstance(value, str) and kind is not str:
    return False  # although a string is a sequence of letters
  # In gin, lists and tuples may be used for each other.
  if isinstance(value, list | tuple) and kind in (list, tuple):
    return True
  return isinstance(value, kind)


def _parts_fit(value: Any, kind: type, of: tuple) -> bool:
  if isinstance(value, Function) or not of:
    return True
  if isinstance(value, Mapping) and len(of) == 2:
    return all(fits(k, of[0]) and fits(v, of[1]) for k, v in value.items())
  if not isinstance(value, list | tuple):
    return True
  if kind is tuple and of[-1] is not Ellipsis:
    return len(value) == len(of) and all(map(fits, value, of))
  return all(fits(one, of[0]) for one in value)


def described(hint: Any) -> str:
  """Describes an annotation in words.

  >>> described(int | None), described(collections.abc.Sequence[int])
  ('a whole number or None', 'Sequence[int]')
  """
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return ' or '.join(map(described, typing.get_args(hint)))
  if hint in _WORDS:
    return _WORDS[hint]
  if isinstance(hint, type) and not typing.get_args(hint):
    return f'a {hint.__name__}'
  return str(hint).replace('collections.abc.', '').replace('typing.', '')
