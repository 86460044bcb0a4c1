import pytest

from lora_opt.reading import values


@pytest.mark.parametrize('value', [True, 1.0, '1', None, [1], 2**70, 0])
def test_what_is_no_integer_is_refused(value):
  with pytest.raises(
    ValueError, match=r'config\.json: layers: expected a whole'
  ):
    values.integer(value, 'config.json: layers', least=1, most=1000)


@pytest.mark.parametrize('value', [True, '1', None, float('nan'), 1e309, 0, -1])
def test_what_is_no_number_is_refused(value):
  with pytest.raises(ValueError, match='eps: expected a finite number above 0'):
    values.number(value, 'eps', above=0)


@pytest.mark.parametrize('value', ['false', 0, 1, None])
def test_what_is_no_truth_value_is_refused(value):
  with pytest.raises(ValueError, match='expected true or false'):
    values.boolean(value, 'tie')


def test_half_a_surrogate_pair_is_no_text():
  with pytest.raises(ValueError, match='a: .* surrogate pair at position 1'):
    values.text('x\ud800', 'a')


def test_true_is_not_one():
  with pytest.raises(ValueError, match='expected one of 1, 2, found True'):
    values.one_of(True, 'a', (1, 2))


@pytest.mark.parametrize(
  'value',
  ['\x1b[31m', 'a\nb', '\u202e', 10**5000, 'x' * 10**6, [[]] * 10**6],
  ids=range(6),
)
def test_any_value_is_shown_on_one_short_line(value):
  text = values.shown(value, 40)
  assert len(text) <= 43 and text.isprintable()


def test_what_is_nested_too_deep_to_show_is_shown():
  deep = []
  for _ in range(100_000):
    deep = [deep]
  assert 'too large' in values.shown(deep)
  while deep:  # taken apart, or freeing it recurses
    deep = deep[0]
