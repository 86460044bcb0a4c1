"""READMEs of experiments say their results."""

import importlib
import re

import pytest

from experiments import evidence, results

NAMES = (
  'ablation', 'decoding', 'feature_learning', 'growth', 'invariance',
  'learning_rate_transfer', 'matrix_factorization', 'overhead', 'scoring',
  'small_lm', 'startup', 'training_step',
)  # fmt: skip


@pytest.mark.parametrize('name', NAMES)
def test_tables_are_those_of_the_results(name):
  """No table is typed by hand, and every picture is shown."""
  report = importlib.import_module(f'experiments.{name}.report')
  text = (report.FOLDER / 'README.md').read_text(encoding='utf-8')
  made = report.sections(report.FOLDER)
  assert made
  for name, section in made.items():
    assert results.with_section(text, name, section) == text
  shown = set(re.findall(r'\]\((\w+\.png)\)', text))
  assert shown == {path.name for path in report.FOLDER.glob('*.png')}


def test_the_page_of_evidence_says_the_results():
  page = evidence.PAGE.read_text(encoding='utf-8')
  assert results.with_section(page, 'all', evidence.table()) == page
