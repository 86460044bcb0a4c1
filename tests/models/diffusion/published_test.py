"""Published Stable Diffusion models by their settings: sizes and names.

The configs are those of copies of runwayml/stable-diffusion-v1-5 and
stabilityai/stable-diffusion-2-1 without versions and paths.
"""

import hashlib
import importlib.util
import json
import math
import pathlib

import jax
import pytest

from lora_opt.models.diffusion.folder import from_diffusers
from lora_opt.models.diffusion.names import tensor_names
from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.family import slots

CONFIGS = pathlib.Path(__file__).parents[3] / 'configs/published'
# Parameters of each part, and a digest of its tensors' names and shapes in
# diffusers and transformers.
PUBLISHED = {
  'stable_diffusion_1_5': {
    'unet': (859_520_964, '06ab0a594a10b99f'),
    'text_encoder': (123_060_480, 'a49bc0b832a1e5c1'),
    'vae': (83_653_863, 'a8eb7356226250e7'),
  },
  'stable_diffusion_2_1': {
    'unet': (865_910_724, '102cedebfb24e477'),
    'text_encoder': (340_387_840, '9a375520eeec0ca2'),
    'vae': (83_653_863, 'a8eb7356226250e7'),
  },
}
CASES = [(name, part) for name, parts in PUBLISHED.items() for part in parts]


@pytest.fixture(scope='module', params=PUBLISHED)
def published(request):
  """A model's name, and itself as shapes."""
  folder = CONFIGS / request.param
  lora = LoraConfig(rank=8)
  return request.param, from_diffusers(folder, lora=lora, weights=False)


def digest(shapes: dict[str, tuple[int, ...]]) -> str:
  lines = [f'{name} {list(shape)}' for name, shape in sorted(shapes.items())]
  return hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]


def test_every_parameter_is_there_under_its_name(published):
  name, model = published
  for part, (count, expected) in PUBLISHED[name].items():
    tree = model.base[part]
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)]
    assert sum(sizes) == count, part
    found = {
      key: slot.shape for key, slot in slots(tree, tensor_names(tree)).items()
    }
    assert digest(found) == expected, part


def test_adapters_of_dreambooth_have_their_known_size(published):
  """797,184 a rank of 4 in Stable Diffusion 1: twice that here."""
  name, model = published
  adapter = jax.eval_shape(model.init, jax.random.key(0))
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(adapter))
  expected = {
    'stable_diffusion_1_5': 2 * 797_184,
    'stable_diffusion_2_1': 2 * 829_952,
  }
  assert count == expected[name]
  assert model.axis_units == {'heads': 4 if '1_5' in name else 1}


if importlib.util.find_spec('diffusers') and importlib.util.find_spec('torch'):

  @pytest.mark.long  # the digests above are what it finds
  @pytest.mark.filterwarnings('ignore')  # of diffusers and transformers
  @pytest.mark.parametrize(('name', 'part'), CASES, ids=lambda x: x)
  def test_names_are_those_of_diffusers(name, part):
    import diffusers
    import torch
    import transformers

    settings = json.loads((CONFIGS / name / part / 'config.json').read_text())
    with torch.device('meta'):
      if part == 'text_encoder':
        config = transformers.CLIPTextConfig(**settings)
        module = transformers.CLIPTextModel(config)
      else:
        module = getattr(diffusers, settings['_class_name']).from_config(
          settings
        )
    shapes = {k: tuple(v.shape) for k, v in module.named_parameters()}
    assert digest(shapes) == PUBLISHED[name][part][1]
