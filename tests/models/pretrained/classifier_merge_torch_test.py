"""transformers reads merged classifiers; collected where torch is installed."""

import json

import numpy as np
import pytest
import torch
import transformers

from lora_opt.evaluation.classify import named_for
from lora_opt.models.pretrained.huggingface import from_folder
from tests.models.labels_test import MNLI, nli, write
from tests.models.parity import encoder, material
from tests.models.pretrained.classifier_merge_test import CLASSES, numbers

pytestmark = [
  pytest.mark.usefixtures('fast_compile'),
  pytest.mark.filterwarnings('ignore'),  # of transformers
]


@pytest.mark.parametrize('name', CLASSES)
def test_transformers_computes_the_same(tmp_path, name):
  case = encoder.CASES[name]
  _, config = material.read_golden(f'encoder_{name}')
  source = tmp_path / 'source'
  source.mkdir()
  model = encoder.our_model(case, source, config)
  trainable = material.adapter(model)
  model.merge(tmp_path / 'merged', trainable, source=source)
  theirs, report = (
    transformers.AutoModelForSequenceClassification.from_pretrained(
      tmp_path / 'merged', output_loading_info=True
    )
  )
  for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys'):
    assert not report[kind], kind
  assert type(theirs).__name__ == CLASSES[name]
  assert theirs.config.num_labels == case.outputs
  logits = encoder.torch_logits(theirs.eval(), case).detach().numpy()
  material.assert_close(numbers(name, model, trainable)[:, 0], logits, name)


def test_a_label_means_what_it_means_in_transformers(tmp_path):
  """The names that transformers' pipeline would print, in any order of ours."""
  folder = write(tmp_path)
  theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
    folder
  )
  ids = encoder.CASES['bert']
  logits = encoder.torch_logits(theirs.eval(), ids).detach()
  printed = [theirs.config.id2label[int(i)] for i in torch.argmax(logits, -1)]
  for classes in (MNLI, MNLI[::-1], (MNLI[1], MNLI[2], MNLI[0])):
    model = from_folder(folder, outputs=3, remat='none')
    named = named_for(model, nli(classes=classes))
    ours = np.argmax(numbers('bert', named)[:, 0], -1)
    assert [classes[i].upper() for i in ours] == printed
  assert json.loads((folder / 'config.json').read_text())['id2label']['0'] == (
    'CONTRADICTION'
  )
