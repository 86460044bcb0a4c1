"""The shape of a decoder, and the options that tell the families apart."""

import dataclasses
import functools

import jax

from lora_opt.models.fields import COUNT, check_fields
from lora_opt.models.norms import NORMS

# `DecoderConfig.activation`: the function.
ACTIVATIONS = {
  'silu': jax.nn.silu,
  'relu': jax.nn.relu,
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
  'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and constants of a decoder; everything that fixes its computation.

  The defaults are Llama's; the other families are further options.

  Attributes:
    vocab_size: Rows of the embedding.
    embed_dim: Width of the residual stream.
    num_layers: Number of blocks.
    num_heads: Query heads.
    num_kv_heads: Key and value heads; divides `num_heads`.
    head_dim: Width of one head; even, for the rotary pairs.
    mlp_dim: Width of the MLP.
    rope_theta: Base of the rotary wavelengths.
    rope_divisors: One divisor per rotary frequency, or empty for none. Long
      context recipes (linear, Llama 3) are all of this form.
    norm_eps: Epsilon of the norms.
    tie_embeddings: Whether the output head is the embedding.
    max_length: Context length the weights were trained for.
    norm: 'rms', 'rms_plus_one' (the scale is stored less one) or 'layer'
      (with mean and bias).
    post_norms: Further norms after attention and MLP, before the residual.
    qk_norm: A norm over each head of queries and keys, before the rotation.
    activation: 'silu', 'relu', 'gelu' (exact) or 'gelu_tanh'.
    gated_mlp: down(activation(gate) * up), or without gate.
    attention_bias: Biases in the projections of the attention.
    qkv_bias: Biases in those of queries, keys and values alone.
    mlp_bias: Biases in those of the MLP.
    fused_qkv: One projection for queries, keys and values, in that order.
    learned_positions: A table of `max_length` positions, and no rotation.
    scale_embedding: Multiply embeddings by sqrt(embed_dim).
    attention_scale: Factor of the attention scores, by default
      head_dim^-0.5.
    attention_softcap: What the attention scores are capped at softly; None
      for nothing.
    logit_softcap: Likewise for the logits.
    window: Keys that a query of a windowed layer sees, itself included.
    windowed_layers: For each layer whether it is windowed; empty for none.
    local_rope_theta: `rope_theta` of the windowed layers, whose frequencies
      have no divisors then; None for that of the other layers.

  Raises:
    ValueError: If a setting is not of its type, out of all bounds, or the
      settings contradict each other.

  >>> DecoderConfig(64, 16, 1, num_heads=3, num_kv_heads=2, head_dim=4,
  ...               mlp_dim=32)
  Traceback (most recent call last):
    ...
  ValueError: num_heads=3 must be a multiple of num_kv_heads=2
  """

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  rope_theta: float = 10_000.0
  rope_divisors: tuple[float, ...] = ()
  norm_eps: float = 1e-5
  tie_embeddings: bool = True
  max_length: int = 2048
  norm: str = 'rms'
  post_norms: bool = False
  qk_norm: bool = False
  activation: str = 'silu'
  gated_mlp: bool = True
  attention_bias: bool = False
  qkv_bias: bool = False
  mlp_bias: bool = False
  fused_qkv: bool = False
  learned_positions: bool = False
  scale_embedding: bool = False
  attention_scale: float | None = None
  attention_softcap: float | None = None
  logit_softcap: float | None = None
  window: int = 0
  windowed_layers: tuple[bool, ...] = ()
  local_rope_theta: float | None = None

  def __post_init__(self):
    check_fields(self, window=(0, COUNT[1]))
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads={self.num_heads} must be a multiple of '
        f'num_kv_heads={self.num_kv_heads}'
      )
    if self.head_dim % 2:
      raise ValueError(f'head_dim={self.head_dim} must be even')
    self._check_count('rope_divisors', 'head_dim / 2', self.head_dim // 2)
    self._check_count('windowed_layers', 'num_layers', self.num_layers)
    for name, allowed in (('norm', NORMS), ('activation', ACTIVATIONS)):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'{name}={getattr(self, name)!r} must be one of {", ".join(allowed)}'
        )
    if any(self.windowed_layers) and self.window < 1:
      raise ValueError(
        f'window={self.window} must be at least 1 for windowed_layers'
      )

  def _check_count(self, name, meaning, count):
    length = len(getattr(self, name))
    if length not in (0, count):
      raise ValueError(
        f'{name} has {length} entries, must have {meaning} = {count} or none'
      )

  @property
  def projections(self) -> dict[str, tuple[int, int]]:
    """Module path of everything an adapter fits on: its (fan_in, fan_out)."""
    embed, heads = self.embed_dim, self.num_heads * self.head_dim
    kv_heads = self.num_kv_heads * self.head_dim
    attention = {'q': heads, 'k': kv_heads, 'v': kv_heads}
    if self.fused_qkv:
      attention = {'qkv': heads + 2 * kv_heads}
    mlp = ('gate', 'up') if self.gated_mlp else ('up',)
    return {
      **{f'layers/attention/{k}': (embed, v) for k, v in attention.items()},
      'layers/attention/o': (heads, embed),
      **{f'layers/mlp/{name}': (embed, self.mlp_dim) for name in mlp},
      'layers/mlp/down': (self.mlp_dim, embed),
      'embedding': (embed, self.vocab_size),
      'head': (embed, self.vocab_size),
    }
