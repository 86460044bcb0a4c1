import json
import re
import subprocess
import sys

import pytest

from lora_opt.evaluation import comparison, report
from tests.evaluation.balanced import Balanced

EVIL = '<script>alert("x")</script> & \'quoted\''


def evaluation(step, score, answers, **more):
  predictions = [
    {
      'prompt': f'What is {i} + {i}?',
      'reference': str(2 * i),
      'prediction': answer,
      'score': float(answer == str(2 * i)),
    }
    for i, answer in enumerate(answers)
  ]
  return {
    'step': step,
    'task': 'addition',
    'metric': 'exact_match',
    'loss': 2.0 - score,
    'score': score,
    'interval': [max(score - 0.2, 0.0), min(score + 0.2, 1.0)],
    'num_examples': len(answers),
    'predictions': predictions,
  } | more


BEFORE = evaluation(0, 0.5, ['0', '2', 'five', 'six'])
AFTER = evaluation(60, 0.5, ['0', 'two', '4', 'seven'])
RUN = {
  'command': 'python -m lora_opt.main --gin.MODEL_DIR="\'runs/a\'"',
  'model': 'tiny',
  'task': 'addition',
  'optimizer': 'lora_rite',
  'started': '2026-01-02T03:04:05Z',
  'seconds': 3723.0,
  'steps': 60,
  'devices': '1 x cpu',
  'versions': {'jax': '0.10.2'},
  'trainable_parameters': 10_000,
  'frozen_parameters': 990_000,
  'peak_memory_bytes': 3 * 2**30,
  'adapter': 'runs/a/adapter',
}


@pytest.fixture
def model_dir(tmp_path):
  rows = [
    {
      'step': step,
      'time': 1e9 + step,
      'split': 'train',
      'loss': 1.0 / step,
      'learning_rate': 1e-4,
      'grad_norm': 1.0,
      'non_padding_fraction': 0.75,
      'timing/tokens_per_second': 2000.0,
      'timing/target_tokens_per_second': 500.0,
      'timing/steps_per_second': 2.0,
    }
    for step in range(1, 61)
  ]
  rows.append({'step': 30, 'time': 1e9, 'split': 'eval', 'exact_match': 0.4})
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (tmp_path / 'metrics.jsonl').write_text(text + '{"step": 61, "los')
  (tmp_path / 'evaluation').mkdir()
  write(tmp_path / 'evaluation' / 'before.json', BEFORE)
  write(tmp_path / 'evaluation' / 'after.json', AFTER)
  write(tmp_path / 'run.json', RUN)
  (tmp_path / 'operative_config.gin').write_text('TRAIN_STEPS = 60\n')
  return tmp_path


def write(path, value):
  path.write_text(json.dumps(value))


def page(model_dir):
  path = report.write_report(model_dir)
  assert path == model_dir / 'report.html'
  text = path.read_text(encoding='utf-8')
  Balanced().check(text)
  return text


def headings(text):
  return re.findall(r'<h2>(.*?)</h2>', text)


def test_everything_is_there(model_dir):
  text = page(model_dir)
  assert headings(text) == [
    'Before and after',
    'Curves',
    'Examples',
    'Run',
    'Command',
    'Configuration',
  ]
  assert '<h1>addition</h1>' in text
  assert re.findall(r'<figcaption>(.*?) <span', text) == [
    'Loss',
    'Exact match',
    'Learning rate',
    'Gradient norm',
    'Tokens per second',
  ]
  assert re.findall(r'<h3>(.*?) <small>(\d+)</small>', text) == [
    ('Became right', '1'),
    ('Became wrong', '1'),
    ('Right both times', '1'),
    ('Wrong both times', '1'),
  ]
  facts = dict(re.findall(r'<dt>(.*?)</dt><dd>(.*?)</dd>', text))
  assert facts['Time'] == '1 h 2 min'
  assert facts['Tokens'] == 'about 60k'
  assert facts['Target tokens'] == 'about 15k'
  assert facts['Not padding'] == '75.0 %'
  assert facts['Trainable parameters'] == '10,000 (1 % of all)'
  assert facts['Peak memory'] == '3.00 GiB'
  assert 'TRAIN_STEPS = 60' in text


def test_needs_nothing_from_outside(model_dir):
  text = page(model_dir)
  assert not re.search(r'(src|href)="(?!#)', text)
  assert not re.search(r'url\((?!#)|@import|<script|<link', text)
  ids = re.findall(r'\bid="([^"]+)"', text)
  assert len(ids) == len(set(ids))


def test_same_input_same_page(model_dir):
  assert page(model_dir) == page(model_dir)


@pytest.mark.parametrize(
  ('gone', 'heading'),
  [
    ('metrics.jsonl', 'Curves'),
    ('run.json', 'Command'),
    ('operative_config.gin', 'Configuration'),
  ],
)
def test_without_one_part(model_dir, gone, heading):
  assert heading in headings(page(model_dir))
  (model_dir / gone).unlink()
  assert heading not in headings(page(model_dir))


@pytest.mark.parametrize('gone', ['before', 'after'])
def test_with_one_evaluation(model_dir, gone):
  (model_dir / 'evaluation' / f'{gone}.json').unlink()
  text = page(model_dir)
  kinds = re.findall(r'<h3>(.*?) <small>(\d+)</small>', text)
  assert kinds == [('Right', '2'), ('Wrong', '2')]
  assert 'points' not in text


def test_of_an_empty_folder(tmp_path):
  text = page(tmp_path)
  assert f'<h1>{tmp_path.name}</h1>' in text
  assert 'no results yet' in text and headings(text) == []


def test_of_no_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere: no such folder'):
    report.write_report(tmp_path / 'nowhere')


