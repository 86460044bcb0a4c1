"""Patterns of strangers mean what they do in Python, within a limit."""

import re

import pytest

from lora_opt.reading import name_patterns

TEXTS = ['model.layers.0.q_proj', 'layers.12.v_proj', 'lm_head', '', 'é']


@pytest.mark.parametrize(
  'pattern', ['q_proj', '.*', r'.*\.(q|v)_proj', '(?i)LM_HEAD', '[^.]*', '']
)
@pytest.mark.parametrize('how', ['match', 'fullmatch'])
def test_as_python_finds(pattern, how):
  found = name_patterns.find(pattern, TEXTS, 'a.json', how=how)
  test = getattr(re, how)
  assert [m is not None for m in found] == [
    test(pattern, text) is not None for text in TEXTS
  ]


def test_the_group_idx_is_returned():
  within = r'(?:^|.*?\.){}\.(?P<idx>\d+)\.'
  found = name_patterns.find(
    'layers', TEXTS, 'a.json', within=within, how='match'
  )
  assert found == ['0', '12', None, None, None]


@pytest.mark.parametrize(
  ('pattern', 'message'),
  [
    ('(', r"a.json: '\(' is not a regular expression: missing \)"),
    (
      '(?P<idx>a)(?P<idx>b)',
      'is not a regular expression: redefinition of group',
    ),
    ('x' * 2_000_000, 'or 1000000 characters of them'),
    ('(a|a)*b', 'took more than 3 seconds'),
    ('(?:a{1000}){1000}{1000}', 'a.json: .* (regular expression|ended with)'),
  ],
)
def test_what_cannot_be_tried_is_named(pattern, message):
  with pytest.raises(ValueError, match=message):
    name_patterns.find(pattern, ['a' * 60], 'a.json')
  assert name_patterns.find('.*', ['a'], 'a.json') == ['']  # the process is new
