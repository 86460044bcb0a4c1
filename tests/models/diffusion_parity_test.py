"""Diffusion models against diffusers and peft, live and by golden numbers."""

import functools

import numpy as np
import pytest

from tests.models.parity import diffusion, material
from tests.models.parity_test import SOURCES

pytestmark = pytest.mark.usefixtures('fast_compile')


# The rest compiles for as long again.
DEFAULT = ('sd2',)
NAMES = [
  name if name in DEFAULT else pytest.param(name, marks=pytest.mark.long)
  for name in diffusion.CASES
]


@pytest.fixture(scope='module', params=NAMES)
def loaded(request, tmp_path_factory):
  """A case by name, and our model of it."""
  name = request.param
  _, settings = material.read_golden(f'diffusion_{name}')
  folder = tmp_path_factory.mktemp(name)
  model = diffusion.our_model(diffusion.CASES[name], folder, settings)
  return name, model


@pytest.fixture(scope='module')
def compared(loaded):
  """The same, and what it computes."""
  name, model = loaded
  return name, diffusion.our_arrays(diffusion.CASES[name], model)


@pytest.fixture(scope='module')
def sampled(loaded):
  """Whole images of our model."""
  name, model = loaded
  return diffusion.our_sample(diffusion.CASES[name], model)


@functools.cache
def live(name):
  return diffusion.reference(diffusion.CASES[name])


def reference(name, source):
  if source == 'golden':
    return material.read_golden(f'diffusion_{name}')[0]
  return live(name)[1]


@pytest.mark.filterwarnings('ignore')  # of diffusers and transformers
@pytest.mark.parametrize('source', SOURCES)
def test_outputs_and_gradients(compared, source):
  name, ours = compared
  theirs = {k: v for k, v in reference(name, source).items() if k != 'sampled'}
  assert ours.keys() == theirs.keys()
  for key, expected in theirs.items():
    assert ours[key].shape == expected.shape, key
    material.assert_close(ours[key], expected, f'{name}: {key}')
    assert abs(expected).max() > 1e-4, key


@pytest.mark.long
@pytest.mark.filterwarnings('ignore')  # of diffusers and transformers
@pytest.mark.parametrize('source', SOURCES)
def test_whole_images(loaded, sampled, source):
  """1e-3: every step has the error of those before it."""
  expected = reference(loaded[0], source)['sampled']
  material.assert_close(sampled, expected, loaded[0], 1e-3)
  # No picture in which all is cut off.
  assert ((expected > 0) & (expected < 1)).mean() > 0.3


def test_an_adapter_goes_to_a_file_and_back(loaded, tmp_path):
  _, model = loaded
  trainable = diffusion.adapter(model)
  model.export(tmp_path, trainable)
  back = diffusion.by_name(model.load_adapter(tmp_path), model)
  for key, array in diffusion.by_name(trainable, model).items():
    np.testing.assert_array_equal(back[key], array, err_msg=key)


if 'live' in SOURCES:

  @pytest.mark.long
  @pytest.mark.filterwarnings('ignore')  # of diffusers and transformers
  def test_adapters_go_to_diffusers_and_back(loaded, sampled, tmp_path):
    """Exported by us and loaded by diffusers; saved by it and loaded by us."""
    import diffusers
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    name, model = loaded
    parts, *_ = live(name)
    adapted = diffusion.CASES[name].peft
    layers = {
      part: convert_state_dict_to_diffusers(
        get_peft_model_state_dict(parts[part])
      )
      for part in adapted
    }
    configs = {part: parts[part].peft_config['default'] for part in adapted}
    diffusers.StableDiffusionPipeline.save_lora_weights(
      tmp_path / 'theirs',
      layers['unet'],
      layers.get('text_encoder'),
      unet_lora_adapter_metadata=_settings(configs['unet']),
      text_encoder_lora_adapter_metadata=_settings(configs['text_encoder'])
      if 'text_encoder' in configs
      else None,
    )
    trainable = diffusion.adapter(model)
    back = model.load_adapter(tmp_path / 'theirs')
    expected = diffusion.by_name(trainable, model)
    for key, array in diffusion.by_name(back, model).items():
      np.testing.assert_array_equal(array, expected[key], err_msg=key)

    model.export(tmp_path / 'ours', trainable)
    diffusion.pipeline.cache_clear()
    fresh = diffusion.pipeline(name)
    loader = diffusers.StableDiffusionPipeline
    found, alphas, metadata = loader.lora_state_dict(
      tmp_path / 'ours', return_lora_metadata=True
    )
    loader.load_lora_into_unet(found, alphas, fresh['unet'], metadata=metadata)
    if 'text_encoder' in adapted:
      loader.load_lora_into_text_encoder(
        found, alphas, fresh['text_encoder'], metadata=metadata
      )
    images = diffusion.sampled(diffusion.CASES[name], fresh)
    material.assert_close(sampled, images, name, 1e-3)

  def _settings(config):
    """As diffusers' training scripts write it."""
    from diffusers.training_utils import _collate_lora_metadata

    class Model:
      def __init__(self):
        self.peft_config = {'default': config}

    return _collate_lora_metadata({'unet': Model()})[
      'unet_lora_adapter_metadata'
    ]
