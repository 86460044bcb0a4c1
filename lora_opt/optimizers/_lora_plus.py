"""LoRA+."""

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
def lora_plus(
  learning_rate: ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  lr_ratio: float = 4.0,
  embedding_ratio: float | None = None,
  embeddings: str = transforms.EMBEDDINGS,
  weight_decay: ScalarOrSchedule = 0.0,
  mask: Mask = None,
  mu_dtype: Any = None,
  layout: pairs.Layouts = pairs.AUTO,
  other: optax.GradientTransformation | None = None,
  max_consecutive_skips: int | None = MAX_SKIPS,
) -> optax.GradientTransformationExtraArgs:
  """LoRA+: AdamW with a larger learning rate for the up factor B.

  A moves with `learning_rate` and B with `lr_ratio * learning_rate`, weight
  decay included. B is the factor that starts at zero; the layout says which
  one that is.

  The paper found its ratio of 16 with the initialisation exchanged (A zero, B
  random). With the usual start, random A and zero B, which every layout here
  describes, 4 to 8 (Llama: 2 to 4) were better. Hence the default of 4.

  Args:
    learning_rate: learning rate of A; a float or a schedule.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    eps: added to the square root of the second moment.
    lr_ratio: learning rate of B divided by that of A.
    embedding_ratio: for adapters on embeddings, the learning rate of both
      factors divided by `learning_rate`. None: the same as for other adapters.
      The authors' code gives these adapters a separate rate of 1e-6. For the
      same effect, pass 1e-6 divided by the peak of `learning_rate`.
    embeddings: regular expression that is searched in the path of a module to
      find the adapters on embeddings. The default looks at the name of the
      module itself, not at the names of the modules around it.
    weight_decay: decoupled weight decay, multiplied by the learning rate of
      each factor.
    mask: function from the parameters to a tree of booleans, true for the
      leaves that decay. Default: all leaves.
    mu_dtype: dtype of the first moment.
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

  >>> import jax, jax.numpy as jnp
  >>> params = {'q': {'lora_a': jnp.ones((4, 1)), 'lora_b': jnp.zeros((1, 2))}}
  >>> tx = lora_plus(1e-3, lr_ratio=8.0)
  >>> gradients = jax.tree.map(jnp.ones_like, params)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> print(updates['q']['lora_b'].round(4))
  [[-0.008 -0.008]]

  References:
    Hayou et al., LoRA+: Efficient Low Rank Adaptation of Large Models,
    arXiv 2402.12354.
  """
  ratio = transforms.scale_by_lora_plus(
    lr_ratio, embedding_ratio=embedding_ratio, embeddings=embeddings
  )
  return recipe(
    transforms.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
    transforms.add_decayed_weights(weight_decay, mask),
    transforms.on_lora_pairs(ratio, layout, elementwise=True),
    transforms.scale_by_finite_rate(learning_rate),
    layout=layout,
    other=other,
    elementwise=True,
    max_skips=max_consecutive_skips,
    learning_rate=learning_rate,
  )
