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
    rotary_dim: Dimensions of a head that are rotated, the first; None for all.
    rope_divisors: One divisor per rotary frequency, or empty for none. Long
      context recipes (linear, Llama 3, YaRN) are of this form.
    rope_gain: What rotated queries and keys are multiplied by (YaRN, LongRoPE).
    long_rope_divisors: The divisors in texts of more than `rope_context`
      tokens (LongRoPE); empty for the same.
    dynamic_rope: In such texts the base of the wavelengths grows with the
      length, by this factor (NTK-aware scaling); None for none.
    rope_context: See these two.
    norm_eps: Epsilon of the norms.
    tie_embeddings: Whether the output head is the embedding.
    max_length: Context length the weights were trained for.
    norm: 'rms', 'rms_plus_one' (the scale is stored less one) or 'layer'
      (with mean and bias).
    pre_norms: Norms before attention and MLP.
    post_norms: Norms after attention and MLP, before the residual.
    qk_norm: A norm over each head of queries and keys, before the rotation.
    wide_qk_norm: One over all heads together instead.
    activation: 'silu', 'relu', 'gelu' (exact) or 'gelu_tanh'.
    gated_mlp: down(activation(gate) * up), or without gate.
    fused_gate: One projection for gate and up, in that order.
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
    local_rope_theta: `rope_theta` of the windowed layers, which have nothing
      else of `rope_...` then; None for that of the other layers.
    unrotated_layers: For each layer whether its queries and keys are left as
      they are; empty for none.

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
  rotary_dim: int | None = None
  rope_divisors: tuple[float, ...] = ()
  rope_gain: float = 1.0
  long_rope_divisors: tuple[float, ...] = ()
  dynamic_rope: float | None = None
  rope_context: int | None = None
  norm_eps: float = 1e-5
  tie_embeddings: bool = True
  max_length: int = 2048
  norm: str = 'rms'
  pre_norms: bool = True
  post_norms: bool = False
  qk_norm: bool = False
  wide_qk_norm: bool = False
  activation: str = 'silu'
  gated_mlp: bool = True
  fused_gate: bool = False
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
  unrotated_layers: tuple[bool, ...] = ()

  def __post_init__(self):
    check_fields(self, window=(0, COUNT[1]))
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads={self.num_heads} must be a multiple of '
        f'num_kv_heads={self.num_kv_heads}'
      )
    self._check_rotation()
    for name in ('windowed_layers', 'unrotated_layers'):
      self._check_count(name, 'num_layers', self.num_layers)
    for name, allowed in (('norm', NORMS), ('activation', ACTIVATIONS)):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'{name}={getattr(self, name)!r} must be one of {", ".join(allowed)}'
        )
    if any(self.windowed_layers) and self.window < 1:
      raise ValueError(
        f'window={self.window} must be at least 1 for windowed_layers'
      )
    if self.qk_norm and self.wide_qk_norm:
      raise ValueError('qk_norm and wide_qk_norm exclude each other')
    if self.fused_gate and not self.gated_mlp:
      raise ValueError('fused_gate needs gated_mlp')

  def _check_rotation(self):
    if self.head_dim % 2:
      raise ValueError(f'head_dim={self.head_dim} must be even')
    width, meaning = self.head_dim, 'head_dim / 2'
    if self.rotary_dim is not None:
      width, meaning = self.rotary_dim, 'rotary_dim / 2'
      if width % 2 or width > self.head_dim:
        raise ValueError(
          f'rotary_dim={width} must be even and at most '
          f'head_dim={self.head_dim}'
        )
    for name in ('rope_divisors', 'long_rope_divisors'):
      self._check_count(name, meaning, width // 2)
    if self.long_rope_divisors and not self.rope_divisors:
      raise ValueError('long_rope_divisors need rope_divisors for short texts')
    depends = bool(self.long_rope_divisors) or self.dynamic_rope is not None
    if depends != (self.rope_context is not None):
      raise ValueError(
        f'rope_context={self.rope_context} belongs to long_rope_divisors or '
        'dynamic_rope: give both or neither'
      )
    if self.dynamic_rope is not None and width < 4:
      raise ValueError('dynamic_rope needs at least 4 rotated dimensions')

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
    mlp = dict.fromkeys(
      ('gate', 'up') if self.gated_mlp else ('up',), self.mlp_dim
    )
    if self.fused_gate:
      mlp = {'gate_up': 2 * self.mlp_dim}
    return {
      **{f'layers/attention/{k}': (embed, v) for k, v in attention.items()},
      'layers/attention/o': (heads, embed),
      **{f'layers/mlp/{k}': (embed, v) for k, v in mlp.items()},
      'layers/mlp/down': (self.mlp_dim, embed),
      'embedding': (embed, self.vocab_size),
      'head': (embed, self.vocab_size),
    }
