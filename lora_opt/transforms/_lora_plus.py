"""LoRA+: the zero factor learns faster."""

import jax
import optax


def scale_by_lora_plus(lr_ratio: float = 4.0) -> optax.GradientTransformation:
  """Multiplies the updates of every up factor B by `lr_ratio`.

  Stands behind everything that normalises, and behind weight decay: the
  factor's whole learning rate is scaled.

  Args:
    lr_ratio: learning rate of B over that of A.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.

  References:
    Hayou et al., LoRA+, arXiv 2402.12354.
  """

  def update(updates, params):
    del params
    return {
      name: pair._replace(b=jax.numpy.asarray(lr_ratio, pair.b.dtype) * pair.b)
      for name, pair in updates.items()
    }

  return optax.stateless(update)
