"""Literals: what is read is what Python reads, within bounds."""

import ast
import random
import warnings

import pytest

from lora_opt.reading.literals import read_literal
from tests import payloads


def made(rng, depth):
  kind = rng.randrange(8 if depth else 5)
  if kind == 0:
    return rng.randrange(-100, 100)
  if kind == 1:
    return rng.uniform(-1, 1) * 10.0 ** rng.randrange(-20, 20)
  if kind == 2:
    return rng.choice(['a', '', "it's", '"q"', '\n\\\t', 'é'])
  if kind == 3:
    return rng.choice([None, True, False])
  if kind == 4:
    return rng.choice([(), []])
  items = [made(rng, depth - 1) for _ in range(rng.randrange(4))]
  return items if kind < 7 else tuple(items)


def damaged(text, rng):
  characters = list(text)
  for _ in range(rng.choice((1, 2))):
    place = rng.randrange(len(characters) + 1)
    if rng.random() < 0.5:
      characters.insert(place, rng.choice('[](),\'"1a .-+e_0\\\n'))
    else:
      del characters[place : place + 1]
  return ''.join(characters)


def python(text):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return ast.literal_eval(text.strip())


@pytest.mark.parametrize(
  'count', [2000, pytest.param(50_000, marks=pytest.mark.long)]
)
def test_what_is_read_is_what_python_reads(count):
  rng = random.Random(0)
  for _ in range(count):
    value = made(rng, 5)
    assert read_literal(repr(value)) == value
    text = damaged(repr(value), rng)
    try:
      found = read_literal(text)
    except ValueError:
      continue
    assert repr(found) == repr(python(text)), text


@pytest.mark.parametrize(
  'text', ['1, 2', '(1,)', '(1)', '[1, ]', "'a' , 'b'", '+1', ' 5 ', '((2))']
)
def test_tuples_need_no_brackets(text):
  assert read_literal(text) == python(text)


def test_a_line_ends_within_brackets_alone():
  assert read_literal('[1,\n2]') == [1, 2]
  for text in ('1,\n2', '(1)\n, 2', '[1,\x0b2]'):
    with pytest.raises(SyntaxError):
      python(text)
    with pytest.raises(ValueError, match='line ends|no number'):
      read_literal(text)


def test_nothing_is_executed(tmp_path):
  def read(text):
    try:
      return read_literal(text)
    except ValueError as error:
      assert len(str(error)) < 200
      return None

  for _ in payloads.judged(read, tmp_path / 'marker'):
    pass
