"""Makes a run's pictures: of the class before training, and of its progress."""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from lora_opt import progress, writing
from lora_opt.buckets.outbox import output_folder
from lora_opt.devices.together import on_first
from lora_opt.evaluation import picture_files
from lora_opt.evaluation.pictures import Strip
from lora_opt.reading.json_text import read_json
from lora_opt.reading.values import printable, shown
from lora_opt.run_folder import identity, run_directory
from lora_opt.training import events

CLASS_FOLDER = 'class_pictures'
_MADE_OF = 'made_of.json'


def keep(folder: pathlib.Path, step: int, strips: list[Strip]) -> None:
  """Writes the pictures drawn at a step to files and for TensorBoard.

  Args:
    folder: MODEL_DIR.
    step: finished training steps.
    strips: the pictures.
  """
  picture_files.write(folder, step, strips)
  with (
    output_folder(folder / 'tensorboard' / 'pictures') as logdir,
    events.writer(
      str(logdir), filename_suffix=f'.{step}.{os.getpid()}'
    ) as board,
  ):
    for strip in strips:
      grid = picture_files.side_by_side(strip.pictures)
      board.add_image(strip.prompt, grid, step, dataformats='HWC')


def with_class_pictures(
  folder: pathlib.Path, model: Any, task: Any, evaluate: Any, base: Any
) -> Any:
  """Draws the class pictures that a task lacks; returns the task with them.

  They are stored in MODEL_DIR/class_pictures. Existing ones are not drawn
  again. All processes must call this.

  Args:
    folder: MODEL_DIR.
    model: the model of the run.
    task: the task of the run; returned unchanged if it lacks no pictures.
    evaluate: an evaluator, whose `class_pictures` draws them.
    base: frozen weights, placed on the devices.

  Raises:
    ValueError: the existing pictures were made from something else, such as
      other weights or another prompt.
  """
  count = getattr(task, 'missing_class_images', int)()
  if not count:
    return task
  target = folder / CLASS_FOLDER
  size = evaluate.class_batch_size
  evaluate.check_captions([task.class_prompt])
  made_of = identity.made_of(identity.of_model(model, base))
  about = {**made_of, 'class prompt': task.class_prompt, **evaluate.drawn_by}
  on_first(functools.partial(_check, target, about))
  wanted = [target / f'{number:05d}.png' for number in range(count)]
  there = on_first(lambda: [path.exists() for path in wanted])
  left = [i for i in range(0, count, size) if not all(there[i : i + size])]
  if left:
    print(
      printable(
        f'{count - sum(there)} pictures of {task.class_prompt!r} are made by '
        f'the model without an adapter, in {target}'
      ),
      flush=True,
    )
  for first in progress.counted(left, 'pictures of the class'):
    pictures = evaluate.class_pictures(base, task.class_prompt, first)
    on_first(functools.partial(_write, wanted[first : first + size], pictures))
  return task.with_made_images(str(target))


def _write(paths: list[pathlib.Path], pictures: Any) -> None:
  for path, picture in zip(paths, pictures, strict=False):
    if not path.exists():
      writing.write_bytes(path, picture_files.png(picture))


def _check(folder: pathlib.Path, about: Mapping[str, str]) -> None:
  """Records what the pictures are made of, or checks it against the record."""
  path = folder / _MADE_OF
  if path.exists():
    there = read_json(path)
    if other := [k for k in about if there.get(k) != about[k]]:
      name = other[0]
      raise ValueError(
        f'{folder} has pictures of the class that were made otherwise: {name}: '
        f'there {shown(there.get(name))}, here {shown(about[name])}. '
        'Delete the folder, or choose another MODEL_DIR'
      )
  run_directory.write_json(path, dict(about))
