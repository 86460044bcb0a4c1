"""A Llama-family decoder: RMSNorm, rotary attention, SwiGLU, scanned layers."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from lora_opt.models.attention import Attention, LayerCache, rotary_angles
from lora_opt.models.axes import constrain
from lora_opt.models.config import DecoderConfig
from lora_opt.models.lora import LoraConfig, Projection
from lora_opt.models.norms import RMSNorm
from lora_opt.models.vocabulary import EmbeddingTable, Head, OutputHead

# What the backward pass keeps of a layer besides its input. The rest (norms,
# softmax, products of the gate) is cheaper to compute again than to read back.
SAVED = ('q', 'k', 'v', 'attended', 'middle', 'gate', 'up')

# `remat` setting: the policy of jax.checkpoint, None to keep nothing.
REMAT_POLICIES = {
  'projections': jax.checkpoint_policies.save_only_these_names(*SAVED),
  'full': jax.checkpoint_policies.nothing_saveable,
}


class GatedMLP(nn.Module):
  """down(silu(gate(x)) * up(x))."""

  config: DecoderConfig
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, length, embed) to the same shape."""
    settings = (self.lora, self.dtype, self.param_dtype)
    width = self.config.mlp_dim
    gate = Projection(width, ('embed', 'mlp'), *settings, name='gate')(x)
    up = Projection(width, ('embed', 'mlp'), *settings, name='up')(x)
    gate = checkpoint_name(constrain(gate, 'batch', None, 'mlp'), 'gate')
    up = checkpoint_name(constrain(up, 'batch', None, 'mlp'), 'up')
    down = Projection(x.shape[-1], ('mlp', 'embed'), *settings, name='down')
    return down(jax.nn.silu(gate) * up)


class Block(nn.Module):
  """One layer: attention and MLP, each after a norm and around a residual."""

  config: DecoderConfig
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, cache, angles, mask, slot):
    """Maps (batch, length, embed) to the same shape; see `Attention`."""
    settings = (self.config, self.lora, self.dtype, self.param_dtype)

    def norm(name):
      return RMSNorm(self.config.norm_eps, self.param_dtype, name=name)

    attended, cache = Attention(*settings, name='attention')(
      norm('attention_norm')(x), angles, mask, cache, slot
    )
    x = constrain(x + attended, 'batch', None, None)
    x = checkpoint_name(x, 'middle')
    x += GatedMLP(*settings, name='mlp')(norm('mlp_norm')(x))
    return constrain(x, 'batch', None, None), cache


class Decoder(nn.Module):
  """Embedding, scanned blocks and final norm.

  Attributes:
    config: Sizes.
    lora: Adapter settings, or None for the base alone.
    dtype: Type of the computation.
    param_dtype: Type the base is stored in.
    remat: 'projections' keeps the outputs of the projections for the backward
      pass, 'full' only the input of each layer, 'none' everything.
    unroll: Layers per step of the scan.
  """

  config: DecoderConfig
  lora: LoraConfig | None = None
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  remat: str = 'projections'
  unroll: int = 1

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    cache: LayerCache | None = None,
    slot: jax.Array | None = None,
  ) -> tuple[jax.Array, Head, LayerCache | None]:
    """Runs the decoder up to, not including, the product with its head.

    Args:
      tokens: (batch, length) int32.
      positions: (batch, length) int32.
      mask: (batch, length, keys) bool.
      cache: Keys and values stacked over layers on axis 0, or None.
      slot: Scalar int32, the cache slot of the first token.

    Returns:
      Hidden states (batch, length, embed), the head, and the cache with the
      new keys and values.
    """
    c = self.config
    types = (self.lora, self.dtype, self.param_dtype)
    x, table = EmbeddingTable(
      c.vocab_size, c.embed_dim, *types, name='embedding'
    )(tokens)
    x = constrain(x, 'batch', None, None)
    block = Block
    if self.remat != 'none':
      policy = REMAT_POLICIES[self.remat]
      block = nn.remat(Block, policy=policy, prevent_cse=False)
    layers = nn.scan(
      block,
      variable_axes={'params': 0, 'lora': 0},
      split_rngs={'params': True, 'lora': True, 'dropout': True},
      in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
      length=c.num_layers,
      unroll=self.unroll,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(c, self.lora, self.dtype, self.param_dtype, name='layers')
    x, cache = layers(x, cache, rotary_angles(c, positions), mask, slot)
    x = RMSNorm(c.norm_eps, self.param_dtype, name='final_norm')(x)
    tied = table if c.tie_embeddings else None
    return x, OutputHead(c.vocab_size, *types, name='head')(x, tied), cache

  def example_inputs(self) -> tuple[jax.Array, ...]:
    """Arguments of `__call__` for one token."""
    one = jnp.zeros((1, 1), jnp.int32)
    return one, one, jnp.ones((1, 1, 1), bool)
