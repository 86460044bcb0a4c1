"""What T5X asks of an optimizer and a network, without t5x.

The expectations are those of t5x/train_state.py, utils.py and partitioning.py
of the snapshot of 2026-04-21; `experiments/t5x` runs the real package.
"""

from typing import Any

import flax
import flax.linen as nn
import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization, traverse_util
from flax.linen import partitioning
from jax.sharding import PartitionSpec

import lora_opt
from lora_opt.integrations import t5x
from tests.core import problems

pytestmark = pytest.mark.usefixtures('fast_compile')


class DenseGeneral(nn.Module):
  """The interface of T5X's layer of this name."""

  features: tuple[int, ...]
  axis: tuple[int, ...] | int = -1
  kernel_axes: tuple[str, ...] = ()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    axis = self.axis if isinstance(self.axis, tuple) else (self.axis,)
    fan_in = int(np.prod([x.shape[i] for i in axis]))
    fan_out = int(np.prod(self.features))
    kernel = partitioning.param_with_axes(
      'kernel',
      nn.initializers.lecun_normal(),
      (fan_in, fan_out),
      axes=self.kernel_axes,
    )
    flat = x.reshape(*x.shape[: x.ndim - len(axis)], fan_in)
    return (flat @ kernel).reshape(*flat.shape[:-1], *self.features)


class Block(nn.Module):
  """Two projections, of which one has two axes of input, and a scale."""

  @nn.compact
  def __call__(self, x, _=None):
    y = DenseGeneral((2, 4), kernel_axes=('embed', 'kv'), name='query')(x)
    y = DenseGeneral((8,), (-2, -1), ('kv', 'embed'), name='out')(y)
    y = y * partitioning.param_with_axes(
      'scale', nn.initializers.ones, (8,), axes=('embed',)
    )
    return (x + y) if _ is None else (x + y, None)


class Network(nn.Module):
  """Layers one by one, or scanned on axis 1, as in scalable_t5."""

  scanned: bool

  @nn.compact
  def __call__(self, x):
    if not self.scanned:
      for i in range(3):
        x = Block(name=f'layers_{i}')(x)
    else:
      scan = partitioning.scan_with_axes(
        Block,
        variable_axes={'params': 1},
        variable_broadcast=False,
        split_rngs={'params': True},
        length=3,
        axis_name='layers',
        axes_collections=('params',),
      )
      x, _ = scan(name='layers')(x, jnp.zeros(3))
    return DenseGeneral((5,), kernel_axes=('embed', 'vocab'), name='logits')(x)


@pytest.fixture(scope='module', params=[False, True], ids=['layers', 'scanned'])
def network(request):
  """(module with LoRA, bare module, params, axes), as T5X would get them."""
  bare = Network(request.param)
  module = t5x.LoraModule(bare, rank=2, alpha=4.0)
  init = jax.jit(module.init)
  variables = flax.core.freeze(init(jax.random.key(0), jnp.ones((1, 8))))
  axes = partitioning.get_axis_names(variables['params_axes'])
  return module, bare, variables['params'], axes


def loss_of(module):
  def loss(params, x):
    return jnp.mean(jnp.square(module.apply({'params': params}, x) - 1))

  return loss


def test_lora_starts_as_the_bare_network_and_has_axes(network):
  module, bare, params, axes = network
  flat = traverse_util.flatten_dict(params.unfreeze())
  names = traverse_util.flatten_dict(flax.core.unfreeze(axes))
  assert flat.keys() == names.keys()  # T5X refuses parameters without axes
  for path, x in flat.items():
    assert len(names[path]) == x.ndim, path
  found = {path[-2] for path in flat if path[-1] == 'kernel_lora_a'}
  assert found == {'query', 'out'}  # the logits are no target
  x = jax.random.normal(jax.random.key(1), (4, 8))
  kernels = traverse_util.unflatten_dict(
    {k: v for k, v in flat.items() if 'lora' not in k[-1]}
  )
  np.testing.assert_array_equal(
    module.apply({'params': params}, x), bare.apply({'params': kernels}, x)
  )


