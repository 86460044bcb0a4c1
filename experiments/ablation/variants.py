"""LoRA-RITE and RefLoRA with one thing changed.

Numbers are arguments of the compiled training run, so that variants that differ
only in numbers are compiled once.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import lora_opt
from experiments.ablation.transport import scale_by_rite_carrying
from lora_opt import transforms

# Three rates per two octaves, around the best rates of the defaults.
RITE_RATES = 2.0 ** (np.arange(-22, -5, 2) / 3)
ADAM_RATES = 2.0 ** (np.arange(-25, -8, 2) / 3)
# If V sums instead of averaging, steps are smaller by sqrt(m), 8 for the
# student.
SUM_RATES = 8 * RITE_RATES


class Variant(NamedTuple):
  """One row of a table."""

  make: Callable[..., Any]  # (learning rate, **numbers) -> optimizer
  numbers: dict[str, Any]
  rates: np.ndarray
  b_std: float = 0.0  # std of the elements of B at the start; usually zero


def rite_carrying(learning_rate, *, carry_mu, carry_nu, **options):
  """The chain of `lora_opt.lora_rite`, with or without transport."""
  direction = scale_by_rite_carrying(
    carry_mu=carry_mu, carry_nu=carry_nu, learning_rate=learning_rate, **options
  )
  return optax.chain(
    transforms.on_lora_pairs(direction),
    optax.scale_by_learning_rate(learning_rate),
  )


# The defaults of the recipe; infinity turns clip and skip off.
RITE_NUMBERS = {
  'b1': 0.9,
  'b2': 0.999,
  'eps': 1e-6,
  'clip_norm': 1.0,
  'skip_rms': jnp.inf,
  'rtol': 1e-3,
  'max_relative_step': 0.3,
}
rite_without_escape = functools.partial(lora_opt.lora_rite, escaped_mass=None)
rite_eigenvalues = functools.partial(
  lora_opt.lora_rite, escaped_mass='eigenvalues'
)
rite_sums = functools.partial(lora_opt.lora_rite, mean_square=False)
rite_paper = functools.partial(rite_eigenvalues, mean_square=False)


def _rite(make=lora_opt.lora_rite, rates=RITE_RATES, b_std=0.0, **changes):
  numbers = RITE_NUMBERS | changes
  # No limit is not the same as a very large one: it also skips the damping.
  if numbers['max_relative_step'] is None:
    del numbers['max_relative_step']
    make = _without_limit(make)
  return Variant(make, numbers, rates, b_std)


@functools.cache
def _without_limit(make):
  return functools.partial(make, max_relative_step=None)


def _carrying(mu, nu):
  return _rite(rite_carrying, carry_mu=mu, carry_nu=nu)


LORA_RITE = {
  'default': _rite(),
  'transport: none': _carrying(mu=False, nu=False),
  'transport: of M alone': _carrying(mu=True, nu=False),
  'transport: of V alone': _carrying(mu=False, nu=True),
  'escaped mass: none': _rite(rite_without_escape),
  'escaped mass: eigenvalues': _rite(rite_eigenvalues),
  'clip: none': _rite(clip_norm=jnp.inf),
  'clip: 0.1': _rite(clip_norm=0.1),
  'skip: RMS above 1': _rite(skip_rms=1.0),
  'skip: RMS above 1, no clip': _rite(skip_rms=1.0, clip_norm=jnp.inf),
  'eps: 1e-12': _rite(eps=1e-12),
  'eps: 1e-3': _rite(eps=1e-3),
  'rtol: 0': _rite(rtol=0.0),
  'cold start: no limit': _rite(max_relative_step=None),
  'cold start: limit 1': _rite(max_relative_step=1.0),
  'cold start: limit 0.1': _rite(max_relative_step=0.1),
  'cold start: B of 0.01': _rite(b_std=0.01),
  'cold start: B of 0.01, no limit': _rite(b_std=0.01, max_relative_step=None),
  'V: sums': _rite(rite_sums, SUM_RATES),
  'b1: 0': _rite(b1=0.0),
  'b2: 0.99': _rite(b2=0.99),
  "authors' code": _rite(
    rite_without_escape, skip_rms=1.0, rtol=0.0, max_relative_step=None
  ),
  'paper': _rite(
    rite_paper,
    SUM_RATES,
    clip_norm=jnp.inf,
    rtol=0.0,
    max_relative_step=None,
  ),
  # Combinations of the changes that help alone.
  'clip: 0.01': _rite(clip_norm=0.01),
  'clip: 0.1, limit 1': _rite(clip_norm=0.1, max_relative_step=1.0),
  'clip: 0.1, no escaped mass': _rite(rite_without_escape, clip_norm=0.1),
}

reflora_real = functools.partial(lora_opt.reflora, refactoring='real')


def _virtual(warmup_steps=0, every=1, blend_steps=0, max_spread=16.0):
  numbers = {'warmup_steps': warmup_steps, 'every': every,
             'blend_steps': blend_steps, 'max_spread': max_spread}  # fmt: skip
  return Variant(lora_opt.reflora, numbers, ADAM_RATES)


def _carried_out(make, warmup_steps=0, every=1):
  numbers = {'warmup_steps': warmup_steps, 'every': every}
  return Variant(make, numbers, ADAM_RATES)


REFLORA = {
  'virtual (default)': _virtual(),
  'adamw': Variant(lora_opt.lora_plus, {'lr_ratio': 1.0}, ADAM_RATES),
  'lora_plus': Variant(lora_opt.lora_plus, {'lr_ratio': 4.0}, ADAM_RATES),
  'real': _carried_out(reflora_real),
  'scalar': _carried_out(lora_opt.reflora_s),
  'virtual, every 10': _virtual(every=10),
  'real, every 10': _carried_out(reflora_real, every=10),
  'scalar, every 10': _carried_out(lora_opt.reflora_s, every=10),
  'virtual, warm-up 50': _virtual(warmup_steps=50),
  'virtual, warm-up 50, blend 50': _virtual(warmup_steps=50, blend_steps=50),
  'virtual, blend 50': _virtual(blend_steps=50),
  'virtual, any spread': _virtual(max_spread=jnp.inf),
  'virtual, any spread, warm-up 50': _virtual(
    warmup_steps=50, max_spread=jnp.inf
  ),
  'real, warm-up 50': _carried_out(reflora_real, warmup_steps=50),
  'scalar, warm-up 50': _carried_out(lora_opt.reflora_s, warmup_steps=50),
}
FAMILIES = {'LoRA-RITE': LORA_RITE, 'RefLoRA': REFLORA}
