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
  half_each: bool = False,
  max_relative_step: float | None = 0.1,
  weight_decay: ScalarOrSchedule = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """PoLoRA: steps of fixed length, orthogonal in a metric of the curvature.

  The metric of A B^T is diagonal on both sides: q along the inputs (m), p
  along the outputs (n). With the gradients G, the step of A is

    M_A <- b1 M_A + (1 - b1) G_A,      N_A = b1 M_A + (1 - b1) G_A,
    Q = diag(q / max(q) + damping),    P likewise from p,
    C_B = B^T P B + max(damping l, eps) I, l the largest eigenvalue of B^T P B,
    D_A = Q^(-1/2) msign(Q^(-1/2) N_A C_B^(-1/2)) C_B^(-1/2),
    A <- A - rho D_A / |D_A|,          rho = learning_rate / (|A| + |B|),
    q <- b2 q + (1 - b2) / r * the row sums of G_A o (G_A C_B^-1),

  where |.| is the largest singular value, o is the elementwise product and
  msign(U S V^T) = U V^T. The step of B has A and B, p and q exchanged, and
  starts from the same state. To first order, a step moves A B^T by at most
  `learning_rate` in the norm |.|, whatever the size of the gradient. So steps
  do not shrink by themselves: the rate must decay.

  Args:
    learning_rate: a float or a schedule; the length of a step of A B^T in the
      spectral norm. The paper's runs use 1e-2 to 3e-2.
    b1: decay of the momentum.
    b2: decay of q and p.
    eps: initial value of q and p, and the smallest damping of C. With 0, q and
      p start flat and only the relative damping counts.
    damping: the paper's delta. In float32 keep it above about 1e-5.
    lora_scale: the scale s in W + s A B^T. Steps are divided by it, so that
      `learning_rate` is the length of a step of W.
    half_each: whether rho of A is learning_rate / (2 |B|) and rho of B is
      learning_rate / (2 |A|), so that the step of each factor moves A B^T by
      half of `learning_rate`. (The paper has one rho.) With `lora_scale`, the
      path of s A B^T then is the same for every alpha.
    max_relative_step: with `half_each`, the length of a step of A is at most
      this fraction of |A|. Without a limit, steps of A are endless where B
      starts at zero. None: no limit.
    weight_decay: decoupled weight decay, a float or a schedule. It is
      multiplied by the learning rate. (The
      paper has none.)
    mask: function from the parameters to a tree of booleans, true for the
      leaves that decay. Default: all leaves.
    mu_dtype: dtype of the momentum.
    layout: where to find the pairs in the tree; see `lora_opt.pairs`.
    other: transformation for the leaves outside the pairs. Default: these
      leaves get zero updates.
    max_consecutive_skips: number of bad steps in a row that are skipped
      before updates become NaN (see `transforms.skip_nonfinite`). None: no
      limit.

  Returns:
    An optax transformation; `update` needs `params`.

  Raises:
    ValueError: if a setting is out of range; at init, if no valid pairs are
      found.

  >>> import jax.numpy as jnp
  >>> params = {'lora_a': jnp.ones((4, 1)), 'lora_b': jnp.zeros((1, 2))}
  >>> gradients = {'lora_a': jnp.zeros((4, 1)), 'lora_b': jnp.ones((1, 2))}
  >>> tx = polora(0.1)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['lora_b'].round(4))
  [[-0.0354 -0.0354]]

  Notes:
    The path of A B^T is the same for (A T, B T^-T) if T is orthogonal, but not
    for other T, since the damping and |A| + |B| are not invariant. With
    `half_each` it is also the same if T is a number. The state is half the size
    of Adam's, plus m + n numbers per pair, which are stored with a rank axis of
    length one.

    PoLoRA is made for noisy gradients. If they have low rank and are the same
    at every step, as in full-batch toy problems, q and p become their squares,
    and the two roots turn a row of G into a step of 1 / G: nearly all of the
    length goes where the gradient is smallest. There a `damping` of 0.1 helps.

    Defaults are those of the paper's table of settings. Its Algorithm 1 leaves
    out the damping in Q and P, and eps; both are as in two ports of the
    authors' code (nikhilgsh/polora). At B = 0 the paper uses the identity for
    C_B^(-1/2) and the code uses eps^(-1/2) I: msign and |D_A| cancel the
    difference. The ports compute roots and norms by eight polynomial steps or
    power iterations, and start the norms from vectors kept in the state. Here
    roots are accurate to rounding, and norms to 0.1 %, from products of r x r
    matrices and without state. (For factors of condition 300 and ranks 8 to 64,
    eight polynomial steps give the same D to 3e-4.) In float32 msign leaves
    directions below 1e-3 of the largest at zero (`lora_opt.linalg`), where
    eight steps would raise them in part.

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
    half_each=half_each,
    max_relative_step=max_relative_step,
    learning_rate=learning_rate,
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
