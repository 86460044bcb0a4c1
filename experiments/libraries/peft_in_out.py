"""PEFT: an adapter goes from torch to JAX, is trained there, and goes back.

`adapter_model.safetensors` is a flat dict of names with dots; the optimizer
accepts it unchanged. The base is a small torch network, and the same network in
JAX reads the same file.
"""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import optax
import peft
import safetensors.flax
import torch

import lora_opt

STEPS, RANK, ALPHA = 200, 4, 8
PREFIX = 'base_model.model.'


class Network(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.up = torch.nn.Linear(16, 64)
    self.down = torch.nn.Linear(64, 8)

  def forward(self, x):
    return self.down(torch.tanh(self.up(x)))


def forward(base, adapter, x):
  """The same network in JAX, with PEFT's own names."""

  def layer(name, x):
    a, b = (adapter[f'{PREFIX}{name}.lora_{f}.weight'] for f in 'AB')
    change = (x @ a.T) @ b.T * (ALPHA / RANK)
    return x @ base[f'{name}.weight'].T + base[f'{name}.bias'] + change

  return layer('down', jnp.tanh(layer('up', x)))


def main():
  torch.manual_seed(0)
  network, teacher = Network(), Network()
  base = {k: jnp.asarray(v.numpy()) for k, v in network.state_dict().items()}
  x = torch.randn(512, 16)
  with torch.no_grad():
    y = teacher(x)
  config = peft.LoraConfig(
    r=RANK, lora_alpha=ALPHA, target_modules=['up', 'down']
  )
  with tempfile.TemporaryDirectory() as folder:
    peft.get_peft_model(network, config).save_pretrained(folder)
    file = pathlib.Path(folder) / 'adapter_model.safetensors'
    adapter = safetensors.flax.load_file(file)
    adapter, losses = train(base, adapter, jnp.asarray(x), jnp.asarray(y))
    safetensors.flax.save_file(adapter, file)
    torch.manual_seed(0)
    back = peft.PeftModel.from_pretrained(Network(), folder)
  with torch.no_grad():
    in_torch = torch.nn.functional.mse_loss(back(x), y).item()
  print(f'PEFT: loss {losses[0]:.4f} -> {losses[-1]:.4f} in {STEPS}')
  print(f'the same adapter back in torch: {in_torch:.4f}')
  if not (losses[-1] < losses[0] / 4 and abs(in_torch - losses[-1]) < 1e-4):
    raise SystemExit('PEFT in and out did not work as expected')


def train(base, adapter, x, y):
  tx = lora_opt.lora_rite(optax.cosine_decay_schedule(0.05, STEPS))

  def loss_fn(adapter):
    return jnp.mean(jnp.square(forward(base, adapter, x) - y))

  @jax.jit
  def step(adapter, state):
    loss, gradients = jax.value_and_grad(loss_fn)(adapter)
    updates, state = tx.update(gradients, state, adapter)
    return optax.apply_updates(adapter, updates), state, loss

  losses, state = [], tx.init(adapter)
  for _ in range(STEPS):
    adapter, state, loss = step(adapter, state)
    losses.append(float(loss))
  return adapter, [*losses, float(loss_fn(adapter))]


if __name__ == '__main__':
  main()