@pytest.mark.parametrize('content', ['', '{"loss": 1.', '[1, 2]', 'null'])
def test_broken_json_counts_as_missing(model_dir, content):
  (model_dir / 'run.json').write_text(content)
  (model_dir / 'evaluation' / 'before.json').write_text(content)
  assert 'Before and after' in headings(page(model_dir))


def test_almost_empty_evaluations(model_dir):
  write(model_dir / 'evaluation' / 'before.json', {'predictions': [{}]})
  write(model_dir / 'evaluation' / 'after.json', {'score': None, 'loss': None})
  write(model_dir / 'run.json', {'steps': None, 'versions': None})
  (model_dir / 'metrics.jsonl').write_text('{"step": 1, "split": "train"}\n')
  assert headings(page(model_dir)) == ['Examples', 'Run', 'Configuration']


def test_everything_is_escaped(model_dir):
  predictions = [
    {
      'prompt': EVIL,
      'reference': EVIL + '2',
      'prediction': EVIL,
      'score': 0.5,
      'choices': [EVIL + '3'],
    }
  ]
  for name in ('before', 'after'):
    write(
      model_dir / 'evaluation' / f'{name}.json',
      AFTER | {'metric': EVIL, 'task': EVIL, 'predictions': predictions},
    )
  write(model_dir / 'run.json', dict.fromkeys(RUN, EVIL) | {'versions': EVIL})
  (model_dir / 'operative_config.gin').write_text(EVIL)
  text = page(model_dir)
  assert '<script' not in text
  assert '&lt;script&gt;alert(&#34;x&#34;)' in text
  assert '0.50' in text  # part of the score: neither right nor wrong


def test_a_loss_that_is_not_finite_is_reported(model_dir):
  with (model_dir / 'metrics.jsonl').open('w') as file:
    for step, loss in enumerate((1.0, 0.5, None, None)):
      row = {'step': step, 'split': 'train', 'loss': loss}
      file.write(json.dumps(row) + '\n')
  text = ' '.join(page(model_dir).split())
  assert 'not finite at 2 of the logged steps, first at step 2.' in text


def test_a_long_text_is_cut(model_dir):
  write(
    model_dir / 'evaluation' / 'after.json',
    AFTER | {'predictions': [{'prompt': 'y' * 5000}]},
  )
  assert 'y' * 1500 + ' … (3,500 more characters)' in page(model_dir)


def test_format_table():
  assert report.format_table(None, {}) == ''
  after = AFTER | {'score': 0.75, 'interval': [0.5, 0.8], 'loss': 1.25}
  assert report.format_table(BEFORE, after).replace('\N{MINUS SIGN}', '-') == (
    '                     Before         After         Change\n'
    'Loss                 1.5000        1.2500        -0.2500\n'
    'Exact match          50.0 %        75.0 %   +25.0 points\n'
    '95 % interval  30.0 to 70.0  50.0 to 80.0  -7.0 to +45.6\n'
    'Examples                  4             4'
  )
  assert 'Change' in report.format_table(BEFORE, None)


@pytest.mark.parametrize(
  ('score', 'n', 'low', 'high'),
  [
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    (81 / 263, 263, 0.2553, 0.3662),
    (15 / 148, 148, 0.0624, 0.1605),
    (0.0, 20, 0.0, 0.1611),
    (1 / 29, 29, 0.0061, 0.1718),
  ],
)
def test_wilson_interval(score, n, low, high):
  summary = {'score': score, 'num_examples': n}
  interval = comparison.score_interval(summary)
  assert interval == pytest.approx((score, low, high), abs=5e-5)


def test_an_interval_without_width_is_replaced():
  summary = {'score': 0.0, 'num_examples': 20, 'interval': [0.0, 0.0]}
  interval = comparison.score_interval(summary)
  assert interval == pytest.approx((0.0, 0.0, 0.1611), abs=5e-5)


def test_a_correlation_without_width_has_no_interval():
  before = {'metric': 'matthews', 'score': 0.0, 'interval': [0.0, 0.0]}
  after = before | {'score': 0.4, 'interval': [0.3, 0.5]}
  score, spans = comparison.compare(
    before | {'num_examples': 64}, after | {'num_examples': 64}
  )[:2]
  assert score.change == '+40.0 points'
  assert (spans.before, spans.after) == ('\N{EN DASH}', '30.0 to 50.0')
  assert spans.change == '\N{EN DASH}'


def test_interval_of_the_change():
  # Newcombe, Statistics in Medicine 17 (1998) p. 873, method 10: 56/70, 48/80.
  sides = (
    {'score': 48 / 80, 'num_examples': 80},
    {'score': 56 / 70, 'num_examples': 70},
  )
  change = comparison._change(*map(comparison.score_interval, sides))
  assert [round(100 * x, 1) for x in change] == [20.0, 5.2, 33.4]


@pytest.mark.parametrize(
  ('before', 'after', 'said'),
  [
    ({'num_examples': 8}, {'num_examples': 3}, 'other examples'),
    (
      {'made_of': {'base weights': '1a'}},
      {'made_of': {'base weights': '2b'}},
      'other base weights',
    ),
  ],
)
def test_what_cannot_be_compared_has_no_change(before, after, said):
  before, after = ({'score': s, 'loss': 1.0} | x for s, x in
                   ((0.0, before), (1.0, after)))  # fmt: skip
  text = comparison.format_table(before, after)
  assert said in text and 'points' not in text


def test_command_line(model_dir):
  done = subprocess.run(
    [sys.executable, '-m', 'lora_opt.evaluation.report', str(model_dir)],
    capture_output=True,
    text=True,
    check=True,
    timeout=60,
  )
  assert done.stdout.strip() == str(model_dir / 'report.html')
  assert (model_dir / 'report.html').exists()
