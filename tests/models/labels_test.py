"""Labels are told by their names: order, contradictions, what is written."""

import json

import jax
import numpy as np
import optax
import pytest
from absl import logging
from safetensors.numpy import load_file, save_file

import lora_opt
from lora_opt.data import hub, tasks
from lora_opt.evaluation import run
from lora_opt.evaluation.classify import named_for
from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.huggingface import from_folder
from lora_opt.models.random_encoder import random_encoder
from lora_opt.reading.label_order import order_of
from lora_opt.training.loop import train
from tests.models.parity import material

pytestmark = pytest.mark.usefixtures('fast_compile')

MNLI = ('entailment', 'neutral', 'contradiction')
WORDS = ('True', 'Neither', 'False')
REVERSED = {'0': 'CONTRADICTION', '1': 'NEUTRAL', '2': 'ENTAILMENT'}


def write(folder, **settings):
  """A BERT whose head of three is contradiction first."""
  folder.mkdir(exist_ok=True)
  _, config = material.read_golden('encoder_bert')
  material.write_folder(folder, config, outputs=3)
  change(folder, **{'id2label': REVERSED, 'label2id': None} | settings)
  return folder


def change(folder, **settings):
  file = folder / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def nli(**fields):
  rows = [
    {'text': 'abc'[i % 3] * (1 + i % 2), 'label': i % 3} for i in range(6)
  ]
  return tasks.Classification(
    **{
      'name': 'nli',
      'train': rows,
      'eval': rows,
      'prompt': '{text}',
      'texts': ('text',),
      'label_names': WORDS,
      'classes': MNLI,
    }
    | fields
  )


def load(folder, **settings):
  return from_folder(
    folder, lora=LoraConfig(rank=2), outputs=3, remat='none', **settings
  )


@pytest.fixture(name='folder', scope='module')
def _folder(tmp_path_factory):
  return write(tmp_path_factory.mktemp('bert'))


def test_a_head_in_another_order_is_put_into_that_of_the_task(folder):
  model = load(folder)
  assert model.labels == tuple(REVERSED.values())
  named = named_for(model, nli())
  assert named.labels == MNLI
  stored = load_file(folder / 'model.safetensors')
  kernel, bias = stored['classifier.weight'].T, stored['classifier.bias']
  np.testing.assert_array_equal(named.head['out']['kernel'], kernel[:, ::-1])
  np.testing.assert_array_equal(named.head['out']['bias'], bias[::-1])


@pytest.mark.parametrize('words', [WORDS, ('yes', 'maybe', 'no')])
def test_the_words_of_a_prompt_are_no_other_labels(folder, words):
  named = named_for(load(folder), nli(label_names=words))
  assert named.labels == MNLI
  model = load(folder)
  words = ('entailment', 'neutral', 'contradiction')
  assert named_for(model, nli(label_names=words, classes=None)).labels == words


def test_other_labels_are_refused_with_both_lists(folder):
  task = nli(classes=('low', 'middle', 'high'))
  message = r"'CONTRADICTION', 'NEUTRAL.*, the task \['low', 'middle', 'high'\]"
  with pytest.raises(ValueError, match=message):
    named_for(load(folder), task)
  model = load(folder, new_head=True)
  assert model.head.keys() == {'dense'} and model.labels == ()
  assert named_for(model, task).labels == ('low', 'middle', 'high')


def test_numbers_are_taken_by_their_place_and_it_is_said(tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *a: said.append(text % a)
  )
  write(tmp_path, id2label={str(i): f'LABEL_{i}' for i in range(3)})
  model = load(tmp_path)
  named = named_for(model, nli())
  assert model.labels == () and named.labels == MNLI
  np.testing.assert_array_equal(
    named.head['out']['kernel'], model.head['out']['kernel']
  )
  assert 'taken to be entailment, neutral, contradiction' in said[0]


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'id2label': {'0': 'a', '1': 'b'}}, 'names 2 labels, the head has 3'),
    ({'id2label': ['a', 'b', 'c']}, 'id2label: expected an object'),
    ({'id2label': {'0': 'a', '1': 'b', '3': 'c'}}, 'labels of 0, 1, 2'),
    ({'id2label': {'0': 'a', 'x': 'b', '2': 'c'}}, "numbers of labels, .*'x'"),
    ({'id2label': {'0': 'a', '1': 2, '2': 'c'}}, 'id2label: expected a text'),
    (
      {'id2label': {'0': 'LABEL_1', '1': 'LABEL_0', '2': 'LABEL_2'}},
      'numbers the labels in another order',
    ),
    (
      {'label2id': {'CONTRADICTION': 2, 'NEUTRAL': 1, 'ENTAILMENT': 0}},
      'contradict each other',
    ),
    ({'problem_type': 'regression'}, "problem_type='regression' does not fit"),
    (
      {'problem_type': 'multi_label_classification'},
      'does not fit a head of 3',
    ),
    ({'_num_labels': 2}, '_num_labels is not 3'),
    ({'architectures': ['BertForTokenClassification']}, 'does not label whole'),
  ],
)
def test_what_contradicts_itself_is_refused(tmp_path, settings, message):
  write(tmp_path, **settings)
  with pytest.raises(ValueError, match=message) as error:
    load(tmp_path)
  assert str(tmp_path / 'config.json') in str(error.value)


