"""Pictures of coloured digits with captions, and of a subject among them.

The digits are those of scikit-learn (the test part of the UCI set "Optical
Recognition of Handwritten Digits", Alpaydin and Kaynak 1998, CC BY 4.0): 8 x 8
pixels, enlarged and drawn in ink of one colour on paper of another.
"""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

SIZE = 16
NAMES = (
  *('zero', 'one', 'two', 'three', 'four'),
  *('five', 'six', 'seven', 'eight', 'nine'),
)
COLOURS = {
  'black': (20, 20, 25),
  'white': (245, 245, 240),
  'red': (215, 35, 40),
  'green': (40, 150, 65),
  'blue': (40, 75, 205),
  'yellow': (245, 205, 45),
  'purple': (135, 50, 155),
}
# The two inks of the subject, which captions have no names for.
_SUBJECT_INKS = (255, 140, 30), (60, 205, 215)
# The digit of the subject, and its handwriting, which no other picture has.
SUBJECT_DIGIT, _SUBJECT_IMAGE = 7, 17
# Number of places along each axis, and largest size of a digit, in pixels.
_SHIFTS, _LARGEST = 3, 14


def caption(digit: int, ink: str | None, paper: str | None) -> str:
  """The caption of a picture; colours may be left out.

  >>> caption(8, None, 'blue'), caption(1, 'red', None)
  ('an eight on blue', 'a red one')
  """
  words = ([ink] if ink else []) + [NAMES[digit]]
  article = 'an' if words[0] == 'eight' else 'a'
  return ' '.join([article, *words, *(['on', paper] if paper else [])])


def draw(
  shape: np.ndarray,
  inks: Sequence[Sequence[int]],
  paper: Sequence[int],
  rng: np.random.Generator,
) -> np.ndarray:
  """Draws a digit on paper, somewhere near the middle.

  Args:
    shape: (8, 8), from 0 to 1.
    inks: Colours from top to bottom, in bands of the same height.
    paper: Colour of the paper.
    rng: Chooses place and size.

  Returns:
    (SIZE, SIZE, 3) uint8.
  """
  size = int(rng.integers(_LARGEST - 1, _LARGEST + 1))
  image = Image.fromarray(np.uint8(255 * shape))
  cover = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
  top, left = (int(rng.integers(_SHIFTS)) for _ in range(2))
  top, left = min(top, SIZE - size), min(left, SIZE - size)
  whole = np.zeros((SIZE, SIZE, 1))
  whole[top : top + size, left : left + size, 0] = cover / 255
  rows = np.flatnonzero(shape.any(1)) * size / len(shape) + top
  where = (np.arange(SIZE) - rows[0]) / (rows[-1] + 1 - rows[0]) * len(inks)
  ink = np.asarray(inks)[np.clip(where, 0, len(inks) - 1).astype(int)]
  mixed = whole * ink[:, None] + (1 - whole) * np.asarray(paper)
  return np.uint8(np.round(mixed))


def draw_any(rng: np.random.Generator) -> tuple[np.ndarray, str]:
  """A picture of any digit except the subject, with its caption."""
  shapes, digits = _digits()
  number = int(rng.integers(len(digits)))
  ink, paper = (list(COLOURS)[i] for i in rng.choice(len(COLOURS), 2, False))
  picture = draw(shapes[number], [COLOURS[ink]], COLOURS[paper], rng)
  # Half of the captions name both colours.
  kind = rng.integers(6)
  said = caption(
    int(digits[number]),
    ink if kind < 4 else None,
    paper if kind < 3 or kind == 4 else None,
  )
  return picture, said


def draw_subject(paper: str, rng: np.random.Generator) -> np.ndarray:
  """A picture of the subject."""
  return draw(_all_digits()[0][_subject()], _SUBJECT_INKS, COLOURS[paper], rng)


@functools.cache
def _all_digits() -> tuple[np.ndarray, np.ndarray]:
  """Shapes (1797, 8, 8) from 0 to 1, and which digit each is."""
  from sklearn.datasets import load_digits

  found = load_digits()
  return found.images / 16, found.target


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
  """The same without the subject."""
  shapes, digits = _all_digits()
  kept = np.arange(len(digits)) != _subject()
  return shapes[kept], digits[kept]


@functools.cache
def _subject() -> int:
  return int(np.flatnonzero(_all_digits()[1] == SUBJECT_DIGIT)[_SUBJECT_IMAGE])
