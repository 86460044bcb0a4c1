"""CLIP's text encoder: a causal transformer with pre-normalisation."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_opt.models.attend import attend
from lora_opt.models.axes import constrain, gathered
from lora_opt.models.diffusion.activations import ACTIVATIONS
from lora_opt.models.diffusion.adapted import Adapted
from lora_opt.models.diffusion.clip_text_config import ClipTextConfig
from lora_opt.models.lora import Projection
from lora_opt.models.norms import LayerNorm
from lora_opt.models.visibility import Visibility


class ClipAttention(Adapted):
  """Causal self-attention, with biases."""

  config: ClipTextConfig
  attention: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (rows, length, embed) to the same shape."""
    c = self.config
    rows, length, width = x.shape

    def project(name, axes, x):
      return Projection(width, axes, *self.settings, use_bias=True, name=name)(
        x
      )

    q, k, v = (
      project(name, ('embed', 'heads'), x).reshape(
        rows, length, c.num_heads, width // c.num_heads
      )
      for name in ('q_proj', 'k_proj', 'v_proj')
    )
    seen = Visibility(jnp.ones((rows, length), jnp.int32))
    out = attend(q, k, v, seen, implementation=self.attention)
    return project('out_proj', ('heads', 'embed'), out.reshape(x.shape))


class ClipMLP(Adapted):
  """The MLP fc2(activation(fc1(x))), with biases."""

  config: ClipTextConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (rows, length, embed) to the same shape."""
    c = self.config

    def linear(width, axes, name):
      return Projection(width, axes, *self.settings, use_bias=True, name=name)

    wide = linear(c.mlp_dim, ('embed', 'mlp'), 'fc1')(x)
    wide = ACTIVATIONS[c.activation](wide)
    return linear(c.embed_dim, ('mlp', 'embed'), 'fc2')(wide)


class ClipBlock(Adapted):
  """One layer; attributes as in `ClipText`."""

  config: ClipTextConfig
  attention: str

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    """Maps (rows, length, embed) to the same shape, and None for `nn.scan`."""
    c = self.config

    def norm(name):
      return LayerNorm(c.norm_eps, self.param_dtype, name=name)

    attention = ClipAttention(
      *self.settings, c, self.attention, name='self_attn'
    )
    x += attention(norm('layer_norm1')(x))
    x += ClipMLP(*self.settings, c, name='mlp')(norm('layer_norm2')(x))
    return constrain(x, 'batch', None, None), None


class ClipText(Adapted):
  """Embeddings, scanned blocks and a final norm.

  Attributes:
    config: Sizes.
    remat: 'full' recomputes every block in the backward pass.
    attention: How attention is computed, see `lora_opt.models.attend`.
  """

  config: ClipTextConfig
  remat: str = 'none'
  attention: str = 'auto'

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Encodes texts.

    Args:
      tokens: (rows, length) int32; length is at most `max_length`. Padding is
        read like any other token, as in Stable Diffusion.

    Returns:
      (rows, length, embed).

    Raises:
      ValueError: More tokens than positions.
    """
    c, length = self.config, tokens.shape[1]
    if length > c.max_length:
      raise ValueError(
        f'texts of {length} tokens are too long for a text encoder with '
        f'{c.max_length} positions'
      )
    x = self._table('embeddings.token_embedding', c.vocab_size, 'vocab')[tokens]
    places = self._table('embeddings.position_embedding', c.max_length, None)
    x += jnp.broadcast_to(places[:length][None], x.shape)
    block = ClipBlock
    if self.remat == 'full':
      block = nn.remat(ClipBlock, prevent_cse=False)
    layers = nn.scan(
      block,
      variable_axes={'params': 0, 'lora': 0},
      split_rngs={'params': True, 'lora': True, 'dropout': True},
      length=c.num_layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(*self.settings, c, self.attention, name='encoder.layers')
    x, _ = layers(constrain(x, 'batch', None, None))
    return LayerNorm(c.norm_eps, self.param_dtype, name='final_layer_norm')(x)

  def _table(self, name: str, rows: int, axis: str | None) -> jax.Array:
    table = _Table(
      rows, self.config.embed_dim, axis, self.param_dtype, name=name
    )()
    return gathered(table.astype(self.dtype), axis, 'embed')


class _Table(nn.Module):
  """A vector for each token or position."""

  rows: int
  width: int
  axis: str | None
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self) -> jax.Array:
    init = nn.with_logical_partitioning(
      nn.initializers.normal(0.02), (self.axis, 'embed')
    )
    shape = (self.rows, self.width)
    return self.param('table', init, shape, self.param_dtype)
