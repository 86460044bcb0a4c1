"""The methods: all recipes, variants of three of them, full fine-tuning."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lora_opt
from experiments import recipes
from experiments.ablation.variants import FAMILIES


class Method(NamedTuple):
  """A way to train the network."""

  # Of a schedule, and of `lora_scale` if it is scaled.
  make: Callable[..., optax.GradientTransformation]
  full: bool = False  # all weights, without adapters
  b_std: float = 0.0  # of the elements of B at the start; zero is usual
  scaled: bool = False  # whether it knows alpha / rank

  def optimizer(self, schedule, lora_scale: float):
    known = {'lora_scale': lora_scale} if self.scaled else {}
    return self.make(schedule, **known)


# Powers of 1.6 at which the first sweep of a method begins.
STARTS = {
  'polora': -3,
  'polora, steps of equal length': -8,
  'polora, half each': -1,
  'recommended': -1,
  'lora_muon': -7,
  'muon': -7,
  'lamb': -7,
  'scaled_gd': -4,
  'sgd': -2,
  'altlora': -4,
  'full adamw': -13,
  'full muon': -13,
}
START = -11


def full_muon(learning_rate) -> optax.GradientTransformation:
  """Muon on the kernels of all layers, Adam on embedding and norms.

  One rate serves both, since steps of both have the root mean square of Adam.
  """

  of_stacks = optax.contrib.MuonDimensionNumbers(1, 2)

  def axes(params):
    return jax.tree.map(lambda x: of_stacks if x.ndim == 3 else None, params)

  return optax.contrib.muon(
    learning_rate, muon_weight_dimension_numbers=axes, consistent_rms=0.2
  )


def _variants() -> dict[str, Method]:
  """The variants of experiments/ablation, such as 'lora_rite, clip: none'."""
  return {
    f'{recipe}, {name}': Method(
      functools.partial(variant.make, **_finite(variant.numbers)),
      b_std=variant.b_std,
    )
    for recipe, family in (('lora_rite', 'LoRA-RITE'), ('reflora', 'RefLoRA'))
    for name, variant in FAMILIES[family].items()
    if 'default' not in name and name not in recipes.RECIPES
  }


def _finite(numbers):
  """None in the place of infinity, which recipes reject if it is not traced."""
  return {k: v if math.isfinite(v) else None for k, v in numbers.items()}


def _faster_b(times: float):
  def make(learning_rate):
    step = lora_opt.polora(learning_rate)
    ratio = lora_opt.transforms.scale_by_lora_plus(times)
    return optax.chain(step, lora_opt.on_lora_pairs(ratio, elementwise=True))

  return make


def _of_length(direction: Callable[..., optax.GradientTransformation]):
  """Rescales each step to one fixed length of the product's change.

  To first order A B^T changes by a matrix of Frobenius norm sqrt(r) times the
  learning rate: its r singular values have that rate as root mean square.
  """

  def rescale(updates, pairs):
    new = {}
    for name, step in updates.items():
      a, b = pairs[name].a, pairs[name].b
      gram = functools.partial(jnp.einsum, '...mi,...mj->...ij')
      square = (
        jnp.einsum('...ij,...ij->...', gram(step.a, step.a), gram(b, b))
        + jnp.einsum('...ij,...ij->...', gram(step.b, step.b), gram(a, a))
        + 2 * jnp.einsum('...ij,...ji->...', gram(step.a, a), gram(step.b, b))
      )
      scale = (a.shape[-1] / jnp.maximum(square, 1e-30)) ** 0.5
      new[name] = type(step)(*(scale[..., None, None] * x for x in step))
    return new

  def make(learning_rate):
    return optax.chain(
      direction(1.0),
      lora_opt.on_lora_pairs(optax.stateless(rescale)),
      optax.scale_by_schedule(learning_rate),
    )

  return make


class _RowMeans(NamedTuple):
  count: jax.Array
  nu: Any  # mean squares along the rank, with the rank axis of length one


def _rows_alike(b2: float = 0.999, eps: float = 1e-8):
  """Divides each row of a gradient by its root mean square over the steps.

  LoRA-RITE adapts to the gradient along the rank only. This adapts along the
  long axes first, as Adam and PoLoRA do.
  """

  def init(params):
    nu = jax.tree.map(lambda x: jnp.zeros_like(x[..., :1]), params)
    return _RowMeans(jnp.zeros((), jnp.int32), nu)

  def update(updates, state, params=None):
    del params
    count = state.count + 1

    def decayed(nu, g):
      return b2 * nu + (1 - b2) * jnp.mean(g**2, -1, keepdims=True)

    nu = jax.tree.map(decayed, state.nu, updates)
    seen = 1 - b2**count
    divided = jax.tree.map(
      lambda g, v: g / (jnp.sqrt(v / seen) + eps), updates, nu
    )
    return divided, _RowMeans(count, nu)

  return optax.GradientTransformation(init, update)


def _rite_of_rows(learning_rate):
  return optax.chain(
    lora_opt.on_lora_pairs(_rows_alike()), lora_opt.lora_rite(learning_rate)
  )


def _averaged(recipe: Callable[..., optax.GradientTransformation]):
  return lambda *args, **options: lora_opt.averaged(recipe(*args, **options))


# Variants that experiments/ablation does not have.
OWN = {
  'lora_rite, rows of equal size': _rite_of_rows,
  'polora, steps of equal length': _of_length(lora_opt.polora),
  'lora_muon, steps of equal length': _of_length(lora_opt.lora_muon),
  'polora, b1: 0.95': functools.partial(lora_opt.polora, b1=0.95),
  'polora, b1: 0.8': functools.partial(lora_opt.polora, b1=0.8),
  'polora, b2: 0.95': functools.partial(lora_opt.polora, b2=0.95),
  'polora, b2: 0.999': functools.partial(lora_opt.polora, b2=0.999),
  'polora, damping: 0.01': functools.partial(lora_opt.polora, damping=1e-2),
  'polora, damping: 0.1': functools.partial(lora_opt.polora, damping=0.1),
  'polora, B 4 times as fast': _faster_b(4.0),
  'polora, A 4 times as fast': _faster_b(0.25),
}
METHODS = (
  {name: Method(make) for name, make in recipes.RECIPES.items()}
  | _variants()
  | {name: Method(make) for name, make in OWN.items()}
  | {
    'polora, half each': Method(
      functools.partial(lora_opt.polora, half_each=True), scaled=True
    ),
    'recommended': Method(lora_opt.recommended, scaled=True),
    **{
      f'recommended, b1: {b1}': Method(
        functools.partial(lora_opt.polora, b1=b1, half_each=True, damping=0.1),
        scaled=True,
      )
      for b1 in (0.7, 0.9)
    },
    'averaged(adamw)': Method(_averaged(lora_opt.adamw)),
    'averaged(recommended)': Method(
      _averaged(lora_opt.recommended), scaled=True
    ),
    'full adamw': Method(
      functools.partial(optax.adamw, weight_decay=0.0), full=True
    ),
    'full muon': Method(full_muon, full=True),
    # The pretrained network as it is.
    'none': Method(optax.sgd, full=True),
  }
)


def start_of(method: str) -> int:
  """The power at which a sweep begins; for a variant, that of its recipe."""
  return STARTS.get(method, STARTS.get(method.partition(',')[0], START))
