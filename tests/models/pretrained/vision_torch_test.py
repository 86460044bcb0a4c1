"""transformers reads merged ViTs, and prepares images as we do."""

import json

import numpy as np
import pytest
import transformers

from lora_opt.models.pretrained.image_processor import open_processor
from tests.data.image_files import colours
from tests.models.parity import material, vision

pytestmark = [
  pytest.mark.usefixtures('fast_compile'),
  pytest.mark.filterwarnings('ignore'),  # of transformers
]


@pytest.mark.parametrize('name', vision.CASES)
def test_transformers_computes_the_same_with_a_merged_folder(tmp_path, name):
  case = vision.CASES[name]
  _, config = material.read_golden(f'vision_{name}')
  source = tmp_path / 'source'
  source.mkdir()
  model = vision.our_model(case, source, config)
  trainable = material.adapter(model)
  model.merge(tmp_path / 'merged', trainable, source=source)
  kind = transformers.AutoModelForImageClassification
  theirs, report = kind.from_pretrained(
    tmp_path / 'merged', output_loading_info=True
  )
  # What the classifier does not read is in transformers' class all the same.
  unread = ('vision_model.post_layernorm', 'vision_model.head')
  missing = [n for n in report['missing_keys'] if not n.startswith(unread)]
  assert not missing and not report['unexpected_keys']
  assert type(theirs).__name__ == model.family.classifier
  logits = vision.torch_logits(theirs.eval(), case).detach().numpy()
  ours = model.predict(model.base, trainable, vision.batch_of(case))
  material.assert_close(np.asarray(ours)[:, 0], logits, name)


@pytest.mark.parametrize('sides', [(40, 60), (61, 33), (20, 20)])
@pytest.mark.parametrize(
  ('kind', 'settings'),
  [
    ('ViT', {'size': {'height': 24, 'width': 24}}),
    ('ViT', {'size': {'height': 16, 'width': 28}, 'resample': 3}),
    (
      'CLIP',
      {'size': {'shortest_edge': 24}, 'crop_size': {'height': 20, 'width': 18}},
    ),
    ('CLIP', {'size': 22, 'crop_size': 22}),
    ('Siglip', {'size': {'height': 24, 'width': 20}, 'do_normalize': False}),
  ],
)
def test_images_are_prepared_as_transformers_does(
  tmp_path, kind, settings, sides
):
  theirs = getattr(transformers, f'{kind}ImageProcessorPil')(**settings)
  theirs.save_pretrained(tmp_path)
  saved = json.loads((tmp_path / 'preprocessor_config.json').read_text())
  assert saved['image_processor_type'] == f'{kind}ImageProcessor'
  ours = open_processor(tmp_path)
  image = colours(*sides)
  expected = theirs(images=[image], return_tensors='np')['pixel_values'][0]
  pixels = ours.fit(image).astype(np.float32) * ours.scale
  found = (pixels - np.array(ours.mean)) / np.array(ours.std)
  # Both resize by Pillow, to whole numbers.
  np.testing.assert_allclose(found, expected.transpose(1, 2, 0), atol=1e-5)
