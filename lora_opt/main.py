"""Fine-tunes, evaluates, samples from or plans a model set up by gin files.

    python -m lora_opt.main --run_mode=train \\
      --gin_file=configs/runs/quickstart.gin --gin.MODEL_DIR=runs/mine
    python -m lora_opt.main --run_mode=report runs/sweep

`--gin.NAME=VALUE` sets the macro NAME; `--gin.module.function.argument=VALUE`
sets any argument of any function that the files mention. Both may be repeated
and override the files.
"""

import atexit
import contextlib
import logging as python_logging
import os
import re
import shlex
import sys
from collections.abc import Sequence

from absl import app, flags, logging

from lora_opt import writing
from lora_opt.buckets import access
from lora_opt.buckets.paths import is_bucket
from lora_opt.reading.values import printable
from lora_opt.training import stopping

FLAGS = flags.FLAGS
# Messages of a disk that cannot be written; they also occur in other errors.
_DISK_TROUBLE = (
  'No space left on device',
  'Disk quota exceeded',
  'Read-only file system',
  'File too large',
  'Stale file handle',
)

flags.DEFINE_enum(
  'run_mode',
  'train',
  ['train', 'eval', 'infer', 'merge', 'plan', 'compile', 'report'],
  'train: fine-tune, evaluate before and after, export the adapter. '
  'eval: score an adapter. infer: write completions for prompts. '
  'merge: add the adapter to the weights and write the model. '
  'plan: show what a training step needs on TOPOLOGY, without weights or '
  'data. compile: compile the step for TOPOLOGY ahead of time. '
  'report FOLDER: compare the runs of a sweep, or of a results.jsonl, on one '
  'page in that folder; takes no gin files.',
)
flags.DEFINE_multi_string(
  'gin_file', [], 'A gin file. Later files override earlier ones'
)
flags.DEFINE_multi_string(
  'gin_bindings', [], "A binding, such as 'TRAIN_STEPS = 100'"
)
flags.DEFINE_list(
  'gin_search_paths', [], 'More folders in which gin files are looked up.'
)
flags.DEFINE_string(
  'tfds_data_dir', None, 'Folder of prepared TensorFlow Datasets.'
)
flags.DEFINE_bool(
  'dry_run', False, 'Check and print the configuration, then exit.'
)
flags.DEFINE_integer(
  'profile',
  None,
  'Trace this many training steps into MODEL_DIR/profile, with a page that '
  'says where their time goes; the same as --gin.PROFILE_STEPS=...',
  lower_bound=1,
)
flags.DEFINE_string(
  'compilation_cache_dir',
  os.path.join('~', '.cache', 'lora_opt', 'compiled'),
  'Folder in which compiled programs are kept for the next run; empty: none. '
  'The environment variable JAX_COMPILATION_CACHE_DIR overrides it.',
)
flags.DEFINE_string(
  'coordinator_address',
  None,
  'For several processes: host:port of process 0, or auto under SLURM, Open '
  'MPI, Cloud TPU or GKE, which provide it.',
)
flags.DEFINE_integer(
  'process_count', None, 'Number of processes.', lower_bound=1
)
flags.DEFINE_integer(
  'process_index', None, 'Index of this process, from 0.', lower_bound=0
)
flags.DEFINE_integer(
  'heartbeat_timeout_seconds',
  30,
  'A process that is silent for this long counts as lost; the others exit.',
  lower_bound=1,
)


def rewrite_gin_flags(argv: Sequence[str]) -> list[str]:
  """Turns `--gin.NAME=VALUE` into a `--gin_bindings` flag.

  >>> rewrite_gin_flags(['main', '--gin.BATCH_SIZE=8', '--dry_run'])
  ['main', '--gin_bindings=BATCH_SIZE=8', '--dry_run']
  """
  return [
    argument.replace('--gin.', '--gin_bindings=', 1)
    if argument.startswith('--gin.')
    else argument
    for argument in argv
  ]


def main(argv: Sequence[str]) -> None:
  if FLAGS.run_mode == 'report':
    _report(argv[1:])
    return
  if len(argv) > 1:
    raise ValueError(f'not a flag: {argv[1]}; see --help')
  if not FLAGS.gin_file:
    raise ValueError(
      'give at least one --gin_file, such as configs/runs/quickstart.gin; see '
      '--help'
    )
  # Imported late, so that --help and flag errors respond at once.

  from lora_opt import config
  from lora_opt.evaluation import run as evaluation
  from lora_opt.planning import ahead
  from lora_opt.planning import plan as planning
  from lora_opt.run_folder.run_directory import RunRecord
  from lora_opt.training import (
    host_devices,
    loop,
    places,
    processes,
    told_once,
  )

  if not os.environ.get('LORA_OPT_TRACEBACK'):
    told_once.tell_once()
  host_devices.make_room(host_devices.simulated())
  _keep_compiled_programs(FLAGS.compilation_cache_dir)
  python_logging.getLogger('jax').setLevel(python_logging.WARNING)
  # Logs how attention is computed if it is not the plain implementation.
  attending = python_logging.getLogger('lora_opt.models.attend')
  attending.setLevel(python_logging.INFO)
  if FLAGS.coordinator_address or FLAGS.process_count:
    processes.start(
      FLAGS.coordinator_address,
      FLAGS.process_count,
      FLAGS.process_index,
      FLAGS.heartbeat_timeout_seconds,
    )
  if FLAGS.tfds_data_dir:
    os.environ['TFDS_DATA_DIR'] = FLAGS.tfds_data_dir

  logging.set_verbosity(logging.WARNING)
  bindings = list(FLAGS.gin_bindings)
  if FLAGS.profile:
    bindings.append(f'PROFILE_STEPS = {FLAGS.profile}')
  run = {
    'train': loop.train,
    'eval': evaluation.score,
    'infer': evaluation.infer,
    'merge': evaluation.merge,
    'plan': planning.plan,
    'compile': ahead.compile_ahead,
  }[FLAGS.run_mode]
  config.load(FLAGS.gin_file, bindings, FLAGS.gin_search_paths, [run])
  if FLAGS.dry_run:
    print(config.text())
    return
  if FLAGS.run_mode not in ('plan', 'compile'):  # they need no data
    places.check(config.settings(), {'--tfds_data_dir': FLAGS.tfds_data_dir})
  else:
    config.build(planning.simulate)()  # before anything uses the real devices
  config.build(run)(
    record=RunRecord(
      command=shlex.join(['python', '-m', 'lora_opt.main', *sys.argv[1:]]),
      settings=config.settings(),
      config_text=config.text(),
      operative_config_text=config.operative_text,
    )
  )


