"""Riemannian preconditioning of gradients by the partner's Gram matrix."""

from typing import Literal

import optax

from lora_opt import linalg
from lora_opt.transforms._factors import Factors


def precondition_by_grams(
  reg: float = 1e-2,
  *,
  lora_scale: float = 1.0,
  factor: Literal['both', 'b'] = 'both',
) -> optax.GradientTransformationExtraArgs:
  """Turns G_A into G_A (B^T B + reg I)^-1 / s^2, and G_B likewise.

  G_B becomes G_B (A^T A + reg I)^-1 / s^2. With reg = 0 a gradient step moves
  A B^T by the projection of the full gradient, whatever the factorisation.
  A factor then does not move in directions in which its partner is zero, up to
  the cut-off of `lora_opt.linalg`.

  Args:
    reg: multiple of the identity that is added to the Gram matrices.
    lora_scale: the scale s in W + s A B^T.
    factor: 'b' leaves the gradients of A unchanged.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.

  References:
    Zhang and Pilanci, Riemannian Preconditioned LoRA for Fine-Tuning
    Foundation Models, arXiv 2402.02347.
  """

  def update(updates, params, **extra_args):
    factors = Factors.of(params, **extra_args)
    grams = factors.grams(factors.flatten(params))
    inverses = (
      linalg.inverse(factors.swap(grams), shift=reg, method=factors.method)
      / lora_scale**2
    )
    gradients = factors.flatten(updates)
    new = factors.products(gradients, inverses)
    if factor == 'b':
      half = len(new) // 2
      new = gradients[:half] + new[half:]
    return factors.pairs(new)

  return stateless(update)


def stateless(update) -> optax.GradientTransformationExtraArgs:
  """A transformation without state that takes extra arguments."""

  def init(params):
    del params
    return optax.EmptyState()

  def with_state(updates, state, params=None, **extra_args):
    return update(updates, params, **extra_args), state

  return optax.GradientTransformationExtraArgs(init, with_state)
