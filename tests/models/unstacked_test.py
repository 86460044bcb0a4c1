"""Weights layer by layer give what their stacks give."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from lora_opt.devices.partitioning import DATA_PARALLEL
from lora_opt.evaluation.decoding import make_decoder
from lora_opt.models import LoraConfig, unstacked
from lora_opt.models.random_model import random_model


def test_layers_are_those_of_the_stacks():
  kernel = jnp.arange(12.0).reshape(3, 2, 2)
  stacks = {'q': {'kernel': kernel, 'bias': kernel[:, 0]}}
  tree = {'layers': stacks, 'embedding': jnp.ones(2)}
  cut = unstacked.unstacked(tree)
  assert cut['embedding'] is tree['embedding']
  for index in range(3):
    found = unstacked.layer_of(stacks, index)['q']
    np.testing.assert_array_equal(found['kernel'], kernel[index])
    found = unstacked.layer_of(cut['layers'], index)['q']
    np.testing.assert_array_equal(found['kernel'].turned, kernel[index].T)
    np.testing.assert_array_equal(found['bias'], kernel[index, 0])


def test_kernels_of_other_types_are_not_turned():
  stacks = {'kernel': jnp.ones((3, 2, 2), jnp.bfloat16)}
  cut = unstacked.unstacked({'layers': stacks})
  assert cut['layers']['kernel'][0].shape == (2, 2)


def test_what_is_too_large_to_be_there_twice_stays_stacked(monkeypatch):
  tree = {'layers': {'kernel': jnp.ones((2, 4))}}
  monkeypatch.setattr(unstacked, 'MOST_BYTES', 31)
  assert unstacked.unstacked(tree) is tree
  assert unstacked.unstacked(None) is None


def test_the_same_tokens_are_written(monkeypatch):
  written = []
  for quantize in (None, 'int8'):
    model = random_model(LoraConfig(rank=2), quantize=quantize, embed_dim=64)
    lora = jax.tree.map(lambda x: x + 0.1, model.init(jax.random.key(0)))
    tokens, valid = jnp.arange(8).reshape(2, 4), jnp.ones((2, 4), bool)
    for most in (0, 2**30):
      monkeypatch.setattr(unstacked, 'MOST_BYTES', most)
      decode = make_decoder(model, 5, [-1], DATA_PARALLEL.place(model))
      rows = jnp.arange(2)
      written.append(decode(model.base, lora, tokens, valid, rows))
    np.testing.assert_array_equal(*written[-2:])


def test_the_loop_neither_turns_nor_copies_a_kernel():
  model = random_model(LoraConfig(rank=2), embed_dim=64)
  decode = make_decoder(model, 5, [-1], DATA_PARALLEL.place(model))
  given = jnp.ones((8, 4), jnp.int32), jnp.ones((8, 4), bool), jnp.arange(8)
  compiled = decode.lower(model.base, None, *given).compile().as_text()
  # Not that of the layers, which reads the prompt.
  loop = r' while\(.*body=%?([\w.-]+).*op_name="jit\(decode\)/while"'
  name = re.search(loop, compiled)[1]
  body = re.search(rf'^%?{re.escape(name)} .*?^}}', compiled, re.M | re.S)[0]
  shapes = {k.shape[1:] for k in kernels(model.base['layers'])}
  of_kernels = [f'f32[{m},{n}]' for shape in shapes for m, n in both(shape)]
  assert any(shape in body for shape in of_kernels)
  made = [
    line
    for line in body.splitlines()
    for shape in of_kernels
    if f'= {shape}' in line and 'get-tuple-element(' not in line
  ]
  assert not made


def kernels(layers):
  leaves = jax.tree_util.tree_leaves_with_path(layers)
  return [leaf for path, leaf in leaves if path[-1].key == 'kernel']


def both(shape):
  return shape, shape[::-1]
