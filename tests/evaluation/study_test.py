"""What a study's rows come to: rates, ranking, ties, words, page."""

import copy
import json
import re

import numpy as np
import pytest

from lora_opt.evaluation.study import (
  pace,
  page,
  ranking,
  row_checks,
  rows,
  words,
)
from tests import fuzzing
from tests.evaluation.balanced import Balanced
from tests.evaluation.made_up_study import make_row, make_study

MERITS = {'adamw': 0.70, 'lora_rite': 0.74, 'reflora': 0.739}


def verdicts(ranked):
  return {place.method: place.verdict for place in ranked.places}


def test_the_best_its_tie_and_what_is_behind():
  ranked = ranking.rank(make_study(MERITS))
  found = verdicts(ranked)
  assert sorted(found.values()) == ['behind', 'best', 'tied']
  assert found['adamw'] == 'behind'
  last = ranked.places[-1]
  assert last.method == 'adamw'
  assert last.behind.low < 0.04 < last.behind.high
  assert last.behind.mean == pytest.approx(0.04, abs=0.006)


def test_a_clear_winner_has_no_ties():
  ranked = ranking.rank(make_study({'adamw': 0.7, 'lora_rite': 0.9}))
  assert verdicts(ranked) == {'lora_rite': 'best', 'adamw': 'behind'}
  assert words.recommended(ranked) == 'lora_rite'


def test_the_rate_is_chosen_on_one_half_and_the_score_is_of_the_other():
  seeds = (0, 1)
  lucky = [{'accuracy': 0.6}, {'accuracy': 0.9}]
  able = [{'accuracy': 0.7}, {'accuracy': 0.5}]
  found = [make_row(rate=1e-4, seed=s, halves=lucky) for s in seeds]
  found += [make_row(rate=1e-3, seed=s, halves=able) for s in seeds]
  chosen = ranking.choose(found, seeds)
  assert chosen.learning_rate == 1e-3
  assert chosen.scores == [0.5, 0.5]
  assert chosen.at_edge


def test_a_rate_that_diverges_is_not_chosen():
  found = make_study({'adamw': 0.7, 'reflora': 0.6}, tasks=['cola'])
  gone = ('score', 'halves', 'metric', 'loss', 'interval')
  for row in found:
    if row['method'] == 'adamw' and row['learning_rate'] == 1e-3:
      for name in gone:
        row.pop(name)
      row['diverged'] = 'loss is nan at step 3'
  (best,) = ranking.rank(found).chosen.values()
  assert best['adamw'].learning_rate == 1e-4
  assert best['reflora'].learning_rate == 1e-3


def test_only_whole_blocks_count():
  found = make_study(MERITS)
  cut = [
    row
    for row in found
    if not (row['task'] == 'mrpc' and row['seed'] > 0)
    and not (row['task'] == 'cola' and row['seed'] == 2 and row['method'] > 'l')
  ]
  ranked = ranking.rank(cut)
  assert {g.task: s for g, s in ranked.seeds.items()} == {'cola': [0, 1]}
  assert [group.task for group in ranked.incomplete] == ['mrpc']
  assert 'open' not in verdicts(ranked).values()
  # From one seed in every group no interval follows.
  ranked = ranking.rank([row for row in cut if row['seed'] == 0])
  assert set(verdicts(ranked).values()) == {'best', 'open'}
  assert 'With one seed' in ' '.join(words.sentences(ranked, {}))


def test_who_diverges_on_a_whole_task_cannot_win_by_the_others():
  found = make_study({'adamw': 0.7, 'reflora': 0.9})
  for row in found:
    if row['method'] == 'reflora' and row['task'] == 'mrpc':
      for name in ('score', 'halves', 'metric', 'loss', 'interval'):
        row.pop(name)
      row['diverged'] = 'loss is nan at step 3'
  ranked = ranking.rank(found)
  assert [place.method for place in ranked.places] == ['adamw']
  assert len(ranked.chosen) == 2
  said = ' '.join(words.sentences(ranked, {}))
  assert 'reflora has no place: it diverged at every learning rate' in said
  assert 'on mrpc, rank 4.' in said


