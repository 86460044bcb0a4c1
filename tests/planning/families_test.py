"""No family of models becomes slower on TPUs without anybody's notice."""

import pytest

from tests.planning.families import FAMILIES, measure, read_table

# The numbers repeat to the digit; what is let pass is a change of the code that
# costs or saves less than anybody would look into.
TOLERANCE = 0.1
# Between one version of the compiler and another.
OTHERWISE = 0.5
RENEW = 'python -m tests.planning.families'


def test_the_table_has_every_family():
  assert list(read_table()) == list(FAMILIES), RENEW


@pytest.mark.parametrize('family', FAMILIES)
def test_cycles_and_memory_are_those_of_the_table(family):
  pytest.importorskip('libtpu')
  found, known = measure(family), read_table()[family]
  advice = (
    f'by {found["compiler"]}; the table is by {known["compiler"]}. If the '
    f'change is meant: {RENEW} {family}'
  )
  assert found['uncounted'] == known['uncounted'], advice
  same = found['compiler'] == known['compiler']
  allowed = TOLERANCE if same else OTHERWISE
  for what in ('cycles', 'peak'):
    change = found[what] / known[what] - 1
    assert abs(change) <= allowed, f'{what} {change:+.1%} {advice}'
