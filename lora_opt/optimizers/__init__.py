"""The recipes: complete optimizers, each an optax chain.

They take any parameter tree in which `lora_opt.pairs` finds LoRA pairs, and
train only these pairs. All other leaves get zero updates, or go to the
transformation passed as `other`.

All recipes share one guard, which `_recipe` adds. If gradients contain NaN or
inf, or overflow when squared, the step is skipped: updates are zero and the
state does not change. A learning rate or a parameter that is not finite does
not spread. All such steps are counted, and after `max_consecutive_skips` of
them in a row updates are NaN (see `transforms.skip_nonfinite`). A setting that
is out of range raises an error with its name. The recipes compute in float32
or wider and return updates in the dtype of the gradients.
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
from lora_opt.optimizers._recommended import recommended
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
  'recommended',
  'reflora',
  'reflora_s',
  'scaled_adamw',
  'scaled_gd',
  'shampoo',
]
