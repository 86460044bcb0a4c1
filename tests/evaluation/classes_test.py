"""The tables of classes in a report."""

from lora_opt.evaluation._text import NONE
from lora_opt.evaluation.classes import MOST_COLUMNS, by_class
from lora_opt.evaluation.report import write_report
from lora_opt.run_folder.run_directory import write_json

NAMES = ['ant', 'bee <b>', 'cat']


def predictions(*pairs, names=NAMES, **more):
  return {
    'predictions': [
      {
        'prompt': f'{i}.png',
        'reference': names[answer],
        'prediction': names[choice],
        'score': float(answer == choice),
        'choices': names,
        'answer': answer,
        'choice': choice,
        **more,
      }
      for i, (answer, choice) in enumerate(pairs)
    ]
  }


BEFORE = predictions((0, 1), (0, 0), (1, 1), (1, 2))
AFTER = predictions((0, 0), (0, 0), (1, 1), (1, 0))


def test_shares_and_confusions_are_those_of_the_predictions():
  found = by_class(BEFORE, AFTER)
  assert [row.before for row in found.rows] == ['50.0 %', '50.0 %', NONE]
  assert [row.after for row in found.rows] == ['100.0 %', '50.0 %', NONE]
  assert [row.precision for row in found.rows] == ['66.7 %', '100.0 %', NONE]
  counts = [[cell.count for cell in cells] for _, cells in found.confusions]
  assert counts == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
  assert found.confusions[1][1][0].share == 0.5
  assert found.when == 'after training'
  assert by_class(BEFORE, {}).when == 'before training'


def test_what_has_no_classes_has_no_table():
  assert by_class({}, {}) is None
  other = predictions((0, 1), names=['x', 'y'])
  assert by_class(BEFORE, other) is None
  mixed = {'predictions': BEFORE['predictions'] + other['predictions']}
  assert by_class({}, mixed) is None
  assert by_class({}, {'predictions': [{'choices': NAMES}]}) is None
  many = [str(i) for i in range(MOST_COLUMNS + 1)]
  found = by_class({}, predictions((0, 1), names=many))
  assert len(found.rows) == MOST_COLUMNS + 1 and not found.confusions


def test_the_report_has_tables_and_pictures_and_no_foreign_markup(tmp_path):
  (tmp_path / 'evaluation').mkdir()
  good = 'data:image/png;base64,iVBORw0KGgo='
  write_json(
    tmp_path / 'evaluation/before.json', predictions((0, 1), picture=good)
  )
  write_json(
    tmp_path / 'evaluation/after.json',
    predictions((0, 0), (1, 0), picture='" onerror="alert(1)'),
  )
  page = write_report(tmp_path).read_text()
  assert '<h2>Classes</h2>' in page and 'class="confusions"' in page
  assert '1 of bee &lt;b&gt; said to be ant' in page
  assert f'<img src="{good}" alt="0.png">' in page
  assert page.count('<img') == 1 and 'onerror' not in page
