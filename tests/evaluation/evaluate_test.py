"""Scores of an evaluation, against a slow and simple one."""

import json

import jax
import numpy as np
import pytest

from lora_opt.data.tasks import Generation, MultipleChoice
from lora_opt.evaluation import run
from lora_opt.evaluation.evaluate import Evaluator, bootstrap_interval

pytestmark = pytest.mark.usefixtures('fast_compile')

CHOICES = MultipleChoice(
  name='choices',
  train=[{'question': 'q', 'choices': ['a', 'b'], 'answer': 0}],
  eval=[
    {'question': f'Which {i}?', 'choices': ['red', 'a blue', 'x'], 'answer': i}
    for i in range(3)
  ],
  chat=False,
)
WRITING = Generation(
  name='writing',
  train=[{'question': 'q', 'answer': 'a'}],
  eval=[{'question': f'Say {w}', 'answer': w} for w in ('yes', 'no', 'maybe')],
  chat=False,
)


@pytest.fixture(scope='module')
def lora(model):
  return jax.tree.map(lambda x: x + 0.05, model.init(jax.random.key(3)))


def log_likelihoods(model, lora, prompt_ids, completion_ids):
  """Of each token of one completion, alone in its row."""
  ids = prompt_ids + completion_ids
  size = 64
  batch = {
    name: np.zeros((1, size), np.int32)
    for name in ('tokens', 'targets', 'segment_ids')
  } | {'positions': np.arange(size, dtype=np.int32)[None]}
  batch['tokens'][0, : len(ids) - 1] = ids[:-1]
  batch['targets'][0, : len(ids) - 1] = ids[1:]
  batch['segment_ids'][0, : len(ids) - 1] = 1
  losses = model.token_losses(model.base, lora, batch)[0]
  return -np.asarray(losses)[len(prompt_ids) - 1 : len(ids) - 1]


@pytest.mark.parametrize('normalize', ['sum', 'token', 'byte'])
def test_choices_have_the_likelihood_of_separate_rows(
  model, mesh, lora, normalize
):
  evaluate = Evaluator(model, CHOICES, mesh, batch_size=2, normalize=normalize)
  result = evaluate(model.base, lora)
  right = []
  for example, prediction in zip(
    CHOICES.examples('eval'), result['predictions'], strict=True
  ):
    prompt, choices = CHOICES.encode_choices(example, model.tokenizer)
    for text, ids, found in zip(
      example.choices, choices, prediction['log_likelihoods'], strict=True
    ):
      each = log_likelihoods(model, lora, prompt, ids)
      size = {'sum': 1, 'token': len(ids), 'byte': len(text)}[normalize]
      # Float32 sums of some twenty terms near 5, rounded to 5 digits.
      assert found == pytest.approx(each.sum() / size, abs=5e-4)
      if text == prediction['reference']:
        right.extend(each)
  assert result['loss'] == pytest.approx(-np.mean(right), rel=1e-5)
  hits = [p['prediction'] == p['reference'] for p in result['predictions']]
  assert result['score'] == np.mean(hits)


def test_generation_has_the_loss_of_separate_rows(model, mesh, lora):
  evaluate = Evaluator(model, WRITING, mesh, max_new_tokens=4, length=64)
  result = evaluate(model.base, lora, step=9)
  each = [
    log_likelihoods(model, lora, *WRITING.encode(example, model.tokenizer))
    for example in WRITING.examples('eval')
  ]
  assert result['loss'] == pytest.approx(-np.mean(np.concatenate(each)), 1e-5)
  assert result['step'] == 9 and result['num_examples'] == 3
  assert [p['reference'] for p in result['predictions']] == [
    'yes', 'no', 'maybe',
  ]  # fmt: skip


def test_an_unknown_normalisation_is_refused(model, mesh):
  with pytest.raises(ValueError, match='sum, token, byte'):
    Evaluator(model, CHOICES, mesh, normalize='words')


def test_the_interval_holds_the_mean_and_narrows():
  few = bootstrap_interval([0, 1] * 10)
  many = bootstrap_interval([0, 1] * 1000)
  assert few[0] < many[0] < 0.5 < many[1] < few[1]


def test_run_modes_read_an_adapter_and_write_their_results(
  tmp_path, model, lora, capsys
):
  model.export(tmp_path / 'adapter', lora)
  path = run.score(tmp_path, model, CHOICES)
  with_adapter = json.loads(path.read_text())
  bare = json.loads(
    run.score(tmp_path, model, CHOICES, adapter='none').read_text()
  )
  assert with_adapter['loss'] != bare['loss']
  assert 'accuracy' in capsys.readouterr().out

  lines = run.infer(tmp_path, model, WRITING).read_text().splitlines()
  assert [json.loads(line)['reference'] for line in lines] == [
    'yes', 'no', 'maybe',
  ]  # fmt: skip


def test_a_missing_adapter_is_named(tmp_path, model):
  with pytest.raises(FileNotFoundError, match='adapter'):
    run.score(tmp_path, model, CHOICES)
