"""LoRA optimizers for JAX: LoRA-RITE, RefLoRA and LoRA+ as optax chains.

Importing this needs jax and optax only; the fine-tuning harness lives in the
subpackages `models`, `data`, `training` and `evaluation`.
"""

from lora_opt import diagnostics, linalg, pairs, transforms
from lora_opt.optimizers import (
  adamw,
  altlora,
  balanced,
  lamb,
  lora_fa,
  lora_muon,
  lora_plus,
  lora_pro,
  lora_rite,
  muon,
  polora,
  recommended,
  reflora,
  reflora_s,
  scaled_adamw,
  scaled_gd,
  shampoo,
)
from lora_opt.pairs import AUTO, LoraLayout, LoraPair
from lora_opt.state_sharding import state_shardings
from lora_opt.transforms import (
  average_of,
  averaged,
  float32_masters,
  on_lora_pairs,
)

__version__ = '0.1.0'

__all__ = [
  'AUTO',
  'LoraLayout',
  'LoraPair',
  'adamw',
  'altlora',
  'average_of',
  'averaged',
  'balanced',
  'diagnostics',
  'float32_masters',
  'lamb',
  'linalg',
  'lora_fa',
  'lora_muon',
  'lora_plus',
  'lora_pro',
  'lora_rite',
  'muon',
  'on_lora_pairs',
  'pairs',
  'polora',
  'recommended',
  'reflora',
  'reflora_s',
  'scaled_adamw',
  'scaled_gd',
  'shampoo',
  'state_shardings',
  'transforms',
]
