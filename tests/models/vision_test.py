"""The contract of ImageClassifier: pixels, types, axes, sizes, refusals."""

import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt.data.images import Fit, ImageProcessor
from lora_opt.models import LoraConfig, random_vit
from lora_opt.models.pretrained.huggingface import read_config
from lora_opt.models.vision.config import VisionConfig
from tests.models.batches import gradients, jitted, paths, random_adapter

pytestmark = pytest.mark.usefixtures('fast_compile')

PUBLISHED = pathlib.Path(__file__).parents[2] / 'configs/published'


@pytest.fixture(scope='module')
def model():
  """A random ViT with an adapter everywhere."""
  return random_vit(LoraConfig(rank=2), outputs=3, remat='none')


def batch_of(count=3, size=16, seed=0):
  random = np.random.default_rng(seed)
  return {
    'images': random.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
    'labels': (np.arange(count)[:, None] % 3).astype(np.float32),
    'weights': np.ones((count, 1), np.float32),
  }


@pytest.mark.parametrize(
  ('name', 'changes', 'parameters'),
  [
    ('vit_base_patch16_224', {}, 86_567_656),
    ('vit_base_patch16_224', {'image_size': 384}, 86_859_496),
    ('vit_large_patch16_224', {}, 304_326_632),
    ('vit_large_patch16_224', {'image_size': 384}, 304_715_752),
  ],
)
def test_published_sizes_with_1000_classes(tmp_path, name, changes, parameters):
  settings = json.loads((PUBLISHED / name / 'config.json').read_text())
  file = tmp_path / 'config.json'
  file.write_text(json.dumps(settings | changes))
  family, config = read_config(file)
  tree = family.abstract_base(config), family.abstract_head(config, 1000)
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) == parameters


def test_losses_are_cross_entropy_and_images_do_not_mix(model):
  trainable, batch = random_adapter(model), batch_of()
  logits = jitted(model, 'predict')(model.base, trainable, batch)
  losses = jitted(model, 'token_losses')(model.base, trainable, batch)
  assert logits.shape == (3, 1, 3) and losses.shape == (3, 1)
  expected = -jax.nn.log_softmax(logits[:, 0])[jnp.arange(3), jnp.arange(3)]
  np.testing.assert_allclose(losses[:, 0], expected, rtol=1e-5)
  alone = {name: array[1:2] for name, array in batch.items()}
  one = jitted(model, 'predict')(model.base, trainable, alone)
  np.testing.assert_allclose(one[0], logits[1], atol=1e-5)


def test_a_patch_is_where_it_is_in_the_image(model):
  """The embedding of one patch depends on its pixels alone."""
  from lora_opt.models.vision.encoder import Patches

  patches = Patches(model.config, jnp.float32, jnp.float32)
  variables = {'params': model.base['patches']}
  images = batch_of(1)['images'].astype(np.float32)
  changed = images.copy()
  changed[0, 4:8, 8:12] = 0  # the second row of patches, the third column
  before, after = (patches.apply(variables, x) for x in (images, changed))
  differs = np.any(np.asarray(before != after), axis=(0, 2))
  assert np.flatnonzero(differs).tolist() == [4 + 2]


def test_pixels_are_scaled_as_the_processor_says(model):
  batch = batch_of()
  other = dataclasses.replace(
    model,
    tokenizer=ImageProcessor(Fit(16, 16), 1 / 255, (0.2, 0.3, 0.4), (1, 2, 4)),
  )
  pixels = other._normalised(jnp.asarray(batch['images']))
  expected = (batch['images'] / 255 - [0.2, 0.3, 0.4]) / [1, 2, 4]
  np.testing.assert_allclose(pixels, expected, atol=1e-6)


def test_the_base_has_no_gradient_and_all_that_is_trained_has_one(model):
  _, base, trained = gradients(model)(
    model.base, random_adapter(model), batch_of()
  )
  assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(base))
  for path, leaf in paths(trained):
    assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_no_type_or_rank_is_promoted_silently(model, dtype):
  model = dataclasses.replace(
    model,
    dtype=dtype,
    lora_config=LoraConfig(target='.*', rank=2, dropout=0.1, dtype=dtype),
    dropout=0.1,
    head_dropout=0.1,
    remat='projections',
  )
  with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    trainable = jax.eval_shape(model.init, jax.random.key(0))
    losses = jax.eval_shape(
      lambda t, rng: model.token_losses(model.base, t, batch_of(), rng),
      trainable,
      jax.random.key(0),
    )
  assert losses.dtype == jnp.float32


def test_every_axis_has_a_logical_name(model):
  trees = model.base, model.init(jax.random.key(0))
  for specs, arrays in zip(model.logical_axes(), trees, strict=True):
    for (path, spec), (same, array) in zip(
      paths(specs), paths(arrays), strict=True
    ):
      assert path == same
      assert len(spec) == array.ndim and None not in spec, path


def test_what_the_backward_pass_keeps_changes_nothing(model):
  expected = gradients(model)(model.base, random_adapter(model), batch_of())
  again = dataclasses.replace(model, remat='projections', unroll=2)
  found = gradients(again)(model.base, random_adapter(model), batch_of())
  for (path, x), (_, y) in zip(paths(expected), paths(found), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5, err_msg=path)


def test_quantized_kernels_are_those_of_the_projections():
  model = random_vit(LoraConfig(rank=2), embed_dim=64, quantize='int8')
  plain = random_vit(LoraConfig(rank=2), embed_dim=64)
  trainable, batch = random_adapter(plain), batch_of()
  batch['labels'] %= 2
  losses = [
    jitted(m, 'token_losses')(m.base, trainable, batch) for m in (model, plain)
  ]
  np.testing.assert_allclose(*losses, atol=0.05)
  assert np.any(losses[0] != losses[1])


def test_what_does_not_fit_is_refused(model):
  trainable = model.init(jax.random.key(0))
  with pytest.raises(ValueError, match='images of 12 x 12 pixels for random'):
    model.predict(model.base, trainable, batch_of(size=12))
  with pytest.raises(ValueError, match='came without a trained head'):
    model.predict(model.base, None, batch_of())
  with pytest.raises(ValueError, match=r'brought to 8 x 8 .* reads 16 x 16'):
    dataclasses.replace(model, tokenizer=ImageProcessor(Fit(8, 8)))


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_heads': 3}, 'embed_dim=8 must be a multiple of num_heads=3'),
    ({'patch_width': 17}, 'patch_width=17 must be at most image_width=16'),
    ({'image_height': 0}, 'image_height: expected a whole number'),
    ({'activation': 'mish'}, "activation='mish' must be one of"),
    ({'pooling': 'max'}, "pooling='max'"),
    ({'class_token': False}, "pooling='first' needs class_token"),
  ],
)
def test_a_config_that_contradicts_itself_is_refused(settings, message):
  sides = ('image_height', 'image_width', 'patch_height', 'patch_width')
  sizes = dict(zip(sides, (16, 16, 4, 4), strict=True))
  sizes |= {'embed_dim': 8, 'num_layers': 1, 'num_heads': 2, 'mlp_dim': 8}
  with pytest.raises(ValueError, match=message):
    VisionConfig(**(sizes | settings))
