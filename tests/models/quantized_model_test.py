"""Models whose frozen kernels are in few bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_opt.devices.partitioning import Partitioner
from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.huggingface import from_folder
from lora_opt.models.quantized import QuantizedKernel, dequantize
from lora_opt.models.random_model import random_model
from lora_opt.models.start import pissa
from lora_opt.training.train_state import count_parameters
from tests.models.batches import paths, random_adapter, row_batch
from tests.models.pretrained.checkpoint_files import write_folder

BATCH = row_batch([5, 6, 7, 8, 9], [20, 21, 22])


def is_quantized(x):
  return isinstance(x, QuantizedKernel)


def in_full(base):
  """The base that quantized kernels stand for."""

  def full(leaf):
    if not is_quantized(leaf):
      return leaf
    return jnp.stack([dequantize(k, jnp.float32) for k in unstacked(leaf)])

  return jax.tree.map(full, base, is_leaf=is_quantized)


def unstacked(kernel):
  return (kernel[layer] for layer in range(kernel.shape[0]))


@pytest.mark.parametrize(
  ('kind', 'settings'),
  [('nf4', {}), ('int8', {'dora': True})],
)
@pytest.mark.usefixtures('fast_compile')
def test_computes_with_what_the_codes_stand_for(kind, settings):
  model = random_model(LoraConfig(rank=2, **settings), quantize=kind)
  plain = dataclasses.replace(model, base=in_full(model.base))
  lora = jax.tree.map(
    lambda x, d: x + d, model.init(jax.random.key(0)), random_adapter(model)
  )

  def losses_and_gradient(model):
    def total(lora):
      losses = model.token_losses(model.base, lora, BATCH)
      return losses.sum(), losses

    gradient, losses = jax.jit(jax.grad(total, has_aux=True))(lora)
    return [losses, *jax.tree.leaves(gradient)]

  for ours, expected in zip(
    *map(losses_and_gradient, (model, plain)), strict=True
  ):
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected).max() > 0


def test_what_is_rounded_and_counted():
  plain = random_model(LoraConfig(rank=2))
  model = random_model(LoraConfig(rank=2), quantize='nf4')
  assert count_parameters(model.base) == count_parameters(plain.base)
  rounded = {
    path.removesuffix('/codes')
    for path, _ in paths(model.base)
    if path.endswith('/codes')
  }
  kernels = {path for path, _ in paths(plain.base) if path.endswith('/kernel')}
  assert rounded == kernels
  placed = Partitioner().place(model).base
  assert jax.tree.structure(placed) == jax.tree.structure(model.base)


def test_rounding_while_reading_is_rounding_afterwards(tmp_path):
  # Not a fixture's: random numbers differ by how their program is compiled.
  write_folder(tmp_path, random_model(tie_embeddings=False))
  streamed = from_folder(tmp_path, quantize='nf4', partitioner=Partitioner())
  again = random_model(tie_embeddings=False, quantize='nf4')
  for (path, ours), (_, expected) in zip(
    paths(streamed.base), paths(again.base), strict=True
  ):
    np.testing.assert_array_equal(ours, expected, err_msg=path)


def test_what_is_left_after_a_start_is_rounded():
  settings = {'embed_dim': 64, 'head_dim': 16, 'mlp_dim': 128}
  plain = random_model(**settings)

  def error(start):
    lora = LoraConfig('.*/down', rank=8, start=start)
    model = random_model(lora, quantize='int4', **settings)
    kernel = in_full(model.base)['layers']['mlp']['down']['kernel']
    if start is not None:
      factors = model.start['layers']['mlp']['down']
      kernel += lora.scale * factors['lora_a'] @ factors['lora_b']
    exact = plain.base['layers']['mlp']['down']['kernel']
    return np.linalg.norm(kernel - exact) / np.linalg.norm(exact)

  assert 0.5 * error(None) < error(pissa) < 0.98 * error(None)


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['projections', 'none'])
def test_no_layer_keeps_a_kernel_in_full_precision(remat):
  model = random_model(
    LoraConfig('.*/down', rank=1),
    quantize='nf4',
    num_layers=12,
    embed_dim=64,
    mlp_dim=512,
    remat=remat,
  )

  def loss(lora, base):
    return model.token_losses(base, lora, row_batch([5, 6, 7])).sum()

  lora = random_adapter(model)
  compiled = jax.jit(jax.grad(loss)).lower(lora, model.base).compile()
  full = 12 * 3 * 64 * 512 * 4
  assert compiled.memory_analysis().temp_size_in_bytes < full / 3


def test_unknown_kind():
  with pytest.raises(ValueError, match="'int3' must be one of int8, int4, nf4"):
    random_model(quantize='int3')
