"""Experts that PEFT packs into one rank axis; collected where torch is."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from lora_opt import pairs

EXPERTS, IN, OUT, RANK = 3, 16, 12, 2


class Experts(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.weight = torch.nn.Parameter(torch.zeros(EXPERTS, IN, OUT))

  def forward(self, x):
    return torch.einsum('ti,eio->teo', x, self.weight)


class Model(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.experts = Experts()

  def forward(self, x):
    return self.experts(x)


def test_packed_experts_are_refused_and_read_when_reshaped():
  torch.manual_seed(0)
  config = peft.LoraConfig(
    r=RANK,
    lora_alpha=RANK,
    target_modules=[],
    target_parameters=['experts.weight'],
    init_lora_weights=False,
  )
  model = peft.get_peft_model(Model(), config)
  tree = {
    name: jnp.asarray(x.detach().numpy())
    for name, x in model.named_parameters()
    if 'lora_' in name
  }
  with pytest.raises(ValueError, match='pairs of all experts in one rank axis'):
    pairs.find_sites(tree)
  a, b = (next(x for k, x in tree.items() if f'lora_{f}' in k) for f in 'AB')
  tree = {
    'experts.lora_A': a.reshape(EXPERTS, RANK, -1),
    'experts.lora_B': jnp.moveaxis(b.reshape(-1, RANK, EXPERTS), -1, 0),
  }
  [site] = pairs.find_sites(tree)
  # PEFT takes the last axis of such a parameter for the inputs.
  assert (site.batch, site.fan_in, site.fan_out) == (EXPERTS, OUT, IN)
  [pair] = pairs.extract_pairs(tree, [site]).values()
  with torch.no_grad():
    moved = model(torch.eye(IN)).numpy()  # (in, experts, out)
  delta = jax.device_get(pair.a @ pair.b.mT)
  np.testing.assert_allclose(
    delta, moved.transpose(1, 2, 0), rtol=1e-5, atol=1e-6
  )
