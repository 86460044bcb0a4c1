"""LoRA+: a larger learning rate for the factor that starts at zero."""

import re

import jax.numpy as jnp
import optax

# Matches a module by its own name, the last component of its path. Libraries
# call their embeddings embed_tokens, word_embeddings, token_embedder, Embed_0,
# wte ... A module inside a module of such a name, such as the projection in
# text_embedding_model/q, does not match, and neither does an embedding of image
# patches.
EMBEDDINGS = (
  r'(?i)(?:^|[./])'
  r'(?:(?!patch|un_?embed)\w*embed(?:s|der|dings?)?'
  r'(?:_(?:tokens|positions|in|table|tokens_per_layer))?(?:_\d+)?'
  r'|wte|wpe|shared)'
  # The name of the weight, if the library has it in the path as well.
  r'(?:[./](?:embeddings?|weight|kernel|input_embedding))?$'
)


def scale_by_lora_plus(
  lr_ratio: float = 4.0,
  *,
  embedding_ratio: float | None = None,
  embeddings: str = EMBEDDINGS,
) -> optax.GradientTransformation:
  """Multiplies the updates of every up factor B by `lr_ratio`.

  It belongs after everything that normalises, and after weight decay, so that
  it scales the whole learning rate of the factor.

  Args:
    lr_ratio: learning rate of B divided by that of A.
    embedding_ratio: for adapters on embeddings, the number that multiplies the
      updates of both factors instead. None: the same as for other adapters.
    embeddings: regular expression that is searched in the path of a module
      (with dots, without the 'lora' at its end) to find the adapters on
      embeddings.

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
