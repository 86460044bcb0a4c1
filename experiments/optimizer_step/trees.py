"""LoRA trees with the shapes of real models, filled with random numbers."""

import jax
import jax.numpy as jnp
import numpy as np

# name: (layers, {projection: (fan in, fan out)})
SHAPES = {
  'gemma_2b': (
    18,
    {
      'q': (2048, 2048),
      'k': (2048, 256),
      'v': (2048, 256),
      'o': (2048, 2048),
      'gate': (2048, 16384),
      'up': (2048, 16384),
      'down': (16384, 2048),
    },
  ),
  'smollm2_135m': (
    30,
    {
      'q': (576, 576),
      'k': (576, 192),
      'v': (576, 192),
      'o': (576, 576),
      'gate': (576, 1536),
      'up': (576, 1536),
      'down': (1536, 576),
    },
  ),
}


def make_tree(name: str, rank: int, layout: str, seed: int):
  """Float32 factors of all seven projections.

  Args:
    name: a key of `SHAPES`.
    rank: rank of every pair.
    layout: 'stacked', one leaf for all layers, or 'separate'.
    seed: seed of the random numbers; all factors have full rank.
  """
  layers, shapes = SHAPES[name]
  rng = np.random.default_rng(seed)

  def factor(*shape):
    x = rng.normal(0, shape[-2] ** -0.5, shape)
    return jnp.asarray(x, jnp.float32)

  def sites(*batch):
    return {
      projection: {
        'lora_a': factor(*batch, fan_in, rank),
        'lora_b': factor(*batch, rank, fan_out),
      }
      for projection, (fan_in, fan_out) in shapes.items()
    }

  if layout == 'stacked':
    return sites(layers)
  return {f'layer_{i}': sites() for i in range(layers)}


def make_gradients(name: str, rank: int, layout: str):
  tree = make_tree(name, rank, layout, seed=1)
  return jax.tree.map(lambda x: 0.01 * x, tree)
