"""Runs in trackio: on this machine, in a Space, or on a server of one's own."""

import secrets
from collections.abc import Sequence
from typing import Any

from lora_opt.training.trackers.tracker import Begun, Row, Run, load


class Trackio:
  """Tells trackio of a run; `trackio show` has its page."""

  name = 'trackio'
  at_once = 1  # it only notes them

  def __init__(
    self,
    project: str = 'lora_opt',
    *,
    run_name: str | None = None,
    group: str | None = None,
    space_id: str | None = None,
    server_url: str | None = None,
    patience: float = 60.0,
  ):
    """Imports the package.

    Args:
      project: of the run.
      run_name: None for the name of MODEL_DIR. Four letters are added to it:
        trackio knows runs by their names.
      group: of runs that belong together.
      space_id: 'user/name' of a Space of the Hugging Face Hub, made if missing.
      server_url: of a server of one's own; its token is TRACKIO_WRITE_TOKEN,
        never a setting here.
      patience: see `Tracker`.

    Raises:
      ValueError: the package is not installed.
    """
    self._trackio = load('trackio', extra='trackio')
    self._project, self._run_name, self._group = project, run_name, group
    self._space, self._server = space_id, server_url
    self.patience = patience
    self._run: Any = None

  def place(self) -> dict[str, str]:
    """See `Tracker`."""
    where = self._space or self._server or ''
    return {'project': self._project, 'where': where}

  def begin(self, run: Run) -> Begun:
    """See `Tracker`."""
    name = run.id or f'{self._run_name or run.name}-{secrets.token_hex(2)}'
    self._run = self._trackio.init(
      project=self._project,
      name=name,
      group=self._group,
      space_id=self._space,
      server_url=self._server,
      config=dict(run.settings),
      resume='allow',
      embed=False,
    )
    local = not (self._space or self._server)
    where = (
      f'`trackio show --project {self._project}` shows it'
      if local
      else f'project {self._project} of {self._space or self._server}'
    )
    # It writes behind our back; of its own file it can say how far it came.
    asked = local and self._trackio.utils.get_storage_mode() == 'sqlite'
    return Begun(name, where, self._sent() if asked else run.sent)

  def log(self, rows: Sequence[Row]) -> None:
    """See `Tracker`; the time is always trackio's own."""
    for row in rows:
      named = {f'{row.split}/{name}': x for name, x in row.scalars.items()}
      self._run.log(named, step=row.step)

  def finish(self, status: str) -> None:
    """See `Tracker`."""
    del status  # it has none
    self._run.finish()

  def _sent(self) -> dict[str, int]:
    """The last step that is there of each split."""
    sent: dict[str, int] = {}
    storage = self._trackio.SQLiteStorage
    rows = storage.get_logs(self._project, self._run.name, run_id=self._run.id)
    for row in rows:
      for split in {name.partition('/')[0] for name in row if '/' in name}:
        sent[split] = max(sent.get(split, -1), row['step'])
    return sent
