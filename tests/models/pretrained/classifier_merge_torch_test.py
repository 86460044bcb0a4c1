"""transformers reads merged classifiers; collected where torch is installed."""

import pytest
import transformers

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
