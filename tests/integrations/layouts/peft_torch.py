"""Hugging Face PEFT: a safetensors file of linear layers and an embedding."""

import peft
import safetensors.flax
import safetensors.torch
import torch

from tests.integrations.layouts.check import Case


class Model(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.embed = torch.nn.Embedding(10, 8)
    self.up = torch.nn.Linear(8, 16)
    self.down = torch.nn.Linear(16, 6)

  def forward(self, tokens):
    return self.down(torch.tanh(self.up(self.embed(tokens))))


def case(targets, layout):
  torch.manual_seed(0)
  config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets)
  model = peft.get_peft_model(Model(), config)
  tree = safetensors.flax.load(
    safetensors.torch.save(peft.get_peft_model_state_dict(model))
  )

  def forward(tree):
    data = safetensors.flax.save(tree)
    peft.set_peft_model_state_dict(model, safetensors.torch.load(data))
    with torch.no_grad():
      return model(torch.arange(4)[None]).numpy()

  return Case(layout, len(targets), tree, forward)


CASES = {
  'PEFT, Linear': lambda: case(['up', 'down'], 'PEFT'),
  'PEFT, Embedding': lambda: case(['embed'], 'PEFT_EMBEDDING'),
}
