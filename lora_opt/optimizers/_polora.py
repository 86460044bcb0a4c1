"""PoLoRA."""

from typing import Any

import optax

from lora_opt import pairs, transforms
from lora_opt.optimizers._recipe import (
  MAX_SKIPS,
  Mask,
  ScalarOrSchedule,
  recipe,
)
from lora_opt.optimizers._settings import checked


@checked
def polora(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.99,
  eps: float = 1e-12,
  *,
  damping: float = 1e-4,
  lora_scale: float = 1.0,
  weight_decay: float = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """PoLoRA: steps of a fixed length, orthogonal in a metric of curvature.

  The metric of A B^T is diagonal on both sides: q along the inputs (m), p
  along the outputs (n). With the gradients G, for A

    M_A <- b1 M_A + (1 - b1) G_A,      N_A = b1 M_A + (1 - b1) G_A,
    Q = diag(q / max(q) + damping),    P the same of p,
    C_B = B^T P B + max(damping l, eps) I, l the largest eigenvalue of B^T P B,
    D_A = Q^(-1/2) msign(Q^(-1/2) N_A C_B^(-1/2)) C_B^(-1/2),
    A <- A - rho D_A / |D_A|,          rho = learning_rate / (|A| + |B|),
    q <- b2 q + (1 - b2) / r * the sums of rows of G_A o (G_A C_B^-1),

  and for B with A and B, p and q exchanged, all from the same state; |.| is
  the largest singular value, msign(U S V^T) = U V^T. Then a step moves A B^T by
  at most `learning_rate` in that norm, in first order, whatever the gradient's
  size. So it does not come to rest by itself: the rate must decay.

  Args:
    learning_rate: a float or a schedule, the length of a step of A B^T in the
      spectral norm: 1e-2 to 3e-2 in the paper's runs.
    b1: decay of the momentum.
    b2: decay of q and p.
    eps: what q and p start from, and the least damping of C; 0: they start
      flat, and only relative damping counts.
    damping: the paper's delta. In float32, above about 1e-5.
    lora_scale: s of W + s A B^T; steps are divided by it, so that
      `learning_rate` is the length of a step of W.
    weight_decay: decoupled, times the learning rate. (The paper has none.)
    mask: which leaves decay; default all.
    mu_dtype: dtype of the momentum.
    layout: where the pairs are, `lora_opt.pairs`.
    other: transformation for leaves outside pairs; default: they rest.
    max_consecutive_skips: bad steps in a row that are skipped before updates
      are NaN (`transforms.skip_nonfinite`); None: any.

  Returns:
    An optax transformation; `update` needs `params`.

  Raises:
    ValueError: for a setting out of its range; at init, when no proper pairs
      are found.

  >>> import jax.numpy as jnp
  >>> params = {'lora_a': jnp.ones((4, 1)), 'lora_b': jnp.zeros((1, 2))}
  >>> gradients = {'lora_a': jnp.zeros((4, 1)), 'lora_b': jnp.ones((1, 2))}
  >>> tx = polora(0.1)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['lora_b'].round(4))
  [[-0.0354 -0.0354]]

  Notes:
    Invariant to orthogonal T; not to others, since the damping and |A| + |B|
    are not. State: half of Adam's, and m + n numbers a pair, which at rest
    keep the rank axis with length one.

    It is made for noisy gradients. Where they are of low rank and the same at
    every step, as in full-batch toys, q and p come to be their squares, and the
    two roots turn a row of G into a step of 1 / G: nearly all of the length
    goes where the gradient is least. There a `damping` of 0.1 helps.

    Defaults are those of the paper's table of settings. Its Algorithm 1 leaves
    out damping in Q and P, and eps; both are as in two ports of the authors'
    code (nikhilgsh/polora). At B = 0 the paper takes the identity for
    C_B^(-1/2), the code eps^(-1/2) I: msign and |D_A| cancel the difference.
    They find roots and norms by eight polynomial steps or power iterations, the
    norms from vectors kept in the state; here they are found to rounding, the
    norms to 0.1 % by products of r x r matrices and without state (D by eight
    steps, of factors of condition 300 and ranks 8 to 64, is the same to 3e-4).
    msign leaves directions at zero that are below 1e-3 of the largest in
    float32 (`lora_opt.linalg`), where eight steps would bring them up in part.

  References:
    Ghosh, Parshakova and Gower, PoLoRA: A Preconditioned Orthogonalized LoRA
    Optimizer, arXiv 2607.17620.
  """
  direction = transforms.scale_by_polora(
    b1,
    b2,
    eps,
    damping=damping,
    lora_scale=lora_scale,
    mu_dtype=mu_dtype,
  )
  return recipe(
    transforms.on_lora_pairs(direction, layout, native=True),
    transforms.add_decayed_weights(weight_decay, mask),
    transforms.scale_by_finite_rate(learning_rate),
    layout=layout,
    other=other,
    max_skips=max_consecutive_skips,
    learning_rate=learning_rate,
  )
