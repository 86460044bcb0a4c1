"""Merged folders of encoders: weights, head, labels and what is refused."""

import json

import jax
import numpy as np
import pytest

from lora_opt.evaluation import run
from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.huggingface import from_folder
from lora_opt.models.start import pissa
from tests.models.batches import jitted, random_adapter
from tests.models.parity import encoder, material

pytestmark = pytest.mark.usefixtures('fast_compile')

CLASSES = {
  'bert': 'BertForSequenceClassification',
  'roberta': 'RobertaForSequenceClassification',
  'deberta_v3': 'DebertaV2ForSequenceClassification',
}


def numbers(name, model, trainable=None):
  batch = encoder.batch_of(encoder.CASES[name])
  return np.asarray(jitted(model, 'predict')(model.base, trainable, batch))


def settings_of(folder):
  return json.loads((folder / 'config.json').read_text(encoding='utf-8'))


@pytest.fixture
def bert(tmp_path):
  """A folder, and the model of three labels that is in it."""
  source = tmp_path / 'source'
  source.mkdir()
  _, config = material.read_golden('encoder_bert')
  return source, encoder.our_model(encoder.CASES['bert'], source, config)


@pytest.mark.parametrize('name', CLASSES)
def test_run_mode_writes_what_from_folder_reads(tmp_path, name):
  case = encoder.CASES[name]
  _, config = material.read_golden(f'encoder_{name}')
  source = tmp_path / 'source'
  source.mkdir()
  model = encoder.our_model(case, source, config)
  trainable = material.adapter(model)
  model.export(tmp_path / 'adapter', trainable)
  labels = ['a', 'b', 'c'][: case.outputs]
  folder = run.merge(tmp_path, model, source=str(source), labels=labels)
  merged = from_folder(folder, outputs=case.outputs, remat='none')
  expected = numbers(name, model, trainable)
  np.testing.assert_allclose(numbers(name, merged), expected, atol=1e-4)
  assert abs(expected - numbers(name, model)).max() > 0.02
  assert merged.config == model.config
  settings = settings_of(folder)
  assert settings['architectures'] == [CLASSES[name]]
  assert list(settings['label2id']) == labels
  kind = 'regression' if case.outputs == 1 else 'single_label_classification'
  assert settings['problem_type'] == kind


def test_labels_are_given_or_kept_or_numbered(tmp_path, bert):
  source, model = bert
  labels = ['no', 'neutral', 'yes']
  model.merge(tmp_path / 'given', None, source=source, labels=labels)
  settings = settings_of(tmp_path / 'given')
  assert settings['id2label'] == {'0': 'no', '1': 'neutral', '2': 'yes'}
  assert settings['label2id'] == {'no': 0, 'neutral': 1, 'yes': 2}
  given = from_folder(tmp_path / 'given', outputs=3, remat='none')
  given.merge(tmp_path / 'kept', None, source=tmp_path / 'given')
  assert settings_of(tmp_path / 'kept')['id2label'] == settings['id2label']
  (source / 'config.json').write_text(
    json.dumps(settings_of(source) | {'id2label': {'0': 'a', '1': 'b'}})
  )
  model.merge(tmp_path / 'numbered', None, source=source)
  settings = settings_of(tmp_path / 'numbered')
  assert list(settings['id2label'].values()) == [
    'LABEL_0',
    'LABEL_1',
    'LABEL_2',
  ]
  for wrong in (['no', 'yes'], ['no', 'no', 'yes']):
    with pytest.raises(
      ValueError, match=r'has 3 output\(s\) and needs as many'
    ):
      model.merge(tmp_path / 'wrong', None, source=source, labels=wrong)
  assert not (tmp_path / 'wrong').exists()


def test_a_start_inside_the_base_goes_back(tmp_path, bert):
  source, plain = bert
  lora = LoraConfig('.*/q', rank=2, start=pissa)
  model = from_folder(source, lora=lora, outputs=3, remat='none')
  model.merge(tmp_path / 'base', None, source=source)
  merged = from_folder(tmp_path / 'base', outputs=3, remat='none')
  expected = numbers('bert', plain)
  np.testing.assert_allclose(numbers('bert', merged), expected, atol=1e-4)
  residual = model.base['layers']['attention']['q']['kernel']
  kernel = merged.base['layers']['attention']['q']['kernel']
  assert abs(residual - kernel).max() > 0.02


def test_a_head_on_the_mean_keeps_its_pooling(tmp_path, bert):
  source, _ = bert
  (source / '1_Pooling').mkdir()
  modes = json.dumps({'pooling_mode_mean_tokens': True})
  (source / '1_Pooling' / 'config.json').write_text(modes)
  model = from_folder(source, lora=LoraConfig(rank=2), outputs=3, remat='none')
  trainable = random_adapter(model, spread=0.3)
  model.merge(tmp_path / 'merged', trainable, source=source)
  merged = from_folder(tmp_path / 'merged', outputs=3, remat='none')
  assert merged.config.pooling == 'mean'
  np.testing.assert_allclose(
    numbers('bert', merged), numbers('bert', model, trainable), atol=1e-4
  )
  # transformers has no class with this head.
  found = [
    settings_of(folder).get('architectures')
    for folder in (source, tmp_path / 'merged')
  ]
  assert found[0] == found[1]


def test_what_cannot_be_merged_is_named(tmp_path, bert):
  source, model = bert
  trainable = jax.eval_shape(model.init, jax.random.key(0))
  with pytest.raises(ValueError, match='only copied: give source'):
    model.merge(tmp_path / 'merged', trainable)
  with pytest.raises(ValueError, match=r'safetensors: .*\(NUM_OUTPUTS\) calls'):
    from_folder(source, outputs=2)
