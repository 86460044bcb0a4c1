"""A decoder of scanned layers; its config selects the model family."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_opt.models.attend import RESULTS
from lora_opt.models.attention import (
  Attention,
  LayerCache,
  View,
)
from lora_opt.models.axes import constrain
from lora_opt.models.config import ACTIVATIONS, DecoderConfig
from lora_opt.models.kept import kept
from lora_opt.models.lora import LoraConfig, Projection
from lora_opt.models.norms import NORMS
from lora_opt.models.rotary import rotation
from lora_opt.models.step_cache import StepCache
from lora_opt.models.unstacked import layer_of
from lora_opt.models.visibility import Visibility
from lora_opt.models.vocabulary import EmbeddingTable, Head, OutputHead

# Stacked over all layers, or a list with one for each layer.
Cache = LayerCache | list[StepCache] | None

# What is kept of a layer for the backward pass, besides its input. The rest
# (norms, softmax, products of the gate) is cheaper to recompute than to read
# from memory.
SAVED = ('q', 'k', 'v', *RESULTS, 'middle', 'gate', 'up')

# Policies of jax.checkpoint by value of `remat`. The value 'none', which keeps
# everything, needs no policy.
REMAT_POLICIES = {
  'projections': jax.checkpoint_policies.save_only_these_names(*SAVED),
  'full': jax.checkpoint_policies.nothing_saveable,
}


class Kind(NamedTuple):
  """Properties of a layer: () bool each, or None if all layers are alike."""

  windowed: jax.Array | None = None
  rotated: jax.Array | None = None


class MLP(nn.Module):
  """down(activation(gate(x)) * up(x)), or down(activation(up(x)))."""

  config: DecoderConfig
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, length, embed) to the same shape."""
    c = self.config
    settings = (self.lora, self.dtype, self.param_dtype, c.mlp_bias)
    activation = ACTIVATIONS[c.activation]

    def widened(name, times=1):
      axes, width = ('embed', 'mlp'), times * c.mlp_dim
      y = Projection(width, axes, *settings, name=name)(x)
      return constrain(y, 'batch', None, 'mlp')

    if c.fused_gate:
      gate, up = jnp.split(widened('gate_up', 2), 2, axis=-1)
    else:
      gate = widened('gate') if c.gated_mlp else None
      up = widened('up')
    up = kept(up, 'up')
    if gate is None:
      hidden = activation(up)
    else:
      hidden = activation(kept(gate, 'gate')) * up
    down = Projection(x.shape[-1], ('mlp', 'embed'), *settings, name='down')
    return down(hidden)


class Block(nn.Module):
  """One layer: attention and MLP, each with norms and inside a residual."""

  config: DecoderConfig
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype
  attention: str = 'auto'

  @nn.compact
  def __call__(self, x, cache, kind, view, local_view, slot):
    """Maps x (batch, length, embed) to the same shape.

    Args:
      x: Hidden states.
      cache: The cache of this layer, or None.
      kind: Whether this layer is windowed, and whether it rotates queries and
        keys.
      view: The view of the layers that are not windowed, or of all layers.
      local_view: The view of the windowed layers, if only some are windowed.
      slot: See `Attention`.

    Returns:
      New hidden states, and the new cache.
    """
    c = self.config
    settings = (c, self.lora, self.dtype, self.param_dtype)

    def norm(name):
      return NORMS[c.norm](c.norm_eps, self.param_dtype, name=name)

    if kind.windowed is not None:
      # The views differ only in their rotation: `Attention` applies the window.
      turns = jax.tree.map(
        lambda local, other: jnp.where(kind.windowed, local, other),
        local_view.rotation,
        view.rotation,
      )
      view = view._replace(rotation=turns)
    if kind.rotated is not None:
      view = view._replace(rotation=view.rotation.where(kind.rotated))
    attention = Attention(*settings, self.attention, name='attention')
    y = norm('attention_norm')(x) if c.pre_norms else x
    attended, cache = attention(y, view, kind.windowed, cache, slot)
    if c.post_norms:
      attended = norm('attention_post_norm')(attended)
    x = constrain(x + attended, 'batch', None, None)
    x = kept(x, 'middle')
    y = norm('mlp_norm')(x) if c.pre_norms else x
    y = MLP(*settings, name='mlp')(y)
    if c.post_norms:
      y = norm('mlp_post_norm')(y)
    return constrain(x + y, 'batch', None, None), cache


