"""LoRA+: the zero factor learns faster."""

import re

import jax.numpy as jnp
import optax

# A module by its own name, the last component of its path, as libraries call
# their embeddings: embed_tokens, word_embeddings, token_embedder, Embed_0, wte
# ... What lies inside of a module that is called so, as the projection in
# text_embedding_model/q, is none, and neither is one of patches of an image.
EMBEDDINGS = (
  r'(?i)(?:^|[./])'
  r'(?:(?!patch|un_?embed)\w*embed(?:s|der|dings?)?'
  r'(?:_(?:tokens|positions|in|table|tokens_per_layer))?(?:_\d+)?'
  r'|wte|wpe|shared)'
  # The name of the weight, where a library has it in the path as well.
  r'(?:[./](?:embeddings?|weight|kernel|input_embedding))?$'
)


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
    embeddings: regular expression, searched in the path of the module (with
      dots, without the 'lora' at its end), that says which these are.

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
      if embedding_ratio is not None and is_embedding(
        name.removesuffix('.lora')
      ):
        new[name] = type(pair)(*(scaled(embedding_ratio, x) for x in pair))
      else:
        new[name] = pair._replace(b=scaled(lr_ratio, pair.b))
    return new

  return optax.stateless(update)
