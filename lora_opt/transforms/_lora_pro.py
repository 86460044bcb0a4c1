"""LoRA-Pro: factor gradients whose step is closest to full fine-tuning."""

import jax.numpy as jnp
import optax

from lora_opt import linalg
from lora_opt.transforms._factors import Factors
from lora_opt.transforms._grams import stateless


def precondition_by_full_gradient(
  *, lora_scale: float = 1.0
) -> optax.GradientTransformationExtraArgs:
  """Gradients of A and B that together approximate that of the whole matrix.

  A step along g_A, g_B moves W by s (g_A B^T + A g_B^T). This is closest to the
  full gradient, in the Frobenius norm, for

    g_A = G_A (B^T B)^-1 / s^2 + A X^T
    g_B = (I - P) G_B (A^T A)^-1 / s^2 - B X,   P = B (B^T B)^-1 B^T,

  with any r x r matrix X. Of these, the ones nearest to G_A and G_B have

    B^T B X + X A^T A = -(B^T B)^-1 G_A^T A / s^2,

  a Sylvester equation, solved in the eigenbases of both Gram matrices.
  In directions in which a factor is zero, up to the cut-off of
  `lora_opt.linalg`, the inverse is taken as zero: at B = 0 only B moves.

  Args:
    lora_scale: the scale s in W + s A B^T.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.

  References:
    Wang et al., LoRA-Pro: Are Low-Rank Adapters Properly Optimized?,
    arXiv 2407.18242, theorems 2.1 to 2.3.
  """

  def update(updates, params, **extra_args):
    factors = Factors.of(params, **extra_args)
    values, gradients = factors.flatten(params), factors.flatten(updates)
    matmul = linalg.matmul
    eigenvalues, vectors = linalg.eigh(factors.grams(values), factors.method)
    live = linalg.alive(eigenvalues)
    safe = jnp.where(live, eigenvalues, 1)
    inverses = linalg.from_eigen(vectors, jnp.where(live, 1 / safe, 0))
    of_a, of_b = factors.halves(inverses / lora_scale**2)
    _, of_b_plain = factors.halves(inverses)
    across_a, across_b = factors.halves(factors.grams(gradients, values))
    # across_a = G_A^T A and across_b = G_B^T B.
    right = -matmul(of_b, across_a)
    v, u = factors.halves(vectors)
    alpha, beta = factors.halves(jnp.where(live, eigenvalues, 0))
    sums = beta[:, :, None] + alpha[:, None, :]
    turned = matmul(matmul(u.mT, right), v)
    solved = jnp.where(sums > 0, turned / jnp.where(sums > 0, sums, 1), 0)
    x = matmul(matmul(u, solved), v.mT)
    projection = matmul(matmul(of_b_plain, across_b.mT), of_a)
    along_gradient = jnp.concatenate([of_b, of_a])
    along_factor = jnp.concatenate([x.mT, -projection - x])
    return factors.pairs(
      [
        g + f
        for g, f in zip(
          factors.products(gradients, along_gradient),
          factors.products(values, along_factor),
          strict=True,
        )
      ]
    )

  return stateless(update)