class _Layer(nn.Module):
  """One block, with the same module path as in the stack of all layers."""

  config: DecoderConfig
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, *inputs):
    """Maps (batch, length, embed) to the same shape; see `Block`."""
    settings = (self.config, self.lora, self.dtype, self.param_dtype)
    return Block(*settings, name='layers')(*inputs)


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
    attention: How attention is computed, see `lora_opt.models.attend`.
  """

  config: DecoderConfig
  lora: LoraConfig | None = None
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  remat: str = 'projections'
  unroll: int = 1
  attention: str = 'auto'

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array,
    seen: Visibility | jax.Array,
    cache: Cache = None,
    slot: jax.Array | None = None,
    lengths: jax.Array | None = None,
  ) -> tuple[jax.Array, Head, Cache]:
    """Runs the decoder up to, but not including, the product with its head.

    Args:
      tokens: (batch, length) int32.
      positions: (batch, length) int32.
      seen: Which tokens each token sees; with a list of caches which slots,
        (batch, 1, slots) bool.
      cache: None; or keys and values stacked over layers on axis 0, to be
        filled from the first slot on; or a list with one cache per layer, to
        which one token is added. With a list the layers are not scanned: see
        `_in_turn`.
      slot: Scalar int32, the slot of the token that is added.
      lengths: (batch, length or 1) int32, number of tokens in the text that
        each token belongs to; None if rotations do not depend on it.

    Returns:
      Hidden states (batch, length, embed), the head, and the cache with the
      new keys and values.
    """
    c = self.config
    types = (self.lora, self.dtype, self.param_dtype)
    x, table = self._embedded(tokens, positions)
    x = constrain(x, 'batch', None, None)
    layers = self._in_turn if isinstance(cache, list) else self._scanned()
    views = _views(c, positions, lengths, seen, slot)
    x, cache = layers(x, cache, *views, slot)
    x = NORMS[c.norm](c.norm_eps, self.param_dtype, name='final_norm')(x)
    tied = table if c.tie_embeddings else None
    head = OutputHead(c.vocab_size, *types, c.logit_softcap, name='head')
    return x, head(x, tied), cache

  def _scanned(self):
    block = Block
    if self.remat != 'none':
      policy = REMAT_POLICIES[self.remat]
      block = nn.remat(Block, policy=policy, prevent_cse=False)
    return nn.scan(
      block,
      variable_axes={'params': 0, 'lora': 0},
      split_rngs={'params': True, 'lora': True, 'dropout': True},
      in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast),
      length=self.config.num_layers,
      unroll=self.unroll,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(
      self.config,
      self.lora,
      self.dtype,
      self.param_dtype,
      self.attention,
      name='layers',
    )

  def _in_turn(self, x, caches, kind, view, local_view, slot):
    """Runs layer after layer without a scan, each with its own cache.

    A scan would copy every layer's weights and cache out of the stack, and the
    cache back into it: for one token that is most of the work. The weights
    may be from `unstacked`.
    """
    layer = _Layer(
      self.config, self.lora, self.dtype, self.param_dtype, parent=None
    )
    stacks = {
      kind: {'layers': tree['layers']}
      for kind, tree in self.variables.items()
      if 'layers' in tree
    }
    new = []
    for i, cache in enumerate(caches):
      own = layer_of(stacks, i)
      local = kind.windowed is not None and self.config.windowed_layers[i]
      own_view = local_view if local else view
      if kind.rotated is not None and self.config.unrotated_layers[i]:
        own_view = own_view._replace(rotation=None)
      x, cache = layer.apply(own, x, cache, Kind(), own_view, None, slot)
      new.append(cache)
    return x, new

  def example_inputs(self) -> tuple[jax.Array, ...]:
    """Arguments of `__call__` for one token."""
    one = jnp.zeros((1, 1), jnp.int32)
    return one, one, Visibility(one)

  def _embedded(self, tokens, positions):
    """Embeddings (batch, length, embed) and their table (vocab, embed)."""
    c = self.config
    types = (self.lora, self.dtype, self.param_dtype)
    embedding = EmbeddingTable(
      c.vocab_size, c.embed_dim, *types, name='embedding'
    )
    x, table = embedding(tokens)
    if c.scale_embedding:
      x *= jnp.asarray(c.embed_dim**0.5, self.dtype)
    if c.learned_positions:
      init = nn.with_logical_partitioning(
        nn.initializers.normal(0.02), ('position', 'embed')
      )
      shape = (c.max_length, c.embed_dim)
      rows = self.param('positions', init, shape, self.param_dtype)
      # A position without a row is NaN rather than silently the last one.
      x += (
        rows.at[positions]
        .get(mode='fill', fill_value=jnp.nan)
        .astype(self.dtype)
      )
    return x, table


def _views(config, positions, lengths, seen, slot):
  """The kinds and views of the layers.

  Returns:
    The kinds of all layers, the view of the layers that are not windowed, and
    the view of the windowed ones. If all layers are alike in this, the view of
    all layers, and None.
  """
  c, rotated = config, None
  if any(c.unrotated_layers) and not c.learned_positions:
    rotated = ~jnp.array(c.unrotated_layers)
  view = View(rotation(c, positions, lengths), seen)
  if not any(c.windowed_layers):
    return Kind(None, rotated), view, None
  if not isinstance(seen, Visibility):
    distance = slot - jnp.arange(seen.shape[2])
    seen = seen & (distance < c.window)[None, None]
  local = View(rotation(c, positions, lengths, local=True), seen)
  if all(c.windowed_layers):
    return Kind(None, rotated), local, None
  return Kind(jnp.array(c.windowed_layers), rotated), view, local
