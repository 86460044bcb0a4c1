"""flax nnx and qwix: LoRA on a small network, trained by nnx.Optimizer.

The base network computes one function; LoRA learns the difference to another.
"""

import jax
import jax.numpy as jnp
import optax
import qwix
from flax import nnx

import lora_opt

STEPS = 200


class Network(nnx.Module):
  def __init__(self, rngs: nnx.Rngs):
    self.up = nnx.Linear(16, 64, rngs=rngs)
    self.down = nnx.Linear(64, 8, rngs=rngs)

  def __call__(self, x):
    return self.down(jnp.tanh(self.up(x)))


def loss_fn(model, x, y):
  return jnp.mean(jnp.square(model(x) - y))


@nnx.jit
def train_step(model, optimizer, x, y):
  wrt = nnx.DiffState(0, nnx.LoRAParam)
  loss, gradients = nnx.value_and_grad(loss_fn, argnums=wrt)(model, x, y)
  optimizer.update(model, gradients)
  return loss


def main():
  x = jax.random.normal(jax.random.key(0), (512, 16))
  y = Network(nnx.Rngs(1))(x)
  provider = qwix.LoraProvider(module_path='up|down', rank=4, alpha=8)
  model = qwix.apply_lora_to_model(
    Network(nnx.Rngs(0)), provider, x, rngs=nnx.Rngs(2)
  )
  base = nnx.state(model, nnx.Not(nnx.LoRAParam))
  before = jax.tree.map(jnp.copy, base)
  schedule = optax.cosine_decay_schedule(0.05, STEPS)
  optimizer = nnx.Optimizer(
    model, lora_opt.lora_rite(schedule), wrt=nnx.LoRAParam
  )
  losses = [float(train_step(model, optimizer, x, y)) for _ in range(STEPS)]
  after = nnx.state(model, nnx.Not(nnx.LoRAParam))
  same = jax.tree.all(jax.tree.map(jnp.array_equal, before, after))
  print(f'nnx.Optimizer: loss {losses[0]:.4f} -> {losses[-1]:.4f} in {STEPS}')
  print(f'base unchanged: {same}')
  if not (same and losses[-1] < losses[0] / 4):
    raise SystemExit('nnx.Optimizer did not train as expected')


if __name__ == '__main__':
  main()
