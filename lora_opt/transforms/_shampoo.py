"""Shampoo on the short side of a factor."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import linalg
from lora_opt.pairs import PairMatrices
from lora_opt.transforms._factors import Factors
from lora_opt.transforms._moments import corrected_decay


class ScaleByOneSidedShampooState(NamedTuple):
  """State of `scale_by_one_sided_shampoo`: half of Adam's."""

  count: jax.Array  # () int32: steps taken
  mu: Any  # tree of LoraPair: momentum of preconditioned gradients
  nu: Any  # {name: PairMatrices (batch, rank, rank)}: V


def scale_by_one_sided_shampoo(
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Computes G V^(-1/2), with V the mean of G^T G / m, and then momentum.

  Shampoo has one preconditioner per side, with the power -1/4. The one of the
  long side would be m x m. Without it the power is -1/2, as for a single matrix
  that all gradients share. In contrast to LoRA-RITE, the gradients are the raw
  ones, whose magnitude depends on that of the partner. Both decays are
  corrected for bias as in Adam.

  Args:
    b1: decay of the momentum.
    b2: decay of V.
    eps: added to the square root of the eigenvalues of V.
    mu_dtype: dtype of the momentum.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.

  References:
    Gupta et al., Shampoo: Preconditioned Stochastic Tensor Optimization,
    arXiv 1802.09568. An et al., ASGO (one-sided Shampoo), arXiv 2503.20762.
  """

  def init(params):
    def square(x):
      return jnp.zeros((x.shape[0], x.shape[2], x.shape[2]), x.dtype)

    return ScaleByOneSidedShampooState(
      jnp.zeros((), jnp.int32),
      jax.tree.map(lambda x: jnp.zeros_like(x, mu_dtype), params),
      {name: PairMatrices(*map(square, p)) for name, p in params.items()},
    )

  def update(updates, state, params=None, **extra_args):
    factors = Factors.of(params, **extra_args)
    gradients = factors.flatten(updates)
    count = optax.safe_increment(state.count)
    dtype = gradients[0].dtype
    decay1 = corrected_decay(b1, count, dtype)
    decay2 = corrected_decay(b2, count, dtype)
    dims = factors.repeat_dims().astype(dtype)[:, None, None]
    nu = decay2 * factors.pack(state.nu)
    nu += (1 - decay2) * linalg.symmetrize(factors.grams(gradients) / dims)
    root = linalg.inverse_root(nu, eps=eps, method=factors.method)
    mu = [
      decay1 * m.astype(g.dtype) + (1 - decay1) * g
      for m, g in zip(
        factors.flatten(state.mu),
        factors.products(gradients, root),
        strict=True,
      )
    ]
    return factors.pairs(mu), ScaleByOneSidedShampooState(
      count,
      factors.pairs([m.astype(mu_dtype or m.dtype) for m in mu]),
      factors.unpack(nu),
    )

  return optax.GradientTransformationExtraArgs(init, update)