def test_adapters_and_merged_folders_say_their_labels(folder, tmp_path):
  model, task = load(folder), nli()
  train(
    tmp_path,
    model,
    task,
    lora_opt.adamw(1e-2, other=optax.adam(1e-2)),
    train_steps=2,
    task_feature_lengths={'targets': 32},
    batch_size=2,
    evaluate_before=False,
    diagnostics=False,
  )
  labels = json.loads((tmp_path / 'adapter' / 'labels.json').read_text())
  assert labels == {'labels': list(MNLI)}
  # Whatever the order of the model that it is loaded onto.
  ours = named_for(model, task)
  trained, other = (m.load_adapter(tmp_path / 'adapter') for m in (ours, model))
  np.testing.assert_array_equal(
    other['head']['out']['kernel'], trained['head']['out']['kernel'][:, ::-1]
  )
  for adapter in (None, str(tmp_path / 'checkpoints/step_2')):
    merged = run.merge(tmp_path, model, adapter=adapter, source=str(folder))
    settings = json.loads((merged / 'config.json').read_text())
    assert list(settings['label2id']) == list(MNLI)
    again = from_folder(merged, outputs=3, remat='none')
    assert again.labels == MNLI
    np.testing.assert_allclose(
      again.head['out']['kernel'], trained['head']['out']['kernel'], atol=1e-6
    )
    merged.rename(tmp_path / f'merged_{adapter is None}')
  # Evaluated by names, with a task that has them in a third order.
  scores = set()
  for order in ((0, 1, 2), (2, 0, 1)):
    names = tuple(MNLI[i] for i in order)
    rows = [r | {'label': order.index(r['label'])} for r in task.eval]
    each = nli(classes=names, label_names=names, train=rows, eval=rows)
    place = run.score(tmp_path, model, each)
    result = json.loads((place / 'nli.json').read_text())
    scores.add(round(result['loss'], 5))
  assert len(scores) == 1


def test_an_adapter_for_other_labels_is_refused(folder, tmp_path):
  model = load(folder)
  model.export(tmp_path, model.init(jax.random.key(0)))
  (tmp_path / 'labels.json').write_text('{"labels": ["x", "y", "z"]}')
  with pytest.raises(
    ValueError, match=r"for the labels \['x', 'y', 'z'\], not"
  ):
    named_for(model, nli()).load_adapter(tmp_path)
  (tmp_path / 'labels.json').write_text('{"labels": 3}')
  with pytest.raises(ValueError, match=r'labels\.json: labels: expected a'):
    model.load_adapter(tmp_path)


def test_an_adapter_without_names_has_those_of_its_base(folder, tmp_path):
  model = load(folder)
  trainable = model.init(jax.random.key(0))
  model.export(tmp_path, trainable)
  (tmp_path / 'labels.json').unlink()
  loaded = named_for(model, nli()).load_adapter(tmp_path)
  np.testing.assert_array_equal(
    loaded['head']['out']['kernel'], trainable['head']['out']['kernel'][:, ::-1]
  )
  # Also what the adapter leaves to its base.
  file = tmp_path / 'adapter_model.safetensors'
  tensors = load_file(file)
  save_file({k: v for k, v in tensors.items() if 'classifier' not in k}, file)
  loaded = named_for(model, nli()).load_adapter(tmp_path)
  np.testing.assert_array_equal(
    loaded['head']['out']['kernel'], model.head['out']['kernel'][:, ::-1]
  )


def test_a_mixture_of_several_meanings_is_refused(folder):
  first = nli()
  second = nli(name='other', classes=('low', 'middle', 'high'))
  mixture = tasks.Mixture(name='both', tasks=(first, second))
  with pytest.raises(ValueError, match='have labels of their own, which one'):
    named_for(load(folder), mixture)


@pytest.mark.parametrize(
  ('theirs', 'ours', 'expected'),
  [
    (('a', 'b'), ('b', 'a'), [1, 0]),
    (
      ('Not-Equivalent', 'equivalent'),
      ('not_equivalent', 'EQUIVALENT'),
      [0, 1],
    ),
    (('a', 'A'), ('A', 'a'), [1, 0]),
    (('+', '-'), ('-', '+'), [1, 0]),
    (('a', 'b'), ('a', 'c'), None),
    (('a', 'b'), ('a', 'b', 'c'), None),
  ],
)
def test_order(theirs, ours, expected):
  assert order_of(theirs, ours) == expected


@pytest.mark.parametrize('field', ['classes', 'label_names'])
def test_classes_are_as_many_as_words(field):
  with pytest.raises(ValueError, match=r'classes=.* must name as many'):
    nli(**{field: ('a', 'b')})


def test_an_adapter_of_the_hub_has_the_labels_beside_it(tmp_path, monkeypatch):
  names = {'labels': ['no', 'yes']}
  (tmp_path / 'labels.json').write_text(json.dumps(names), encoding='utf-8')
  monkeypatch.setattr(hub, 'fetch', lambda *arguments: tmp_path)
  model = random_encoder(num_layers=1)
  assert model.read_labels('org/adapter') == ('no', 'yes')