def test_lora_is_what_it_would_be_in_the_kernel(network):
  module, bare, params, _ = network
  flat = traverse_util.flatten_dict(params.unfreeze())
  merged = {}
  for path, x in flat.items():
    flat[path] = jax.random.normal(jax.random.key(len(merged)), x.shape)
    merged[path] = flat[path]
  for path in [p for p in flat if p[-1] == 'kernel_lora_a']:
    a, b = merged.pop(path), merged.pop((*path[:-1], 'kernel_lora_b'))
    product = 'ir,ro->io' if a.ndim == 2 else 'ilr,rlo->ilo'
    # alpha / rank is two.
    merged[(*path[:-1], 'kernel')] += 2 * jnp.einsum(product, a, b)
  x = jax.random.normal(jax.random.key(1), (4, 8))
  ours, expected = (
    m.apply({'params': traverse_util.unflatten_dict(p)}, x)
    for m, p in ((module, flat), (bare, merged))
  )
  # Float32 sums of some hundred terms, in another order.
  np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
  'name',
  [
    'lora_rite',
    *(
      pytest.param(x, marks=pytest.mark.long) for x in ('reflora', 'lora_plus')
    ),
  ],
)
def test_a_step_is_that_of_the_recipe(network, name):
  module, _, params, _ = network
  optimizer = getattr(t5x, name)(weight_decay=0.1).create(params)
  tx = getattr(lora_opt, name)(
    lambda count: 0.1 / (count + 1), weight_decay=0.1
  )
  # Not from B = 0, where roundings decide which directions are dead.
  params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(7 * x + 1), params)
  optimizer = optimizer.replace(target=params)
  ours, state = params, tx.init(params)
  gradient = jax.grad(loss_of(module))
  x = jax.random.normal(jax.random.key(1), (4, 8))

  @jax.jit
  def step(optimizer, learning_rate):
    grads = gradient(optimizer.target, x)
    return optimizer.apply_gradient(grads, learning_rate=learning_rate)

  for i in range(4):
    # T5X hands a traced learning rate to every step.
    optimizer = step(optimizer, 0.1 / (i + 1))
    updates, state = jax.jit(tx.update)(gradient(ours, x), state, ours)
    ours = optax.apply_updates(ours, updates)
  assert optimizer.state.step == 4
  # Compiled as one or in parts, in float32.
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
    optimizer.target.unfreeze(),
    ours.unfreeze(),
  )
  flat = traverse_util.flatten_dict(optimizer.target.unfreeze())
  start = traverse_util.flatten_dict(params.unfreeze())
  moved = {p[-1] for p in flat if np.any(flat[p] != start[p])}
  assert moved == {'kernel_lora_a', 'kernel_lora_b'}


RECIPES = [name for name in problems.RECIPES if hasattr(t5x, name)]


@problems.some_recipes(RECIPES)
def test_logical_axes_and_a_checkpoint(network, name):
  module, _, params, axes = network
  optimizer = getattr(t5x, name)().create(params)
  grads = jax.jit(jax.grad(loss_of(module)))(params, jnp.ones((4, 8)))
  optimizer = jax.jit(lambda o, g: o.apply_gradient(g, learning_rate=0.1))(
    optimizer, grads
  )
  tree = optimizer.state_dict()
  flat = traverse_util.flatten_dict(tree, keep_empty_nodes=True)
  for path, x in flat.items():
    assert x is not traverse_util.empty_node, path
    assert not any('/' in key for key in path), path

  # From shapes, as T5X derives them before there are arrays.
  shapes = jax.eval_shape(lambda: optimizer)
  logical = shapes.optimizer_def.derive_logical_axes(shapes, axes)
  names = traverse_util.flatten_dict(logical.state_dict())
  by_path = traverse_util.flatten_dict(flax.core.unfreeze(axes))
  for path, x in flat.items():
    if isinstance(names.get(path), PartitionSpec):
      assert len(names[path]) == x.ndim
      (parameter,) = [p for p in by_path if path[-len(p) :] == p]
      assert names[path] == by_path[parameter]
    elif path[0] == 'state':
      assert x.ndim < 2 or x.shape[-1] == x.shape[-2] == 2, path

  restored = optimizer.optimizer_def.create(params).restore_state(
    serialization.msgpack_restore(serialization.msgpack_serialize(tree))
  )
  assert jax.tree.structure(restored) == jax.tree.structure(optimizer)
  jax.tree.map(np.testing.assert_array_equal, restored, optimizer)


def test_a_checkpoint_of_another_optimizer_is_refused(network):
  _, _, params, _ = network
  adam = t5x.adamw().create(params).state_dict()
  with pytest.raises(ValueError, match='fallback_to_scratch'):
    t5x.lora_rite().create(params).restore_state(adam)


def test_without_pairs_there_is_an_error():
  with pytest.raises(ValueError, match='LoRA'):
    t5x.lora_rite().create({'kernel': jnp.ones((4, 4))})


def test_in_a_gin_file():
  config = """
    from __gin__ import dynamic_registration
    import lora_opt.integrations.t5x
    OPTIMIZER = @lora_opt.integrations.t5x.lora_rite()
    lora_opt.integrations.t5x.lora_rite.weight_decay = 0.25
  """
  gin.parse_config(config)
  made = gin.query_parameter('%OPTIMIZER').scoped_configurable_fn()
  gin.clear_config()
  assert isinstance(made, t5x.OptimizerDef)
  assert made._make.keywords == {'weight_decay': 0.25}
