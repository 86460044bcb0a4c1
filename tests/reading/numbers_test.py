"""One reader of numbers, against a table of how they are written."""

import random
import time
from fractions import Fraction

import pytest

from lora_opt.data import extraction
from lora_opt.evaluation import metrics
from lora_opt.reading import numbers

# Text, its last number as it is spelled, and whether it is one number alone.
TABLE = [
  ('5', '5', True),
  ('1.50', '1.5', True),
  ('1.5', '1.5', True),
  ('.5', '0.5', True),
  ('.75', '0.75', True),
  ('7.0', '7', True),
  ('007', '7', True),
  ('5.', '5', True),
  ('So it is 5.', '5', False),
  ('+5', '5', True),
  ('-0', '0', True),
  ('-5', '-5', True),
  ('\u22125', '-5', True),
  ('\u20135', '-5', True),
  ('\uff0d5', '-5', True),
  ('= -5', '-5', False),
  ('**-5**', '-5', False),
  ('(-5)', '-5', False),
  ('- 5', '5', False),
  ('x = - 5', '-5', False),
  ('\\boxed{- 5}', '-5', False),
  ('2 (3 - 5)', '5', False),
  ('\u20115', '-5', True),
  ('covid\u201119', '19', False),
  ('3-5', '5', False),
  ('3\u20135', '5', False),
  ('3\u22125', '5', False),
  ('x-5', '5', False),
  ('(3)-5', '5', False),
  ('50%-60%', '60', False),
  ('well--5', '5', False),
  ('1,036', '1036', True),
  ('$1,036.00', '1036', True),
  ('-1,036.5', '-1036.5', True),
  ('1,00,000', '100000', True),
  ('1_000', '1000', True),
  ('1\u202f000', '1000', True),
  ('1\u00a0000', '1000', True),
  ('1.000.000', '1000000', True),
  ('1.000,50', '1000.5', True),
  ('1.036', '1.036', True),
  ('3,14', '14', False),
  ('1,2,3', '3', False),
  ('3, 4', '4', False),
  ('1.2.3', None, False),
  ('v1.2', '1.2', False),
  ('$5', '5', True),
  ('-$5', '-5', True),
  ('$-5', '-5', True),
  ('\\$5', '5', True),
  ('US$500', '500', False),
  ('$5-$3', '3', False),
  ('5 \u20ac', '5', True),
  ('5\u20ac', '5', True),
  ('50%', '50', True),
  ('50 %', '50', True),
  ('50\\%', '50', True),
  ('5kg', '5', False),
  ('5 m\u00b2', '5', False),
  ('1e3', '1000', True),
  ('1E+3', '1000', True),
  ('2e-3', '0.002', True),
  ('1.5\u00d710^3', '1500', True),
  ('2 \\times 10^{-3}', '0.002', True),
  ('2 * 10**3', '2000', True),
  ('1e5x', '5', False),
  ('1e999', None, False),
  ('1/2', '0.5', True),
  ('1/2.', '0.5', True),
  ('-1/3', '-1/3', True),
  ('1 1/2', '1.5', True),
  ('5 / 10', '0.5', True),
  ('\xbd', '0.5', True),
  ('-\xbd', '-0.5', True),
  ('1\xbe', '1.75', True),
  ('2 \u2153 cups', '7/3', False),
  ('1\u20442', '0.5', True),
  ('\\frac{1}{2}', '0.5', True),
  ('-\\dfrac{3}{4}', '-0.75', True),
  ('1/2/2024', '2024', False),
  ('3/0', None, False),
  ('24/7.5', '7.5', False),
  ('\uff11\uff12', '12', True),
  ('\uff11\uff0e\uff15', '1.5', True),
  ('\u0663', '3', True),
  ('9' * 300, '9' * 300, True),
  ('9' * 301, None, False),
  ('nan', None, False),
  ('inf', None, False),
  ('-Infinity', None, False),
  ('seven', None, False),
  ('.', None, False),
  ('-', None, False),
  ('', None, False),
]


@pytest.mark.parametrize(('text', 'last', 'alone'), TABLE)
def test_table(text, last, alone):
  found = numbers.last_number(text)
  assert (None if found is None else numbers.spelled(found)) == last
  assert numbers.read_number(text) == (found if alone else None)


@pytest.mark.parametrize(('text', 'last', 'alone'), TABLE)
def test_extractors_scorers_and_metrics_read_by_the_table(text, last, alone):
  assert extraction.last_number(text) == last
  if alone:
    assert extraction.after_hashes(f'#### 8\n#### {text}\nThe end') == last
  score = extraction.same_number('right')
  right = last if alone else '8'
  assert score(text, {'right': right}) == float(alone)
  row = {'reference': 'it is ' + text, 'prediction': text}
  read = metrics.pearson(written=True).read(row)
  expected = -1.0 if last is None else float(Fraction(last))
  assert read == pytest.approx((expected, expected))


def test_any_decimal_reads_as_itself():
  rng = random.Random(0)
  for _ in range(2000):
    wanted = Fraction(rng.randrange(-(10**12), 10**12), 10 ** rng.randrange(9))
    spelled = numbers.spelled(wanted)
    assert Fraction(spelled) == wanted
    assert numbers.read_number(spelled) == wanted
    assert numbers.last_number(f'So x = {spelled}.') == wanted
    grouped = f'{abs(int(wanted)):,}'
    assert numbers.read_number(grouped) == abs(int(wanted))
    floating = repr(float(wanted))
    assert float(numbers.read_number(floating)) == float(wanted)


def test_any_text_is_read_quickly():
  rng = random.Random(1)
  pieces = '1 9 . , _ - + / e E % $ ( ) { } x 10^ \\frac{ 1} \u202f \u2212 # a'
  for _ in range(60):
    some = [rng.choice(pieces.split(' ')) for _ in range(rng.randrange(1, 6))]
    text = ''.join(some) * 8_000
    start = time.process_time()
    numbers.last_number(text)
    numbers.read_number(text)
    extraction.after_hashes('#### ' + text)
    assert time.process_time() - start < 1, some
