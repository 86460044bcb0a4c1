"""lorax, which needs a jax before 0.4.36: in an environment of its own.

There `lora_opt` cannot be imported as a whole, so the package is entered
without its `__init__`, and this module is the one to run:

    python -m tests.integrations.layouts.lorax_dict
"""

# ruff: noqa: E402
from tests.integrations.layouts import old_jax

old_jax.enter()

import sys

import jax
import jax.numpy as jnp
import lorax

from lora_opt import pairs
from tests.integrations.layouts import check


def make():
  params = {
    'up': {'kernel': jax.random.normal(jax.random.key(0), (8, 16))},
    'down': {'kernel': jax.random.normal(jax.random.key(1), (16, 8))},
    'square': {'kernel': jax.random.normal(jax.random.key(2), (8, 8))},
  }
  spec = lorax.simple_spec(params, lambda path, leaf: 2)
  tree = lorax.init_lora(params, spec, jax.random.key(3))

  @lorax.lora
  def run(params, x):
    x = jnp.tanh(x @ params['up']['kernel'])
    return jnp.tanh(x @ params['down']['kernel']) @ params['square']['kernel']

  forward = jax.jit(lambda tree: run(tree, jnp.linspace(-1, 1, 8)[None]))
  return check.Case('LORAX', 3, tree, forward, layouts=pairs.LORAX)


CASES = {'lorax': make}

if __name__ == '__main__':
  check.main(['lorax_dict', *sys.argv[1:]])