def test_the_recommended_one_is_that_of_the_most_tasks_among_the_best():
  found = [
    make_row(method, rate, seed, task, score=score + 0.001 * seed)
    for task, scores in {
      'cola': {'adamw': 0.9, 'reflora': 0.3},
      'mrpc': {'adamw': 0.5, 'reflora': 0.52},
      'rte': {'adamw': 0.5, 'reflora': 0.52},
    }.items()
    for method, score in scores.items()
    for rate in (1e-4, 1e-3)
    for seed in (0, 1, 2)
  ]
  first = words.sentences(ranking.rank(found), {})[0]
  assert first.startswith('Recommended: adamw. Of the best and those tied')
  assert first.endswith('in the most comparisons, 1 of 3.')


def test_a_single_example_is_both_halves():
  row = make_row(halves=[{'accuracy': 0.25}, {}])
  assert ranking.score(row, 0) == ranking.score(row, 1) == 0.5


def test_a_method_with_fewer_rates_makes_a_group_incomplete():
  found = [
    row
    for row in make_study(MERITS, tasks=['cola'])
    if not (row['method'] == 'reflora' and row['learning_rate'] == 1e-4)
  ]
  ranked = ranking.rank(found)
  assert [group.task for group in ranked.incomplete] == ['cola']
  assert ranked.places == []
  assert words.sentences(ranked, {})[0].startswith('Nothing can be compared')


def test_a_longer_sweep_of_one_method_leaves_the_others_whole():
  found = make_study(MERITS, tasks=['cola'])
  found += [make_row('reflora', 0.1, seed, score=0.8) for seed in (0, 1, 2)]
  assert ranking.rank(found).places == []
  ranked = ranking.rank(found, rates=3)
  assert ranked.places[0].method == 'reflora'
  assert words.recommended(ranked) == 'reflora'


def test_seeds_outside_the_sweep_count_at_the_rates_chosen():
  found = [
    row
    for row in make_study(MERITS, tasks=['cola'])
    if row['seed'] == 0 or row['learning_rate'] == 1e-3
  ]
  ranked = ranking.rank(found)
  assert list(ranked.seeds.values()) == [[0, 1, 2]]
  (chosen,) = ranked.chosen.values()
  assert all(len(method.scores) == 3 for method in chosen.values())
  # A seed at which one method is still to run does not count yet.
  ranked = ranking.rank(found[:-1])
  assert list(ranked.seeds.values()) == [[0, 1]]
  # A rate that diverges with any seed is not chosen.
  last = next(i for i, row in enumerate(found) if row['seed'] == 2)
  found[last] = make_row(found[last]['method'], 1e-3, 2, diverged='nan')
  del found[last]['score']
  (chosen,) = ranking.rank(found).chosen.values()
  assert chosen[found[last]['method']].learning_rate == 1e-4


def test_other_budgets_are_other_groups():
  found = make_study({'adamw': 0.7}, tasks=['cola'])
  longer = [r | {'budget': {'TRAIN_STEPS': '90'}} for r in found]
  titles = [group.title for group in ranking.group_rows(found + longer)]
  assert titles == [
    'cola, rank 4, TRAIN_STEPS=60',
    'cola, rank 4, TRAIN_STEPS=90',
  ]


@pytest.mark.parametrize('seed', range(4))
def test_the_interval_covers_the_truth_as_often_as_it_says(seed):
  rng = np.random.default_rng(seed)
  draws, inside = 400, 0
  for _ in range(draws):
    groups = [rng.normal(0.0, scale, 3) for scale in (1.0, 2.0, 0.5, 1.0)]
    found = ranking.mean_interval(groups)
    inside += found.low <= 0 <= found.high
  # Welch and Satterthwaite are on the careful side with three seeds.
  assert 0.93 < inside / draws <= 1


def test_pace_against_the_baseline():
  found = make_study({'adamw': 0.3, 'lora_rite': 0.9}, noise=0.0)
  paces = pace.paces(ranking.rank(found).chosen, 'adamw')
  assert paces['adamw'].steps == 1.0
  assert paces['lora_rite'].steps < 0.7
  assert paces['lora_rite'].step_seconds == 1.5
  assert paces['lora_rite'].reached == paces['lora_rite'].runs == 6