def _keep_compiled_programs(folder: str) -> None:
  import jax

  from lora_opt.planning import ahead

  if is_bucket(folder):
    raise ValueError(
      f'--compilation_cache_dir={folder}: a local folder is needed here. For '
      'a cache in a bucket set JAX_COMPILATION_CACHE_DIR, which JAX reads'
    )
  if folder and not jax.config.jax_compilation_cache_dir:
    folder = os.path.abspath(os.path.expanduser(folder))
    jax.config.update('jax_compilation_cache_dir', folder)
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    # By default JAX caches only programs that took a second to compile. The
    # quicker ones of one start, together, take longer than its imports.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  ahead.heed(jax.config.jax_compilation_cache_dir)


def _report(folders: Sequence[str]) -> None:
  from lora_opt.evaluation.study.page import write_study_report

  if len(folders) != 1:
    raise ValueError(
      '--run_mode=report takes one folder: that of a sweep, or one with its '
      'results.jsonl'
    )
  print(f'report: {write_study_report(folders[0])}')


def run() -> None:
  """Entry point; a user's mistake ends in one clear message, no traceback.

  The exit status is 0 if everything is done, 75 if a signal stopped the process
  early (the same command resumes from there), and 1 after an error.
  """
  writing.print_anything()
  atexit.register(stopping.ignore)  # registered first, so it is called last
  stopping.Stops().__enter__()  # stays open until the process ends
  try:
    app.run(main, flags_parser=lambda argv: FLAGS(rewrite_gin_flags(argv)))
  except stopping.Stopped as stopped:
    processes = sys.modules.get('lora_opt.training.processes')
    if processes is not None and not stopped.together:
      processes.leave_others()
    _leave_trackers(stopped.code)
    raise
  except SystemExit as ended:
    if not ended.code:
      stopping.leave(0)
    _leave_trackers(ended.code)
    raise
  except Exception as error:
    if os.environ.get('LORA_OPT_TRACEBACK'):
      raise
    message = explain(error)
    if message is None:
      raise
    print(f'\nerror: {printable(message)}\n', file=sys.stderr)
    print('(LORA_OPT_TRACEBACK=1 shows where it arose)', file=sys.stderr)
    if _is_loss_of_a_process(error) or _disk_trouble(error):
      # A normal exit would wait for the lost process, or write what is left to
      # a disk that cannot be written.
      with contextlib.suppress(OSError):
        sys.stdout.flush()
      stopping.end_now(1)
    _leave_trackers(1)
    sys.exit(1)


def _leave_trackers(code: int | str | None) -> None:
  """Ends the process at once if a tracker hangs, which would block its exit."""
  following = sys.modules.get('lora_opt.training.trackers.following')
  if following is None or not following.abandoned():
    return
  if isinstance(code, str):
    print(code, file=sys.stderr)
  with contextlib.suppress(OSError):
    sys.stdout.flush()
  stopping.end_now(code if isinstance(code, int) else int(code is not None))


def explain(error: Exception) -> str | None:
  """The message to show the user; None if only a traceback helps.

  >>> explain(ValueError('no such task'))
  'no such task'
  """
  # Drop the lines in which gin names the functions it was calling.
  message = re.sub(r'\n\s*In call to configurable .*', '', str(error))
  if line := _disk_trouble(error):
    return (
      f'{line}\nThe checkpoints that are there are whole: mend the disk of '
      'MODEL_DIR (room, quota, permissions) and run the same command again.'
    )
  if _is_loss_of_a_process(error):
    return (
      'another process of this run is gone or cannot be reached, so this one '
      'stops too. Its own log says why. The checkpoints that are there are '
      'whole: start all processes again, and the run goes on from the newest.'
      f'\n({message.splitlines()[0]})'
    )
  if access.is_of_a_store(error):
    return (
      f'a bucket could not be read or written: {access.reason(error)}\nThe '
      'checkpoints that are there are whole: once the bucket can be reached '
      'run the same command again.'
    )
  return message if isinstance(error, ValueError | OSError) else None


def _disk_trouble(error: Exception) -> str:
  """The line of an error message that reports disk trouble, '' if none does."""
  for line in str(error).splitlines():
    if any(trouble in line for trouble in _DISK_TROUBLE):
      return line.strip()[:500]
  return ''


def _is_loss_of_a_process(error: Exception) -> bool:
  jax = sys.modules.get('jax')  # early errors need not wait for its import
  return (
    jax is not None
    and isinstance(error, jax.errors.JaxRuntimeError)
    and jax.process_count() > 1
  )


if __name__ == '__main__':
  run()
