"""Scores of an evaluation, against a slow and simple one."""

import dataclasses
import json

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt.data.tasks import Generation, MultipleChoice
from lora_opt.devices.partitioning import Partitioner
from lora_opt.evaluation import run
from lora_opt.evaluation.evaluate import Evaluator
from lora_opt.models import random_model
from lora_opt.run_folder.checkpoint_files import read_trainable
from lora_opt.training.checkpointing import Checkpoints
from lora_opt.training.train_state import TrainState

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


def test_choices_have_the_likelihood_of_separate_rows(model, placement, lora):
  evaluate = Evaluator(model, CHOICES, placement, batch_size=2)
  result = evaluate(model.base, lora)
  fields = ('choice', 'choice_per_token', 'choice_per_byte')
  right, hits = [], []
  for example, prediction in zip(
    CHOICES.examples('eval'), result['predictions'], strict=True
  ):
    prompt, choices = CHOICES.encode_choices(example, model.tokenizer)
    each = [log_likelihoods(model, lora, prompt, ids) for ids in choices]
    sums = np.array([x.sum() for x in each])
    # Float32 sums of some twenty terms near 5, rounded to 5 digits.
    np.testing.assert_allclose(prediction['log_likelihoods'], sums, atol=5e-4)
    assert prediction['tokens'] == [len(ids) for ids in choices]
    sizes = [1], prediction['tokens'], [len(text) for text in example.choices]
    best = [int(np.argmax(sums / np.array(size))) for size in sizes]
    assert [prediction[field] for field in fields] == best
    assert prediction['prediction'] == example.choices[best[0]]
    right.extend(each[example.answer])
    hits.append(np.equal(best, example.answer))
  assert result['loss'] == pytest.approx(-np.mean(right), rel=1e-5)
  names = ('accuracy', 'accuracy_per_token', 'accuracy_per_byte')
  found = {name: result['metrics'][name]['score'] for name in names}
  assert found == dict(zip(names, np.mean(hits, axis=0), strict=True))
  assert result['score'] == found[result['metric']] == found['accuracy']


@pytest.mark.parametrize('length', [64, 5])  # rows grow: none is left out
def test_generation_has_the_loss_of_separate_rows(
  model, placement, lora, length
):
  evaluate = Evaluator(
    model, WRITING, placement, max_new_tokens=4, length=length
  )
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


@pytest.mark.parametrize('task', [CHOICES, WRITING], ids=['choose', 'write'])
def test_what_a_table_of_positions_has_no_row_for_is_refused(task):
  short = random_model(num_layers=1, max_length=12, learned_positions=True)
  evaluate = Evaluator(
    short, task, Partitioner().place(short), max_new_tokens=8
  )
  with pytest.raises(ValueError, match=r'needs \d+ positions, .* has 12'):
    evaluate(short.base, None)


def test_examples_of_train_are_reported_apart(model, placement):
  task = dataclasses.replace(CHOICES, train=CHOICES.eval[:1])
  result = Evaluator(model, task, placement, batch_size=2)(model.base, None)
  assert result['overlap']['num_examples'] == 1
  scores = [float(p['score']) for p in result['predictions'][1:]]
  rest = result['overlap']['metrics']['accuracy']
  assert rest['score'] == np.mean(scores)
  # What cannot be read of train costs no evaluation.
  broken = dataclasses.replace(CHOICES, train=[CHOICES.eval[0] | {'answer': 9}])
  plain = Evaluator(model, broken, placement, batch_size=2)(model.base, None)
  assert 'overlap' not in plain
  scores = [float(p['score']) for p in plain['predictions']]
  halves = [half['accuracy'] for half in plain['halves']]
  assert halves == [np.mean(scores[::2]), np.mean(scores[1::2])]


def saved_run(folder, model, lora):
  """A run's folder with one adapter, exported and as a checkpoint."""
  model.export(folder / 'adapter', lora)
  state = TrainState(jnp.zeros((), jnp.int32), lora, {'moment': jnp.ones(3)})
  batches = iter(grain.MapDataset.range(3).to_iter_dataset())
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(state, batches)
  return folder / 'checkpoints' / 'step_0'


def test_run_modes_take_an_adapter_a_checkpoint_or_nothing(
  tmp_path, model, lora, capsys
):
  checkpoint = saved_run(tmp_path, model, lora)

  def loss(**settings):
    folder = run.score(tmp_path, model, [CHOICES], **settings)
    return json.loads((folder / 'choices.json').read_text())['loss']

  adapted = loss()
  assert loss(adapter=str(checkpoint)) == adapted
  assert loss(adapter='none') != pytest.approx(adapted, rel=1e-3)
  printed = capsys.readouterr().out
  assert 'choices  accuracy' in printed and '95 % interval' in printed
  lines = (tmp_path / 'evaluation/scores/choices.jsonl').read_text()
  assert len(lines.splitlines()) == 3
  assert 'accuracy_per_byte' in (tmp_path / 'report.html').read_text()


def test_infer_writes_a_line_for_each_prompt(tmp_path, model):
  folder = run.infer(tmp_path, model, [WRITING], adapter='none')
  lines = (folder / 'writing.jsonl').read_text().splitlines()
  assert [json.loads(line)['reference'] for line in lines] == [
    'yes', 'no', 'maybe',
  ]  # fmt: skip


def test_a_missing_adapter_is_named(tmp_path, model):
  with pytest.raises(FileNotFoundError, match='adapter'):
    run.score(tmp_path, model, CHOICES)


def test_a_checkpoint_of_another_model_is_refused(tmp_path, model, lora):
  checkpoint = saved_run(tmp_path, model, lora)
  longer = {'more': lora['layers'], **lora}
  with pytest.raises(ValueError, match='has no more/attention'):
    read_trainable(checkpoint, longer)
  wider = jax.tree.map(lambda x: jnp.concatenate([x, x]), lora)
  with pytest.raises(ValueError, match='attention/k/lora_a has shape'):
    read_trainable(checkpoint, wider)