def test_who_never_gets_there_has_no_pace():
  found = make_study({'adamw': 0.9, 'reflora': 0.1}, noise=0.0)
  paces = pace.paces(ranking.rank(found).chosen, 'adamw')
  assert paces['reflora'].steps is None
  assert paces['reflora'].reached == 0


def write(folder, found):
  rows.write_lines(folder / rows.ROWS_FILE, found)


def read_page(folder):
  path = page.write_study_report(folder)
  text = path.read_text(encoding='utf-8')
  Balanced().check(text)
  return text


def test_the_page_says_it_all_and_needs_nothing(tmp_path):
  write(tmp_path, make_study(MERITS, tasks=['cola']))
  text = read_page(tmp_path)
  assert re.findall('<h2>(.*?)</h2>', text) == [
    'What follows',
    'Ranking',
    'By task',
    'Score against learning rate',
    'Training loss',
    'Time to the loss of adamw',
    'State of the factors',
    'How it was done',
  ]
  assert 'Recommended: lora_rite.' in text or 'Recommended: reflora.' in text
  assert not re.search(r'(src|href)="(?!#)|url\((?!#)|<script|<link', text)
  names = {path.name for path in (tmp_path / 'pictures').iterdir()}
  assert names == {
    *('ranking.png', 'loss.png'),
    *('sweep_cola_rank_4.png', 'pairs_cola_rank_4.png'),
  }
  assert text == read_page(tmp_path)


def test_the_least_loss_of_a_group_is_marked(tmp_path):
  found = make_study({'adamw': 0.7, 'reflora': 0.8}, tasks=['cola'], noise=0)
  for row in found:
    row['loss'] = {'adamw': 0.25, 'reflora': 0.5}[row['method']]
  write(tmp_path, found)
  text = read_page(tmp_path)
  assert '<td class="best">0.250</td>' in text
  assert '<td class="">0.500</td>' in text


def test_a_study_at_its_beginning(tmp_path):
  write(tmp_path, [make_row()])
  text = read_page(tmp_path)
  assert 'With one seed' in text
  write(tmp_path, [make_row(), make_row('reflora', task='mrpc')])
  text = read_page(tmp_path)
  assert 'Nothing can be compared yet' in text
  assert 'not yet so for cola, rank 4; mrpc, rank 4' in text


def test_runs_that_logged_nothing(tmp_path):
  found = make_study({'adamw': 0.7, 'reflora': 0.7}, tasks=['cola'])
  for row in found:
    for name in ('curve', 'diagnostics', 'step_seconds', 'pairs'):
      del row[name]
  write(tmp_path, found)
  assert '0 of 0' in read_page(tmp_path)


def test_no_results(tmp_path):
  with pytest.raises(FileNotFoundError, match='no run has ended here'):
    page.write_study_report(tmp_path)


def test_without_held_out_halves_the_page_warns(tmp_path):
  found = make_study({'adamw': 0.7}, tasks=['cola'])
  for row in found:
    del row['halves']
  write(tmp_path, found)
  assert 'nothing was held out' in read_page(tmp_path)


