"""What a model writes, on its way through extractors, scorers and metrics.

Data sets of reasoning_gym have a test of their own.
"""

import json
import math

import pytest

from lora_opt.data import extraction
from lora_opt.data.tasks import Completion, Generation
from lora_opt.evaluation import metrics, results, run
from lora_opt.evaluation.report import write_report
from lora_opt.evaluation.study import rows as study_rows
from lora_opt.reading import patterns
from lora_opt.reading.values import printable
from lora_opt.run_folder import run_directory
from tests import payloads

RIGHT = 'The answer is 42'
EXTRACTORS = {
  'gsm8k': extraction.gsm8k,
  'llm_adapters': extraction.llm_adapters,
  'after_hashes': extraction.after_hashes,
  'last_number': extraction.last_number,
  'first_match': extraction.first_match(r'(?:answer|option)[1-5]'),
  'pattern': r'answer is \(?([A-E])\b',
  'nested': r'((a+)+|(\s+)*x)+!',
  'whole': None,
}
METRICS = [
  metrics.exact_match(),
  metrics.exact_match(loose=False),
  metrics.rouge_l(),
  metrics.rouge_l(stem=False),
  metrics.pearson(written=True),
  metrics.mean_score(),
]


def generation(**settings):
  rows = [{'question': 'q', 'answer': RIGHT, 'final': '42'}]
  return Generation(name='t', train=rows, eval=rows, chat=False, **settings)


@pytest.mark.parametrize('name', EXTRACTORS)
@pytest.mark.parametrize('scorer', [None, extraction.same_number('final')])
def test_extractors_and_scorers(name, scorer, tmp_path):
  task = generation(extract=EXTRACTORS[name], scorer=scorer, answer='final')
  example = task.examples('eval')[0]
  task.score(example, 'warm')
  for text, score in payloads.judged(
    lambda text: task.score(example, text), tmp_path / 'marker'
  ):
    assert score in (0, 1), text[:60]


@pytest.mark.parametrize(
  'name', ['gsm8k', 'llm_adapters', 'after_hashes', 'last_number']
)
def test_extractors_of_texts_of_any_length(name, tmp_path):
  for _, found in payloads.judged(EXTRACTORS[name], tmp_path / 'marker'):
    assert found is None or isinstance(found, str)


def test_other_tasks(tmp_path):
  rows = [{'question': 'q', 'answer': 'a'}]
  task = Completion(name='t', train=rows, eval=rows)
  example = task.examples('eval')[0]
  for _ in payloads.judged(
    lambda text: task.score(example, text), tmp_path / 'marker'
  ):
    pass


@pytest.mark.parametrize('metric', METRICS, ids=lambda metric: metric.name)
@pytest.mark.parametrize('reference', [RIGHT, ' '.join(map(str, range(500)))])
def test_metrics(metric, reference, tmp_path):
  row = {'reference': reference, 'score': 0.5}
  metric.read(row | {'prediction': 'warming words'})
  for text, read in payloads.judged(
    lambda text: metric.read(row | {'prediction': text}), tmp_path / 'marker'
  ):
    assert all(map(math.isfinite, read)), text[:60]


def test_a_pattern_has_a_second(caplog):
  task = generation(extract='(a+)+b', scorer=lambda text, row: 1.0)
  example = task.examples('eval')[0]
  assert task.score(example, 'so ' + 'a' * 40) == 0
  assert "'(a+)+b' was stopped" in caplog.text
  assert task.score(example, 'so aaab') == 1  # and goes on


@pytest.mark.parametrize(
  ('pattern', 'text', 'first', 'last'),
  [
    ('answer[1-5]', 'answer3, answer1 ', 'answer3', 'answer1'),
    (r'is (\w+) ', 'it is a or is b !', 'a', 'b'),
    ('answer( 3)?', 'the answer', None, None),
    ('x', 'y', None, None),
    ('.*', '', '', ''),
    ('\ud800', 'a\ud800', '\ud800', '\ud800'),
  ],
)
def test_what_patterns_find(pattern, text, first, last):
  assert patterns.find(pattern, text) == first
  assert patterns.find(pattern, text, last=True) == last


@pytest.mark.parametrize('pattern', ['(', '(?P<a>', '[', 'a{2,1}', '(' * 5000])
def test_what_is_no_pattern_is_refused_when_the_task_is_made(pattern):
  with pytest.raises(ValueError, match=r"task 't': extract=.*not a regular"):
    generation(extract=pattern)
  with pytest.raises(ValueError, match=r'first_match\.pattern=.*not a regular'):
    extraction.first_match(pattern)


def test_reports_show_any_text(tmp_path):
  marker = tmp_path / 'marker'
  texts = [text for text in payloads.payloads(marker) if len(text) < 10_000]
  predictions = [
    {'prompt': text, 'reference': text, 'prediction': text, 'score': 0.0}
    for text in texts
  ]
  score = {'score': 0.0, 'interval': [0.0, 0.0]}
  result = {
    'task': 't',
    'metric': 'score',
    **score,
    'metrics': {'score': score},
    'num_examples': len(texts),
    'predictions': predictions,
  }
  results.write_result(tmp_path, result)
  lines = (tmp_path / results.FOLDER / 't.jsonl').read_text(encoding='utf-8')
  written = [json.loads(line)['prediction'] for line in lines.split('\n')[:-1]]
  whole = [text.encode('utf-16', 'surrogatepass') for text in texts]
  assert written == [text.decode('utf-16', 'replace') for text in whole]
  for name in ('before', 'after'):
    run_directory.write_json(tmp_path / f'evaluation/{name}.json', result)
  write_report(tmp_path)
  assert not marker.exists()


def test_settings_of_a_study_are_read_and_not_executed(tmp_path):
  for _ in payloads.judged(study_rows._value, tmp_path / 'marker'):
    pass
  for text, value in (
    ('16', 16),
    ('2e-4', 2e-4),
    ("'x'", 'x'),
    ('None', None),
    ('@lora_opt.adamw()', '@lora_opt.adamw()'),
    (None, None),
  ):
    assert study_rows._value(text) == value


def test_a_terminal_is_not_controlled(tmp_path, capsys):
  hostile = 'a\x1b[2J\x1b]0;title\x07\r\x9b1m\u202eb\u2066\x00\n\tc'

  class Fake:
    def generate(self, base, lora):
      row = {'prompt': hostile, 'prediction': hostile, 'score': 0.0}
      return [row | {'reference': 'r'}]

  task = generation()
  from lora_opt.models import random_model

  model = random_model(num_layers=1, remat='none')
  run.infer(tmp_path, model, task, adapter='none', evaluator=lambda *_: Fake())
  out = capsys.readouterr().out
  assert printable(hostile) in out
  assert all(c in '\n\t' or c.isprintable() for c in out)
