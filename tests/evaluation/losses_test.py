"""Scores that are losses: less is better, in every table and ranking."""

import json

import numpy as np
import pytest

from lora_opt.evaluation import metrics, results
from lora_opt.evaluation.comparison import compare, format_table, score_interval
from lora_opt.evaluation.report import write_report
from lora_opt.evaluation.study import page, ranking, row_checks, words
from lora_opt.evaluation.study import rows as study_rows
from tests.evaluation.made_up_study import make_study

NAME = 'validation_loss'


def as_losses(found):
  """Rows whose score is one less what it was, and a loss."""
  for row in found:
    loss = 1 - row['score']
    row |= {'metric': NAME, 'score': loss, 'loss': loss}
    row |= {'halves': [{NAME: loss}] * 2, metrics.LOWER: True}
    row['interval'] = [loss - 0.1, loss + 0.1]
  return found


@pytest.fixture
def study():
  return as_losses(make_study({'adamw': 0.7, 'lora_rite': 0.74}))


def test_the_least_loss_is_the_best(study):
  ranked = ranking.rank(study)
  assert ranked.lower_is_better
  assert [place.method for place in ranked.places] == ['lora_rite', 'adamw']
  assert {found['adamw'].learning_rate for found in ranked.chosen.values()} == {
    1e-3
  }
  behind = ranked.places[1].behind
  assert behind.mean == pytest.approx(0.04, abs=0.006)
  unit = words.unit(ranked)
  best = ranked.places[0].score
  assert unit.score(best.mean) == f'{-best.mean:.4f}'
  low, high = unit.span(best).split(' to ')
  assert 0.2 < float(low) < -best.mean < float(high) < 0.3
  said = ' '.join(words.sentences(ranked, {}))
  assert 'lora_rite has the lowest mean loss, 0.2' in said
  assert 'Over adamw the best one gains 0.0' in said
  assert 'points' not in said


def test_the_page_of_a_study_says_that_less_is_better(tmp_path, study):
  path = tmp_path / study_rows.ROWS_FILE
  path.write_text(''.join(json.dumps(row) + '\n' for row in study))
  text = page.write_study_report(tmp_path).read_text()
  assert 'Mean loss' in text
  assert 'The less, the better.' in text
  assert '100 is a perfect score' not in text
  assert '<h2>Loss against learning rate</h2>' in text


def test_losses_and_scores_are_not_ranked_together(study):
  with pytest.raises(ValueError, match='make a study of each kind'):
    ranking.rank([*study, *make_study({'reflora': 0.5})])
  study[0][metrics.LOWER] = 'yes'
  with pytest.raises(ValueError, match='lower_is_better: expected true'):
    row_checks.check(study, 'results.jsonl')


def evaluation(losses):
  losses = np.asarray(losses, float)
  rows = [{'score': float(x), 'prompt': 'a', 'reference': 'b'} for x in losses]
  metric = metrics.mean_score(NAME, lower_is_better=True)
  scores = metrics.score_all([metric], rows)
  return {
    'step': 0,
    'task': 'sks',
    'metric': NAME,
    **scores[NAME],
    'metrics': scores,
    'loss': scores[NAME]['score'],
    'num_examples': len(rows),
    'predictions': rows,
  }


def test_the_interval_of_a_change_is_paired():
  rng = np.random.default_rng(0)
  before = rng.uniform(0, 1, 100)
  after = before - 0.05 + 0.01 * rng.standard_normal(100)
  rows = compare(evaluation(before), evaluation(after))
  assert [row.name for row in rows] == [
    'Validation loss',
    '95 % interval',
    'Examples',
  ]
  assert rows[0].change == f'\N{MINUS SIGN}{before.mean() - after.mean():.4f}'
  low, high = (
    float(end.replace('\N{MINUS SIGN}', '-'))
    for end in rows[1].change.split(' to ')
  )
  # Losses differ by tenths and their changes by hundredths.
  assert -0.053 < low < high < -0.047
  assert '%' not in format_table(evaluation(before), evaluation(after)).replace(
    '95 % interval', ''
  )


def test_a_loss_without_an_interval_has_none_of_shares():
  found = {metrics.LOWER: True, 'score': 1.5, 'num_examples': 4}
  assert score_interval(found) == (1.5, 1.5, 1.5)


def test_tables_of_results_have_losses_as_they_are():
  (row,) = results.table([evaluation([0.25, 0.75])])
  assert row == ('sks', NAME, '0.5000', '0.2500 to 0.7500', '2')


def test_a_report_shows_no_right_and_wrong(tmp_path):
  for moment, losses in (('before', [0.5, 0.7]), ('after', [0.4, 0.5])):
    path = tmp_path / f'evaluation/{moment}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(evaluation(losses)))
  text = write_report(tmp_path).read_text()
  assert 'Validation loss' in text
  assert 'class="tracks"' not in text
  assert '<h2>Examples</h2>' not in text


def test_damaged_pictures_are_left_out_and_named(tmp_path, capsys):
  folder = tmp_path / 'evaluation/pictures'
  folder.mkdir(parents=True)
  (folder / 'step_000001.json').write_text('{"step": 1}')
  entry = {'prompt': '<b>', 'file': 'step_000002_0.png'}
  text = json.dumps({'step': 2, 'pictures': [entry]})
  (folder / 'step_000002.json').write_text(text)
  (folder / 'step_000002_0.png').write_bytes(b'none')
  page = write_report(tmp_path).read_text()
  said = capsys.readouterr().err
  assert 'step_000001.json: pictures' in said
  assert 'step_000002_0.png: no picture that can be read' in said
  assert '<b>' not in page
