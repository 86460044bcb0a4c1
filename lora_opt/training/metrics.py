"""Logs a run while it trains: metrics.jsonl, TensorBoard, a progress line.

`metrics.jsonl` is the record from which everything else is made: one JSON
object per line with `step`, `time`, `split` and the scalars. It survives a
killed run, can be read in any text editor, and is what the report plots.
"""

import contextlib
import io
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import tqdm

from lora_opt import writing
from lora_opt.buckets.outbox import Outbox
from lora_opt.buckets.paths import as_path
from lora_opt.evaluation import history
from lora_opt.evaluation.history import METRICS_FILE
from lora_opt.training import events

# Seconds between two uploads of the log, if the run is in a bucket.
PUT_PERIOD = 30.0
_RESERVED = ('step', 'time', 'split')


class MetricWriter:
  """Writes scalars to `metrics.jsonl` and as TensorBoard events.

  Existing files are appended to. A run that resumes from step s first calls
  `rewind(s)`, so that the steps between s and the interruption do not appear
  twice. With several processes only the first should have a writer.

  Args:
    model_dir: the folder of the run, created if missing. TensorBoard events go
      to `tensorboard/train` and `tensorboard/eval` inside it.
    tell: called whenever `metrics.jsonl` has changed.

  >>> import tempfile
  >>> folder = tempfile.mkdtemp()
  >>> with MetricWriter(folder) as writer:
  ...   writer.write(1, 'train', {'loss': 2.5})
  >>> line = (Path(folder) / 'metrics.jsonl').read_text('utf-8')
  >>> json.loads(line)['loss']
  2.5
  """

  def __init__(
    self, model_dir: str | Path, tell: Callable[[], None] = lambda: None
  ):
    self._tell = tell
    # Objects in a bucket cannot be appended to: changed files are put whole.
    self._outbox = Outbox(as_path(model_dir), METRICS_FILE)
    self._model_dir = self._outbox.folder
    self._next_put = time.monotonic() + PUT_PERIOD
    self._path = self._model_dir / METRICS_FILE
    self._events: dict[str, Any] = {}
    self._purge_step: int | None = None
    self._file = self._open()

  def write(self, step: int, split: str, scalars: Mapping[str, Any]) -> None:
    """Writes one line and one event for each scalar.

    Args:
      step: training steps finished so far.
      split: 'train' or 'eval'.
      scalars: name -> a number or an array of one element. JSON has no NaN, so
        a value that is not finite is written as null.

    Raises:
      ValueError: a scalar is named step, time or split.
    """
    if taken := [name for name in _RESERVED if name in scalars]:
      raise ValueError(f'scalars may not be named {taken}: rename them')
    step, now = int(step), time.time()
    values = {name: float(value) for name, value in scalars.items()}
    shown = {n: v if math.isfinite(v) else None for n, v in values.items()}
    row = {'step': step, 'time': round(now, 3), 'split': split} | shown
    self._file.write(json.dumps(row, allow_nan=False) + '\n')
    self._file.flush()
    events = self._events_of(split)
    for name, value in values.items():
      events.add_scalar(name, value, step, walltime=now)
    self._tell()
    if time.monotonic() >= self._next_put:
      self.put()

  def put(self) -> None:
    """Uploads what was written, if the run is in a bucket.

    `write` does it every `PUT_PERIOD` seconds, and `close` at the end. It must
    also be called before a checkpoint is saved, so that no checkpoint is in the
    bucket before the log of the steps that led to it.
    """
    for board in self._events.values():
      board.flush()
    self._outbox.put()
    self._next_put = time.monotonic() + PUT_PERIOD

  def rewind(self, step: int) -> None:
    """Removes everything logged after `step`.

    Lines of later steps are removed from `metrics.jsonl`, and so are lines that
    cannot be read, which are reported. TensorBoard files are not rewritten: the
    next one starts with a mark that hides the later events.
    """
    self._close_files()
    if found := history.problems(self._model_dir):
      print(found, flush=True)
    with writing.draft(self._path) as part, part.open('wb') as file:
      for line in history.read_lines(self._path):
        if line.row is not None and line.row['step'] <= step:
          file.write(line.data)
    self._purge_step = step + 1
    self._file = self._open()
    self._tell()

  def close(self) -> None:
    """Flushes and closes all files."""
    self._close_files()
    self._outbox.close()

  def _close_files(self) -> None:
    self._file.close()
    for board in self._events.values():
      board.close()
    self._events.clear()

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self.close()

  def _open(self) -> TextIO:
    """Opens for appending, and cuts the half line a killed run may leave."""
    file = writing.append(self._path)
    file.seek(0)
    file.truncate(file.read().rfind(b'\n') + 1)
    return io.TextIOWrapper(file, encoding='utf-8')

  def _events_of(self, split: str) -> Any:
    if split not in self._events:
      self._events[split] = events.writer(
        str(self._model_dir / 'tensorboard' / split),
        purge_step=self._purge_step,
        flush_secs=10,
        # The default name has only seconds: a quick restart would overwrite.
        filename_suffix=f'.{time.time_ns()}',
      )
    return self._events[split]


