"""LoRA+: the zero factor learns faster."""

import re

import jax.numpy as jnp
import optax

# Modules that libraries call their embeddings: embed_tokens, wte, shared ...
EMBEDDINGS = r'(?i)embed|\b(wte|wpe|shared)\b'


def scale_by_lora_plus(
  lr_ratio: float = 4.0,
  *,
  embedding_ratio: float | None = None,
  embeddings: str = EMBEDDINGS,
) -> optax.GradientTransformation:
  """Multiplies the updates of every up factor B by `lr_ratio`.

  Stands behind everything that normalises, and behind weight decay: the
  factor's whole learning rate is scaled.

  Args:
    lr_ratio: learning rate of B over that of A.
    embedding_ratio: what the updates of both factors of an adapter on an
      embedding are multiplied by instead; None: as of any other.
    embeddings: regular expression, searched in the path of the module, that
      says which these are.

  Returns:
    A transformation over pairs, for `on_lora_pairs`.

  References:
    Hayou et al., LoRA+, arXiv 2402.12354.
  """
  is_embedding = re.compile(embeddings).search

  def scaled(ratio, x):
    return jnp.asarray(ratio, x.dtype) * x

  def update(updates, params):
    del params
    new = {}
    for name, pair in updates.items():
      if embedding_ratio is not None and is_embedding(name):
        new[name] = type(pair)(*(scaled(embedding_ratio, x) for x in pair))
      else:
        new[name] = pair._replace(b=scaled(lr_ratio, pair.b))
    return new

  return optax.stateless(update)
