"""The side of a comparison that needs torch, transformers and peft."""

import warnings

import peft
import torch

from tests.models.parity.material import ALPHA, RANK, weight


def fill(module: torch.nn.Module, adapters: bool = False) -> None:
  """Gives every parameter, or every factor of an adapter, its `weight`."""
  with torch.no_grad():
    for name, parameter in module.named_parameters():
      if adapters <= ('.lora_' in name):
        name = name.replace('.default', '')
        parameter.copy_(torch.tensor(weight(name, tuple(parameter.shape))))


def load(model: torch.nn.Module, tensors: dict) -> None:
  """Gives a model with a tied head the weights of a checkpoint."""
  state = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
  result = model.load_state_dict(state, strict=False)
  assert not result.unexpected_keys
  assert result.missing_keys in ([], ['lm_head.weight'])
  model.tie_weights()


def adapt(model, targets: list[str] | str, task_type: str, **settings):
  """Wraps a filled model with a filled adapter of PEFT."""
  config = peft.LoraConfig(
    r=RANK,
    lora_alpha=ALPHA,
    target_modules=targets,
    task_type=task_type,
    **settings,
  )
  with warnings.catch_warnings():
    # It says that it sets fan_in_fan_out for GPT-2, and that an adapter of a
    # tied embedding leaves the head alone: both are wanted.
    warnings.simplefilter('ignore')
    adapted = peft.get_peft_model(model, config)
  fill(adapted, adapters=True)
  return adapted.eval()


def gradients(adapted) -> dict[str, object]:
  """After backward: PEFT's name of each factor, prefixed: its gradient."""
  return {
    f'gradient/{name.replace(".default", "")}': parameter.grad.numpy()
    for name, parameter in adapted.named_parameters()
    if '.lora_' in name
  }