def test_rows_of_runs(tmp_path):
  run = tmp_path / '0000'
  (run / 'evaluation').mkdir(parents=True)
  files = {
    'settings.json': {
      'OPTIMIZER': '@lora_opt.lora_rite()',
      'lora_opt.lora_rite.clip_norm': 'None',
      'lora_opt.lora_rite.other': '@optax.adamw()',
      'PEAK_LEARNING_RATE': '0.003',
      'LORA_RANK': '4',
      'RANDOM_SEED': '2',
      'TRAIN_STEPS': '3',
    },
    'dataset.json': {'task': 'cola'},
    'run.json': {
      'model': 'tiny',
      'task': 'cola',
      'seconds': 3.21,
      'peak_memory_bytes': 5,
      'versions': {},
    },
    'evaluation/after.json': {'metric': 'f1', 'score': 0.5, 'loss': 1.0},
  }
  for name, value in files.items():
    (run / name).write_text(json.dumps(value))
  lines = [
    {'step': i, 'split': 'train', 'loss': 3.0 - i, 'lora/condition_max': 2.0,
     'timing/steps_per_second': 4.0}
    for i in (1, 2, 3)
  ]  # fmt: skip
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (run / 'metrics.jsonl').write_text(text)
  worse = tmp_path / '0001'
  worse.mkdir()
  for name in ('settings.json', 'dataset.json'):
    (worse / name).write_text((run / name).read_text())
  (worse / 'diverged.json').write_text('{"error": "loss is nan at step 1"}')
  (tmp_path / '0002').mkdir()  # not begun

  first, second = rows.collect(tmp_path)
  assert first['method'] == 'lora_rite'
  assert first['options'] == {'lora_rite.clip_norm': 'None'}
  assert (first['learning_rate'], first['rank'], first['seed']) == (0.003, 4, 2)
  assert first['curve'] == {'step': [1, 2, 3], 'loss': [2.0, 1.0, 0.0]}
  assert first['step_seconds'] == 0.25
  assert first['diagnostics'] == {'condition_max': 2.0}
  assert first['score'] == 0.5 and first['pairs'] == {}
  assert second['task'] == 'cola' and 'score' not in second
  assert second['diverged'] == 'loss is nan at step 1'
  # Rows outlive their runs.
  (run / 'run.json').unlink()
  assert rows.collect(tmp_path) == [first, second]


@pytest.mark.parametrize(
  'name',
  [
    '$x_$',
    r'$\frac{$ \mathdefault{',
    '<script>alert(1)</script>"&',
    'é 日本 😀',
    '../../etc',
    'a\x1b[2Jb\nc',
    'n' * 3000,
  ],
)
def test_names_may_be_anything(tmp_path, name):
  merits = {'adamw': 0.7, name: 0.8}
  found = make_study(merits, tasks=[name, name + ' 2'], seeds=(0, 1))
  write(tmp_path, found)
  text = read_page(tmp_path)
  assert '<script>alert' not in text
  pictures = list((tmp_path / 'pictures').iterdir())
  assert len(pictures) == 6
  assert all(picture.parent == tmp_path / 'pictures' for picture in pictures)


def test_pictures_of_tasks_whose_names_are_alike_are_all_kept(tmp_path):
  write(tmp_path, make_study(MERITS, tasks=['a b', 'a/b'], seeds=(0, 1)))
  read_page(tmp_path)
  assert {path.name for path in tmp_path.glob('pictures/sweep_*')} == {
    'sweep_a_b_rank_4.png',
    'sweep_a_b_rank_4_2.png',
  }


def test_damaged_rows_are_named_or_drawn(tmp_path):
  good = make_study({'adamw': 0.7, 'reflora': 0.8}, tasks=['cola'], seeds=(0,))
  file = tmp_path / rows.ROWS_FILE
  for _, rng in fuzzing.seeds(300):
    found = copy.deepcopy(good)
    place = rng.randrange(len(found))
    found[place] = fuzzing.changed(found[place], rng)
    fuzzing.outcome(
      lambda found=found: row_checks.check(found, file), f'{file}, line'
    )


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'learning_rate': None}, 'learning_rate: expected a finite number above'),
    ({'seed': 'x'}, 'seed: expected a whole number'),
    ({'task': 3}, 'task: expected a text'),
    ({'halves': [{}, {'accuracy': 'x'}]}, 'halves: accuracy: expected a'),
    ({'curve': {'step': [1], 'loss': []}}, 'curve: 1 steps and 0 losses'),
    ({'pairs': {'stable_rank': {'q': 3}}}, 'pairs: expected a list'),
  ],
)
def test_a_damaged_row_is_named(tmp_path, change, said):
  write(tmp_path, [make_row(), make_row(rate=1e-2, **change)])
  with pytest.raises(ValueError, match=f'results.jsonl, line 2: {said}'):
    page.write_study_report(tmp_path)
