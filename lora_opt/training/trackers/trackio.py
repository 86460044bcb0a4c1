"""Reports runs to trackio: on this machine, in a Space, or on your server."""

import secrets
from collections.abc import Sequence
from typing import Any

from lora_opt.training.trackers.tracker import Begun, Row, Run, load


class Trackio:
  """Reports a run to trackio; `trackio show` opens its page."""

  name = 'trackio'
  at_once = 1  # a call only queues the rows

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
      project: the project of the run.
      run_name: the name of the run; None for the name of MODEL_DIR. Four
        characters are appended, as trackio identifies runs by name.
      group: the name of a group of runs that belong together.
      space_id: 'user/name' of a Hugging Face Space, created if missing.
      server_url: a server of your own; its token is TRACKIO_WRITE_TOKEN, never
        a setting here.
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
    # trackio writes in the background; its local file shows how far it got.
    asked = local and self._trackio.utils.get_storage_mode() == 'sqlite'
    return Begun(name, where, self._sent() if asked else run.sent)

  def log(self, rows: Sequence[Row]) -> None:
    """See `Tracker`; trackio always uses its own time."""
    for row in rows:
      named = {f'{row.split}/{name}': x for name, x in row.scalars.items()}
      self._run.log(named, step=row.step)

  def finish(self, status: str) -> None:
    """See `Tracker`."""
    del status  # trackio has none
    self._run.finish()

  def _sent(self) -> dict[str, int]:
    """The last step of each split that trackio has."""
    sent: dict[str, int] = {}
    storage = self._trackio.SQLiteStorage
    rows = storage.get_logs(self._project, self._run.name, run_id=self._run.id)
    for row in rows:
      for split in {name.partition('/')[0] for name in row if '/' in name}:
        sent[split] = max(sent.get(split, -1), row['step'])
    return sent
