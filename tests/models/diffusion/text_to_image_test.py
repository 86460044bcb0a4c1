"""The model that training and evaluation receive."""

import dataclasses
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt import optimizers, pairs
from lora_opt.models.diffusion.formats import DIFFUSERS
from lora_opt.models.diffusion.random_pipeline import random_pipeline, tiny
from lora_opt.models.diffusion.sampler import Sampler
from lora_opt.models.diffusion.text_to_image import TextToImage, abstract_base
from lora_opt.models.lora import LoraConfig
from tests.models.parity import diffusion

pytestmark = pytest.mark.usefixtures('fast_compile')
TARGET = r'unet/.*/(to_q|conv1)'


@pytest.fixture(scope='module')
def model():
  """A model of pixels with random weights."""
  lora = LoraConfig(TARGET, rank=2)
  return random_pipeline(lora, config=tiny(pixels=True))


@pytest.fixture(scope='module')
def lora(model):
  return diffusion.adapter(model)


@pytest.fixture(scope='module')
def losses(model):
  return jax.jit(model.token_losses)


def batch_of(model, **arrays):
  random = np.random.default_rng(0)
  size = model.image_size
  return {
    'images': random.integers(0, 256, (3, size, size, 3)).astype(np.uint8),
    'tokens': model.encode_texts(['one', 'two', 'a third text of more']),
    'weights': np.ones((3, 1), np.float32),
  } | arrays


def test_noise_of_a_row_is_that_of_its_seed(model, lora, losses):
  seeds = np.array([5, 6, 7], np.uint32)
  batch = batch_of(model, noise_seeds=seeds)
  found = losses(model.base, lora, batch)
  assert found.shape == (3, 1)
  assert found.dtype == jnp.float32
  turned = {name: array[::-1] for name, array in batch.items()}
  again = losses(model.base, lora, turned)
  np.testing.assert_allclose(again[::-1], found, rtol=1e-5)
  other = losses(model.base, lora, batch | {'noise_seeds': seeds + 1})
  assert (abs(other - found) > 1e-4).any()


def test_training_draws_noise_from_the_key(model, lora, losses):
  batch = batch_of(model)
  first, again, other = (
    losses(model.base, lora, batch, jax.random.key(seed)) for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, again)
  assert (abs(other - first) > 1e-4).any()
  with pytest.raises(ValueError, match='give rng, or noise_seeds'):
    model.token_losses(model.base, lora, batch)


def test_losses_are_weighted_by_the_time(model, lora, losses):
  times = np.array([10, 500, 990], np.int32)
  batch = batch_of(
    model, noise_seeds=np.arange(3, dtype=np.uint32), timesteps=times
  )
  weighted = dataclasses.replace(model, snr_gamma=5.0)
  found = jax.jit(weighted.token_losses)(model.base, lora, batch)
  plain = losses(model.base, lora, batch)
  weights = model.config.noise.loss_weights(times, 5.0)
  np.testing.assert_allclose(found[:, 0], plain[:, 0] * weights, rtol=1e-5)


def test_bytes_floats_and_encoded_images_are_the_same(model, lora, losses):
  batch = batch_of(model, noise_seeds=np.arange(3, dtype=np.uint32))
  expected = losses(model.base, lora, batch)
  images = batch['images'] / np.float32(127.5) - 1
  floats = losses(model.base, lora, batch | {'images': images})
  np.testing.assert_allclose(floats, expected, rtol=1e-6)
  latents = model.encode(model.base, batch['images'])
  del batch['images']
  encoded = losses(model.base, lora, batch | {'latents': latents})
  np.testing.assert_allclose(encoded, expected, rtol=1e-6)


@pytest.mark.long
def test_the_autoencoder_is_sampled_in_training():
  """With its own spread; the same key draws the same."""
  model = random_pipeline()
  images = batch_of(model)['images']
  encode = jax.jit(model.encode)
  mean = encode(model.base, images)
  drawn = [encode(model.base, images, jax.random.key(i)) for i in (0, 0, 1)]
  assert mean.shape == (3, 8, 8, 4)
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert abs(drawn[0] - mean).max() > 1e-2
  assert abs(drawn[0] - drawn[2]).max() > 1e-2


@pytest.mark.long
def test_bfloat16_computes_nearly_the_same(model, lora, losses):
  batch = batch_of(model, noise_seeds=np.arange(3, dtype=np.uint32))
  expected = losses(model.base, lora, batch)
  narrow = dataclasses.replace(
    model,
    base=jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.base),
    dtype='bfloat16',
  )
  value, gradient = jax.jit(
    jax.value_and_grad(
      lambda lora, base: narrow.token_losses(base, lora, batch).mean()
    )
  )(lora, narrow.base)
  # 8 bits, through some 40 layers.
  np.testing.assert_allclose(value, expected.mean(), rtol=0.05)
  for leaf in jax.tree.leaves(gradient):
    assert leaf.dtype == jnp.float32
    assert np.isfinite(leaf).all()
    assert abs(leaf).max() > 0


def equations(jaxpr):
  """All equations, those of inner programs too."""
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else [value]:
        if hasattr(inner, 'jaxpr'):
          inner = inner.jaxpr
        if hasattr(inner, 'eqns'):
          yield from equations(inner)


