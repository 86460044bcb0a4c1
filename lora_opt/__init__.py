"""LoRA optimizers for JAX: LoRA-RITE, RefLoRA and LoRA+ as optax chains.

Importing this needs jax and optax only; the fine-tuning harness lives in the
subpackages `models`, `data`, `training` and `evaluation`.
"""

from lora_opt import linalg, pairs, transforms
from lora_opt.optimizers import adamw, lora_plus, lora_rite, reflora, reflora_s
from lora_opt.pairs import AUTO, LoraLayout, LoraPair
from lora_opt.transforms import on_lora_pairs

__version__ = '0.1.0'

__all__ = [
  'AUTO',
  'LoraLayout',
  'LoraPair',
  'adamw',
  'linalg',
  'lora_plus',
  'lora_rite',
  'on_lora_pairs',
  'pairs',
  'reflora',
  'reflora_s',
  'transforms',
]
