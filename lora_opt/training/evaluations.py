"""Runs the evaluations of a run, and stores them with what they are made of."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from lora_opt.devices import finite
from lora_opt.devices.together import on_first
from lora_opt.evaluation import metrics
from lora_opt.run_folder import identity, run_directory, run_files
from lora_opt.training import drawing
from lora_opt.training.train_state import TrainState

# Fields that a stored evaluation needs so that a restart can reuse it.
_NEEDED = ('metric', 'score', 'loss', 'num_examples')


class Evaluations:
  """Evaluates the adapters of a run before, during and after training."""

  def __init__(
    self,
    folder: pathlib.Path,
    evaluate: Callable[..., dict[str, Any]],
    base: Any,
    made_of: Mapping[str, str],
  ):
    """Does not evaluate anything yet.

    Args:
      folder: MODEL_DIR.
      evaluate: from `evaluation.mixture.make_evaluator`.
      base: the frozen weights.
      made_of: see `identity.made_of`.
    """
    self._folder = folder
    self._evaluate = evaluate
    self._base = base
    self._made_of = dict(made_of)
    self._first: dict[str, Any] = {}

  def now(self, state: TrainState) -> dict[str, Any]:
    """Evaluates a state, and saves the pictures that its model draws.

    Raises:
      ValueError: some weights are not finite; the message names them.
    """
    step = int(state.step)
    adapter = state.evaluated
    with finite.explained({'base weights': self._base, 'adapter': adapter}):
      result = self._evaluate(self._base, adapter, step)
      if hasattr(self._evaluate, 'pictures'):
        strips = self._evaluate.pictures(self._base, adapter)
        on_first(functools.partial(drawing.keep, self._folder, step, strips))
    return {**result, 'made_of': self._made_of}

  def once(self, moment: str, state: TrainState) -> dict[str, Any]:
    """The evaluation before or after training, read from its file if it exists.

    Args:
      moment: 'before' or 'after', the name of the file.
      state: the state to evaluate.

    Raises:
      ValueError: the stored evaluation is of other weights or data.
    """
    path = self._folder / 'evaluation' / f'{moment}.json'
    if there := on_first(functools.partial(self._there, path)):
      return there
    # In a run of no steps both evaluations are of the same state.
    same = self._first.get('step') == int(state.step)
    result = self._first if same else self.now(state)
    self._first = self._first or result
    on_first(functools.partial(run_directory.write_json, path, result))
    print(
      f'{moment} training: {metrics.headline(result)} on '
      f'{result["num_examples"]} examples',
      flush=True,
    )
    return result

  def _there(self, path: pathlib.Path) -> dict[str, Any] | None:
    try:
      result = run_files.if_there(run_files.read_evaluation, path)
      for name in _NEEDED if result is not None else ():
        if name not in result:
          raise ValueError(f'{path}: {name} is missing')
    except ValueError as error:
      aside = run_directory.set_aside(self._folder, path)
      print(
        f'{error}. The file was moved to {aside}, and the evaluation is made '
        'anew.',
        flush=True,
      )
      return None
    if result:
      identity.check_evaluation(path, result, self._made_of)
    return result