class NoWriter(contextlib.nullcontext):
  """Replaces `MetricWriter` in all processes but the first."""

  def write(self, step: int, split: str, scalars: Mapping[str, Any]) -> None:
    """Writes nothing."""

  def rewind(self, step: int) -> None:
    """Removes nothing."""

  def put(self) -> None:
    """Puts nothing."""

  def __enter__(self) -> Self:
    return self


class ProgressBar:
  """Shows step, loss, learning rate, speed and time left on one line.

  On a terminal the line is redrawn in place. Elsewhere (a log file, a batch
  job) a plain line without control characters is printed from time to time.

  Args:
    total: steps of the whole run.
    initial: steps already done before this start.
    interval: seconds between two plain lines.
    stream: the output stream; standard error by default.
  """

  def __init__(
    self,
    total: int,
    initial: int = 0,
    *,
    interval: float = 30.0,
    stream: TextIO | None = None,
  ):
    self._stream = sys.stderr if stream is None else stream
    self._total, self._initial, self._interval = total, initial, interval
    self._started = time.monotonic()
    self._next_line = self._started
    self._scalars: dict[str, float] = {}
    self._bar = None
    if self._stream.isatty():
      self._bar = tqdm.tqdm(
        total=total,
        initial=initial,
        file=self._stream,
        dynamic_ncols=True,
        bar_format='{n_fmt}/{total_fmt} {bar} {remaining} left{postfix}',
      )

  def update(self, step: int, scalars: Mapping[str, Any] | None = None) -> None:
    """Moves to `step`; without scalars the last ones stay in view.

    Args:
      step: training steps finished so far.
      scalars: the logged scalars. `loss`, `learning_rate` and
        `timing/tokens_per_second` (or images_per_second) are shown;
        `timing/steps_per_second` gives the time left.
    """
    self._scalars |= {n: float(v) for n, v in (scalars or {}).items()}
    if self._bar is not None:
      self._bar.set_postfix_str(self._describe(), refresh=False)
      self._bar.update(step - self._bar.n)
      return
    now = time.monotonic()
    if now >= self._next_line or step == self._total:
      self._next_line = now + self._interval
      parts = [f'step {step}/{self._total}', self._describe()]
      left = self._seconds_left(step, now)
      if left is not None:
        parts.append(f'{tqdm.tqdm.format_interval(left)} left')
      self.print(', '.join(filter(None, parts)))

  def print(self, text: str) -> None:
    """Prints a line without breaking the progress bar."""
    tqdm.tqdm.write(text, file=self._stream)
    self._stream.flush()

  def close(self) -> None:
    """Closes the bar, and leaves its last state in view."""
    if self._bar is not None:
      self._bar.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self.close()

  def _describe(self) -> str:
    get = self._scalars.get
    speed = get(
      'timing/tokens_per_second', get('timing/target_tokens_per_second')
    )
    parts = (
      ('loss {:.4f}', get('loss')),
      ('lr {:.2e}', get('learning_rate')),
      ('{:,.0f} tokens/s', speed),
      ('{:,.1f} images/s', get('timing/images_per_second')),
    )
    return ', '.join(form.format(v) for form, v in parts if v is not None)

  def _seconds_left(self, step: int, now: float) -> float | None:
    rate = self._scalars.get('timing/steps_per_second')
    if rate is None:
      # No speed measured yet: the average since the start, with compilation.
      rate = (step - self._initial) / max(now - self._started, 1e-9)
    return (self._total - step) / rate if rate > 0 else None
