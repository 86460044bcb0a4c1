"""Every recipe as a function of its learning rate, with defaults otherwise."""

import functools

import optax

import lora_opt


def _balanced(learning_rate):
  return lora_opt.balanced(lora_opt.adamw(learning_rate))


def recommended(learning_rate: float, *, lora_scale: float = 1.0, **options):
  """`lora_opt.recommended` at a constant rate, where only a step matters."""
  schedule = optax.constant_schedule(learning_rate)
  return lora_opt.recommended(schedule, lora_scale=lora_scale, **options)


RECIPES = {
  'lora_rite': lora_opt.lora_rite,
  'reflora': lora_opt.reflora,
  'reflora, real': functools.partial(lora_opt.reflora, refactoring='real'),
  'reflora_s': lora_opt.reflora_s,
  'lora_plus': lora_opt.lora_plus,
  'scaled_gd': lora_opt.scaled_gd,
  'scaled_adamw': lora_opt.scaled_adamw,
  'lora_fa': lora_opt.lora_fa,
  'lora_muon': lora_opt.lora_muon,
  'lora_pro': lora_opt.lora_pro,
  'altlora': lora_opt.altlora,
  'polora': lora_opt.polora,
  'balanced(adamw)': _balanced,
  'adamw': lora_opt.adamw,
  'lamb': lora_opt.lamb,
  'muon': lora_opt.muon,
  'shampoo': lora_opt.shampoo,
  'sgd': optax.sgd,
}