def test_gradients_of_frozen_kernels_are_not_made(model, lora):
  """That of a convolution has a width of 3, and no image here has."""
  batch = batch_of(model, noise_seeds=np.arange(3, dtype=np.uint32))

  def made(arguments):
    def loss(base, lora):
      return model.denoising_losses(base, lora, batch).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, arguments))(model.base, lora)
    return [
      equation.outvars[0].aval.shape
      for equation in equations(jaxpr.jaxpr)
      if equation.primitive.name == 'conv_general_dilated'
    ]

  frozen, trained = made(1), made((0, 1))
  # Of the adapters of three-wide convolutions, whose rank is 2.
  adapters = [shape for shape in frozen if 3 in shape[1:3]]
  assert adapters
  assert all(2 in shape for shape in adapters)
  kernels = [shape for shape in trained if 3 in shape[1:3]]
  assert len(kernels) > 2 * len(adapters)
  # Every layer forwards, and backwards to its input at most.
  assert len(frozen) < len(trained)


@pytest.mark.parametrize('recipe', [optimizers.reflora, optimizers.lora_plus])
def test_optimizers_see_a_convolution_as_the_pair_it_is(lora, recipe):
  """Its factors are matrices: nothing tells them from those of a map."""
  block = lora['unet']['down_blocks.0']['resnets.0']['conv1']
  assert block['lora_a'].shape == (3 * 3 * 8, 2)
  assert block['lora_b'].shape == (2, 8)
  sites = {site.name: site for site in pairs.find_sites(lora)}
  site = sites['unet.down_blocks.0.resnets.0.conv1.lora']
  assert (site.fan_in, site.fan_out, site.rank) == (72, 8, 2)
  assert site.batch_shape == ()
  # Among others of other shapes, under any name, it moves alike.
  attention = lora['unet']['down_blocks.0']['attentions.0']
  optimizer, moved = recipe(0.01), []
  for tree in ({'conv': block, 'attention': attention}, {'w': block}):
    gradient = jax.tree.map(lambda x: jnp.sin(7 * x), tree)
    update, _ = jax.jit(optimizer.update)(gradient, optimizer.init(tree), tree)
    moved.append(update['conv' if 'conv' in tree else 'w'])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), *moved
  )


def test_samples_follow_seed_texts_and_adapter(model, lora):
  tokens = model.encode_texts(['one', 'two'])

  def sample(tokens=tokens, adapter=lora, **settings):
    settings = {'steps': 3, 'guidance_scale': 2.0} | settings
    return np.asarray(model.sample(model.base, adapter, tokens, **settings))

  first = sample(seed=1)
  assert first.shape == (2, 8, 8, 3)
  assert first.min() >= 0
  assert first.max() <= 1
  np.testing.assert_array_equal(first, sample(seed=1))
  # A row's noise does not depend on the others.
  np.testing.assert_array_equal(
    model.start_noise(1, 2), model.start_noise(1, 5)[:2]
  )
  for other in (
    sample(seed=2),
    sample(tokens[::-1], seed=1),
    sample(seed=1, negative_tokens=tokens),
    sample(seed=1, guidance_scale=4.0),
    sample(seed=1, scheduler=Sampler('ddim', 'trailing', clip=1.0)),
  ):
    assert abs(other - first).max() > 1e-3
  with pytest.raises(ValueError, match="kind='heun' must be one of"):
    sample(scheduler='heun')
  with pytest.raises(ValueError, match='steps: expected a whole number'):
    sample(steps=0)


def test_texts_are_opened_ended_cut_and_padded(model):
  tokenizer, length = model.tokenizer, model.config.text.max_length
  short, long = model.encode_texts(['ab', 'x' * 99])
  assert short[:4].tolist() == [tokenizer.bos_id, 97, 98, tokenizer.eos_id]
  assert set(short[4:].tolist()) == {tokenizer.pad_id}
  assert len(long) == length
  assert long[-2:].tolist() == [ord('x'), tokenizer.eos_id]
  too_long = np.zeros((1, length + 1), np.int32)
  with pytest.raises(ValueError, match='texts of 25 tokens are too long'):
    model._apply(model.base, None, 'encode_text', too_long)


def test_sizes_of_images_that_do_not_fit_are_refused():
  config = tiny()
  model = TextToImage('tiny', config, None, abstract_base(config), DIFFUSERS)
  assert model.start_noise(0, 2, (6, 10)).shape == (2, 3, 5, 4)
  with pytest.raises(ValueError, match=r'size=\(7, 8\): .* multiples of 2'):
    model.start_noise(0, 1, (7, 8))


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'dtype': 'float16'}, "dtype='float16' must be one of"),
    ({'remat': 'projections'}, "remat: expected one of 'none', 'full'"),
    ({'attention': 'fast'}, "attention='fast' must be one of"),
    ({'snr_gamma': 0}, 'snr_gamma: expected a finite number above 0'),
    ({'lora_config': LoraConfig('vae/.*')}, 'matches no projection'),
    ({'lora_config': LoraConfig(TARGET, 16)}, r'LoRA rank=16 is larger than'),
    ({'lora_config': LoraConfig(TARGET, 2, dora=True)}, 'LoRA dora=True is'),
  ],
)
def test_settings_that_do_not_fit_are_refused(model, settings, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(model, **settings)


def test_every_array_has_named_axes(model):
  base, trained = model.logical_axes()
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  for names, arrays in ((base, model.base), (trained, shapes)):
    jax.tree.map(
      lambda array, spec: None if len(spec) == array.ndim else 1 / 0,
      arrays,
      names,
    )
  assert model.axis_units == {'heads': 2}
  count = sum(math.prod(shape) for shape in model.projections.values())
  assert count > 10_000


@pytest.mark.long
def test_on_a_mesh_the_loss_is_the_same():
  code = 'from tests.models.diffusion import on_a_mesh as it; it.compare()'
  subprocess.run([sys.executable, '-c', code], check=True, timeout=600)
