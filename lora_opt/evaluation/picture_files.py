"""Stores the pictures that a run drew: one PNG file for each text and step.

MODEL_DIR/evaluation/pictures/ contains step_000100_0.png, the pictures of the
first text side by side, and step_000100.json, which lists the texts and files.
"""

import base64
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lora_opt import writing
from lora_opt.evaluation.pictures import Strip
from lora_opt.reading import values
from lora_opt.reading.files import read_bytes
from lora_opt.reading.json_text import read_json
from lora_opt.run_folder import run_directory

FOLDER = 'evaluation/pictures'
_GAP = 1  # white pixels between two pictures, for every 16 of their height
# Limits for a file shown on a page, and the height it is shown with.
_MOST_BYTES, _MOST_PIXELS, _SHOWN_HEIGHT = 2**26, 2**26, 160


class Drawn(NamedTuple):
  """The files of one step."""

  step: int
  prompts: list[str]
  files: list[pathlib.Path]


def side_by_side(pictures: np.ndarray) -> np.ndarray:
  """Pictures in a row with a little white between them.

  Args:
    pictures: (pictures, height, width, 3) uint8.

  >>> side_by_side(np.zeros((3, 16, 16, 3), np.uint8)).shape
  (16, 50, 3)
  """
  gap = _GAP * max(1, pictures.shape[1] // 16)
  white = np.full((pictures.shape[1], gap, 3), 255, np.uint8)
  parts = [part for picture in pictures for part in (white, picture)]
  return np.concatenate(parts[1:], axis=1)


def png(picture: np.ndarray) -> bytes:
  """A picture (height, width, 3) uint8 as the bytes of a PNG file."""
  file = io.BytesIO()
  Image.fromarray(picture).save(file, 'PNG')
  return file.getvalue()


def write(folder: pathlib.Path, step: int, strips: Sequence[Strip]) -> None:
  """Writes the pictures of a step.

  Args:
    folder: MODEL_DIR.
    step: number of finished training steps.
    strips: the pictures of each text.
  """
  files = []
  for number, strip in enumerate(strips):
    name = f'step_{step:06d}_{number}.png'
    data = png(side_by_side(strip.pictures))
    writing.write_bytes(folder / FOLDER / name, data)
    files.append({'prompt': strip.prompt, 'file': name})
  path = folder / FOLDER / f'step_{step:06d}.json'
  run_directory.write_json(path, {'step': step, 'pictures': files})


def steps(folder: pathlib.Path) -> list[pathlib.Path]:
  """The JSON files that `write` left in MODEL_DIR, one for each step."""
  return sorted((folder / FOLDER).glob('step_*.json'))


def read(path: pathlib.Path) -> Drawn:
  """Reads one of the files that `steps` lists.

  Raises:
    ValueError: it is damaged.
  """
  found = read_json(path)
  step = values.integer(found.get('step'), f'{path}: step', least=0)
  prompts, files = [], []
  for entry in values.items(found.get('pictures'), f'{path}: pictures'):
    values.table(entry, f'{path}: pictures')
    prompts.append(values.text(entry.get('prompt'), f'{path}: prompt'))
    name = values.text(entry.get('file'), f'{path}: file')
    files.append(path.with_name(pathlib.PurePath(name).name))
  return Drawn(step, prompts, files)


def data_url(path: pathlib.Path) -> str:
  """A PNG file as a data URL, scaled to about the height `_SHOWN_HEIGHT`.

  Raises:
    OSError: it cannot be read.
    ValueError: it is not a picture.
  """
  data = read_bytes(path, most=_MOST_BYTES)
  try:
    with Image.open(io.BytesIO(data), formats=['PNG']) as image:
      if image.width * image.height > _MOST_PIXELS:
        raise ValueError('too many pixels')
      picture = image.convert('RGB')
  except (OSError, SyntaxError, ValueError) as error:
    raise ValueError(f'{path}: no picture that can be read: {error}') from None
  if picture.height > _SHOWN_HEIGHT:
    width = round(picture.width * _SHOWN_HEIGHT / picture.height)
    picture = picture.resize((width, _SHOWN_HEIGHT), Image.Resampling.LANCZOS)
  elif (times := _SHOWN_HEIGHT // (2 * picture.height)) > 1:
    size = picture.width * times, picture.height * times
    picture = picture.resize(size, Image.Resampling.NEAREST)
  text = base64.b64encode(png(np.asarray(picture))).decode()
  return f'data:image/png;base64,{text}'


def table(
  drawn: Sequence[Drawn], note: Callable[[str], None], most: int = 6
) -> dict[str, Any]:
  """Pictures by text and step, for a page.

  Args:
    drawn: the files of each step, in order.
    note: called with a message for each file that cannot be read.
    most: the most steps to show, the first and the last among them.

  Returns:
    `steps`, and `rows`: each a text and its data URLs, '' for a missing one.
  """
  if len(drawn) > most:
    places = np.linspace(0, len(drawn) - 1, most).round().astype(int)
    drawn = [drawn[place] for place in places]
  prompts = {prompt: None for each in drawn for prompt in each.prompts}
  rows = []
  for prompt in prompts:
    cells = []
    for each in drawn:
      by_prompt = dict(zip(each.prompts, each.files, strict=True))
      cells.append(_url_or_note(by_prompt.get(prompt), note))
    rows.append((prompt, cells))
  return {'steps': [each.step for each in drawn], 'rows': rows}


def _url_or_note(file: pathlib.Path | None, note: Callable[[str], None]) -> str:
  try:
    return '' if file is None else data_url(file)
  except (OSError, ValueError) as error:
    note(f'left out, since it cannot be read: {error}')
    return ''
