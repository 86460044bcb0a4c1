"""Reports runs to Weights & Biases, online or in a local folder."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from lora_opt.training import stopping
from lora_opt.training.trackers import wandb_files
from lora_opt.training.trackers.tracker import (
  FAILED,
  STOPPED,
  Begun,
  Row,
  Run,
  load,
)

_MODES = ('online', 'offline')
_EXIT_CODES = {FAILED: 1, STOPPED: stopping.EXIT}


class Wandb:
  """Reports a run to Weights & Biases, on wandb.ai or a server of your own.

  The API key is that of `wandb login` or WANDB_API_KEY, never a setting here.
  """

  name = 'wandb'
  at_once = 1  # a call only queues the rows

  def __init__(
    self,
    project: str = 'lora_opt',
    *,
    entity: str | None = None,
    run_name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    mode: str = 'online',
    settings: Mapping[str, Any] | None = None,
    patience: float = 60.0,
  ):
    """Imports the package.

    Args:
      project: the project of the run.
      entity: user or team; None for the default of the user logged in.
      run_name: the name of the run; None for the name of MODEL_DIR.
      group: the name of a group of runs that belong together.
      tags: the tags of the run.
      mode: 'online', or 'offline' for a folder in MODEL_DIR/wandb, which `wandb
        sync` uploads.
      settings: fields of `wandb.Settings`, such as {'console': 'wrap'} to also
        send what the run prints.
      patience: see `Tracker`.

    Raises:
      ValueError: the package is not installed, or there is no such mode.
    """
    if mode not in _MODES:
      raise ValueError(
        f'Wandb.mode={mode!r}: expected one of {", ".join(_MODES)}'
      )
    self._wandb = load('wandb', extra='wandb')
    self._project, self._entity = project, entity
    self._run_name, self._group, self._tags = run_name, group, tuple(tags)
    self._online = mode == 'online'
    # wandb's own output would break the progress bar. By default wandb does not
    # get what the run prints.
    self._settings = {'silent': True, 'console': 'off', **(settings or {})}
    self.patience = patience
    self._run: Any = None

  def place(self) -> dict[str, str]:
    """See `Tracker`."""
    return {'project': self._project, 'entity': self._entity or ''}

  def begin(self, run: Run) -> Begun:
    """See `Tracker`.

    Raises:
      ValueError: nobody is logged in.
    """
    wandb = self._wandb
    if self._online and not wandb.login(prompt=False, verify=False):
      raise ValueError(
        'nobody is logged in: run `wandb login`, set WANDB_API_KEY, or keep '
        'the run in a folder with --gin.trackers.Wandb.mode=offline'
      )
    # Rows that wandb had not written when it was killed are lost.
    here = None
    if run.id and not self._online:
      here = wandb_files.last_steps(run.folder, run.id)
    self._run = wandb.init(
      project=self._project,
      entity=self._entity,
      id=run.id or secrets.token_hex(4),
      name=self._run_name or run.name,
      group=self._group,
      tags=self._tags,
      config=dict(run.settings),
      dir=run.folder,
      mode='online' if self._online else 'offline',
      # An offline folder cannot be appended to: each start has one of its own,
      # with the same id.
      resume='allow' if self._online else None,
      settings=wandb.Settings(**self._settings),
    )
    if not self._online:
      where = f'`wandb sync {run.folder}/wandb/offline-run-*` sends it'
      return Begun(self._run.id, where, run.sent if here is None else here)
    sent = dict(run.sent)
    if self._run.resumed:
      # The server's state counts; it accepts no step before its last one.
      last = self._run.starting_step - 1
      sent = {name: min(step, last) for name, step in sent.items()}
      sent['train'] = last
    else:
      sent = {}
    return Begun(self._run.id, self._run.url, sent)

  def log(self, rows: Sequence[Row]) -> None:
    """See `Tracker`."""
    for row in rows:
      named = {f'{row.split}/{name}': x for name, x in row.scalars.items()}
      if row.time is not None:
        named['_timestamp'] = row.time
      self._run.log(named, step=max(row.step, self._run.step))

  def finish(self, status: str) -> None:
    """See `Tracker`."""
    if status == STOPPED:
      self._run.mark_preempting()
    self._run.finish(exit_code=_EXIT_CODES.get(status, 0))
