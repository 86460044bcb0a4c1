"""Finds the arrays that hold NaN or infinity."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

_SHOWN = 3


def by_path(tree: Any) -> dict[str, jax.Array]:
  """The arrays of a tree by path, such as layers/mlp/up/lora_a."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def not_finite(arrays: Mapping[str, jax.Array]) -> dict[str, int]:
  """Counts NaN and infinite values of each array; omits arrays without any.

  >>> not_finite({'a': jnp.ones(2), 'b': jnp.array([1.0, jnp.nan, jnp.inf])})
  {'b': 2}
  """
  floating = {
    name: x
    for name, x in arrays.items()
    if jnp.issubdtype(jnp.result_type(x), jnp.inexact)
  }
  counts = jax.device_get(_bad_values(floating))
  return {name: int(count) for name, count in counts.items() if count}


@jax.jit
def _bad_values(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
  return {name: jnp.sum(~jnp.isfinite(x)) for name, x in arrays.items()}


def check(trees: Mapping[str, Any]) -> None:
  """Raises ValueError if any of these trees is not finite; see `broken`."""
  if found := broken(trees):
    raise ValueError(f'{found}: nothing can be trained or evaluated with that')


@contextlib.contextmanager
def explained(trees: Mapping[str, Any]) -> Iterator[None]:
  """Checks these trees if the body raises ValueError; costs nothing otherwise.

  Raises:
    ValueError: the body raised one, and one of the trees is not finite.
  """
  try:
    yield
  except ValueError as error:
    if found := broken(trees):
      raise ValueError(
        f'{found}: nothing can be evaluated with that'
      ) from error
    raise


def broken(trees: Mapping[str, Any]) -> str:
  """Says which arrays of which trees are not finite; '' if all are finite.

  Args:
    trees: name -> tree.

  >>> broken({'base weights': {'up': jnp.array([0.0, jnp.nan])}})
  'base weights: up holds 1 value that is NaN or infinite, of 2'
  """
  parts = []
  for title, tree in trees.items():
    arrays = by_path(tree)
    found = not_finite(arrays)
    if found:
      parts.append(f'{title}: {_listed(found, arrays)}')
  return '; '.join(parts)


def _listed(found: Mapping[str, int], arrays: Mapping[str, jax.Array]) -> str:
  names: Sequence[str] = sorted(found)
  listed = [
    f'{name or "the array"} holds {_values(found[name])}, of '
    f'{arrays[name].size:,}'
    for name in names[:_SHOWN]
  ]
  if len(names) > _SHOWN:
    listed.append(f'and {len(names) - _SHOWN} more arrays')
  return ', '.join(listed)


def _values(count: int) -> str:
  many = 'values that are' if count > 1 else 'value that is'
  return f'{count:,} {many} NaN or infinite'
