"""Reports runs to MLflow: on a server, or in an SQLite file."""

import re
import time as clock
from collections.abc import Mapping, Sequence
from typing import Any

from lora_opt.training.trackers.tracker import (
  FAILED,
  FINISHED,
  STOPPED,
  Begun,
  Row,
  Run,
  load,
)

_STATUS = {FINISHED: 'FINISHED', STOPPED: 'KILLED', FAILED: 'FAILED'}
# Limits of MLflow's servers: characters refused in the names of metrics and
# settings, length of a setting, and settings and metrics per call.
_STRANGE, _LONGEST = re.compile(r'[^\w\-. :/]'), 6000
_MANY, _MANY_METRICS = 100, 1000
_SPLITS = ('train', 'eval', 'before', 'after')


class Mlflow:
  """Reports a run to MLflow."""

  name = 'mlflow'
  at_once = 100  # a call takes tens of milliseconds; repeating one is harmless

  def __init__(
    self,
    experiment: str = 'lora_opt',
    *,
    uri: str | None = None,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    patience: float = 60.0,
  ):
    """Imports the package.

    Args:
      experiment: the experiment of the run, created if missing.
      uri: the server, or 'sqlite:///file.db'; None for MLFLOW_TRACKING_URI, or
        else mlflow.db in the working directory.
      run_name: the name of the run; None for the name of MODEL_DIR.
      tags: the tags of the run.
      patience: see `Tracker`.

    Raises:
      ValueError: the package is not installed.
    """
    self._mlflow = load('mlflow', extra='mlflow')
    self._experiment, self._run_name = experiment, run_name
    self._tags = dict(tags or {})
    self._uri = uri or self._mlflow.get_tracking_uri()
    self.patience = patience
    self._client: Any = None
    self._id = ''

  def place(self) -> dict[str, str]:
    """See `Tracker`."""
    return {'uri': self._uri, 'experiment': self._experiment}

  def begin(self, run: Run) -> Begun:
    """See `Tracker`."""
    # Not the module's functions, which support one run per process.
    self._client = self._mlflow.MlflowClient(tracking_uri=self._uri)
    where = f'experiment {self._experiment} of {self._uri}'
    if run.id is not None:
      self._id = run.id
      self._client.update_run(self._id, status='RUNNING')
      return Begun(self._id, where, self._sent())
    experiment = self._client.get_experiment_by_name(self._experiment)
    made = self._client.create_run(
      experiment.experiment_id
      if experiment is not None
      else self._client.create_experiment(self._experiment),
      run_name=self._run_name or run.name,
      tags=self._tags,
    )
    self._id = made.info.run_id
    # Only when the run is created: MLflow's parameters cannot be changed.
    params = [
      self._mlflow.entities.Param(_name(name), str(value)[:_LONGEST])
      for name, value in run.settings.items()
    ]
    for first in range(0, len(params), _MANY):
      self._client.log_batch(self._id, params=params[first : first + _MANY])
    return Begun(self._id, where, {})

  def log(self, rows: Sequence[Row]) -> None:
    """See `Tracker`."""
    metrics = [
      self._mlflow.entities.Metric(
        _name(f'{row.split}/{name}'),
        row.scalars[name],
        int((clock.time() if row.time is None else row.time) * 1000),
        row.step,
      )
      for row in rows
      # The loss last: `_sent` takes it as the sign that a row is complete.
      for name in sorted(row.scalars, key=lambda name: name == 'loss')
    ]
    for first in range(0, len(metrics), _MANY_METRICS):
      part = metrics[first : first + _MANY_METRICS]
      self._client.log_batch(self._id, metrics=part)

  def finish(self, status: str) -> None:
    """See `Tracker`."""
    self._client.set_terminated(self._id, _STATUS[status])

  def _sent(self) -> dict[str, int]:
    """The last step of each split that MLflow has."""
    found = {}
    for split in _SPLITS:
      history = self._client.get_metric_history(self._id, f'{split}/loss')
      if history:
        found[split] = max(metric.step for metric in history)
    return found


def _name(text: str) -> str:
  return _STRANGE.sub('_', text)
