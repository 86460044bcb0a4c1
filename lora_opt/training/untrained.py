"""Detects trainable parameters that the optimizer does not change.

A recipe trains the LoRA factors. It trains leaves outside pairs (a head, the
magnitudes of DoRA) only with the optimizer given as its argument `other`. A
head that is initialised at random and never trained would answer by chance.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from lora_opt.devices.partitioning import Placement
from lora_opt.training.train_state import TrainState

# Steps to wait after the first that changed a leaf, as learning rates may rise.
PATIENCE = 10
_FACTORS = ('lora_a', 'lora_b')
_FIX = (
  'Give the optimizer other=optax.adamw(...), as configs/lora/encoder.gin and '
  'configs/lora/dora.gin do'
)


class Watch:
  """Compares the leaves outside pairs with their values at the start.

  Costs nothing if there are none, and ends at the first step after which all
  of them have changed.
  """

  def __init__(self, lora: Any, placement: Placement, drawn: Collection[str]):
    """Copies the leaves to be compared.

    Args:
      lora: the trainable parameters before the first step.
      placement: from `lora_opt.devices.partitioning.Partitioner.place`.
      drawn: path prefixes of leaves that were initialised at random and must be
        trained.
    """
    leaves = _by_path(lora)
    factors = [p for p in leaves if p.rpartition('/')[2] in _FACTORS]
    self._others = leaves.keys() - factors
    self._drawn = tuple(drawn)
    self._steps = 0
    self._active = bool(self._others)
    if self._active:
      # One pair of factors is enough to tell whether a step was taken.
      site = factors[0].rpartition('/')[0] if factors else None
      watched = {p: leaves[p] for p in self._others}
      watched |= {p: leaves[p] for p in factors if p.startswith(f'{site}/')}
      self._start = placement.jit(lambda tree: jax.tree.map(jnp.copy, tree))(
        watched
      )
      self._changed = placement.jit(_changed, out_shardings=placement.whole)

  def __call__(
    self, stepped: tuple[TrainState, dict]
  ) -> tuple[TrainState, dict]:
    """Checks the state after a step, and returns its argument.

    Raises:
      ValueError: leaves that were initialised at random are not trained.
    """
    if self._active:
      now = _by_path(stepped[0].lora)
      now = {path: now[path] for path in self._start}
      changed = jax.device_get(self._changed(now, self._start))
      same = sorted(path for path in self._others if not changed[path])
      self._steps += any(changed.values())
      if not same:
        self._end()
      elif self._steps > PATIENCE:
        self._say(same)
      else:
        self._same = same
    return stepped

  def finish(self) -> None:
    """Reports what has not changed in a training of few steps.

    Raises:
      ValueError: as in `__call__`.
    """
    if self._active and self._steps:
      self._say(self._same)

  def _end(self) -> None:
    self._active, self._start = False, {}

  def _say(self, same: list[str]) -> None:
    self._end()
    drawn = [path for path in same if path.startswith(self._drawn)]
    if drawn:
      raise ValueError(
        f'{", ".join(drawn)} started at random, and the optimizer does not '
        f'train them: the model would answer by chance. {_FIX}'
      )
    logging.warning(
      '%s: still as at the start, since the optimizer does not train them. '
      'If it should: %s',
      ', '.join(same),
      _FIX,
    )


def _by_path(tree: Any) -> dict[str, jax.Array]:
  flat, _ = jax.tree.flatten_with_path(tree)
  keystr = jax.tree_util.keystr
  return {keystr(p, simple=True, separator='/'): leaf for p, leaf in flat}


def _changed(now: Any, start: Any) -> dict[str, jax.Array]:
  return jax.tree.map(lambda x, y: jnp.any(x != y), now, start)
