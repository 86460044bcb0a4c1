"""The recipes: complete optimizers, each an optax chain.

They take any parameter tree in which the LoRA pairs can be found
(`lora_opt.pairs`), train the pairs and nothing else: leaves outside get zero
updates, or go to the transformation passed as `other`.

All of them share what `_recipe` adds: one guard. A step with gradients that
contain NaN or inf, or overflow when squared, does not happen (zero updates,
unchanged state); neither a learning rate nor a parameter that is not finite
spreads; all of this is counted, and after `max_consecutive_skips` in a row
updates are NaN (see `transforms.skip_nonfinite`). Settings out of their range
are refused by name. Work is done in float32 or wider, and updates come back in
the dtype of the gradients.
"""

from lora_opt.optimizers._adamw import adamw
from lora_opt.optimizers._altlora import altlora
from lora_opt.optimizers._balanced import balanced
from lora_opt.optimizers._baselines import lamb, muon, shampoo
from lora_opt.optimizers._lora_fa import lora_fa
from lora_opt.optimizers._lora_muon import lora_muon
from lora_opt.optimizers._lora_plus import lora_plus
from lora_opt.optimizers._lora_pro import lora_pro
from lora_opt.optimizers._lora_rite import lora_rite
from lora_opt.optimizers._polora import polora
from lora_opt.optimizers._reflora import reflora, reflora_s
from lora_opt.optimizers._scaled import scaled_adamw, scaled_gd

__all__ = [
  'adamw',
  'altlora',
  'balanced',
  'lamb',
  'lora_fa',
  'lora_muon',
  'lora_plus',
  'lora_pro',
  'lora_rite',
  'muon',
  'polora',
  'reflora',
  'reflora_s',
  'scaled_adamw',
  'scaled_gd',
  'shampoo',
]
