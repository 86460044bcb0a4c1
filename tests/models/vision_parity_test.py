"""Vision transformers against transformers, and their adapters against peft."""

import functools

import numpy as np
import pytest

from tests.models.parity import material, vision
from tests.models.parity_test import SOURCES

pytestmark = pytest.mark.usefixtures('fast_compile')


@pytest.fixture(scope='module', params=vision.CASES)
def compared(request, tmp_path_factory):
  """A case by name, our model of it, and what it computes."""
  name = request.param
  case = vision.CASES[name]
  _, config = material.read_golden(f'vision_{name}')
  model = vision.our_model(case, tmp_path_factory.mktemp(name), config)
  return name, model, vision.our_arrays(case, model)


@functools.cache
def live(name):
  return vision.reference(vision.CASES[name])


@pytest.mark.filterwarnings('ignore')  # of peft and transformers
@pytest.mark.parametrize('source', SOURCES)
def test_logits_and_gradients(compared, source):
  name, _, ours = compared
  theirs = (
    material.read_golden(f'vision_{name}')[0]
    if source == 'golden'
    else live(name)[1]
  )
  assert ours.keys() == theirs.keys()
  for key, expected in theirs.items():
    material.assert_close(ours[key], expected, f'{name}: {key}')
    assert abs(expected).max() > 1e-4, key


if 'live' in SOURCES:

  @pytest.mark.filterwarnings('ignore')  # of peft and transformers
  def test_adapters_go_to_peft_and_back(compared, tmp_path):
    """Exported by us and loaded by peft; saved by peft and loaded by us."""
    import peft

    name, model, ours = compared
    adapted, *_ = live(name)
    adapted.save_pretrained(tmp_path / 'theirs')
    trainable = material.adapter(model)
    back = model.load_adapter(tmp_path / 'theirs')
    expected = material.by_peft_name(trainable, model)
    for key, array in material.by_peft_name(back, model).items():
      np.testing.assert_array_equal(array, expected[key], err_msg=key)
    model.export(tmp_path / 'ours', trainable)
    base = adapted.unload()
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / 'ours').eval()
    logits = vision.torch_logits(loaded, vision.CASES[name])
    material.assert_close(ours['logits'], logits.detach().numpy(), name)
