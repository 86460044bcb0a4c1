"""The sizes of a decoder, and the options in which model families differ."""

import dataclasses
import functools

import jax

from lora_opt.models.fields import COUNT, check_fields
from lora_opt.models.norms import NORMS

# Values of `DecoderConfig.activation`: the function.
ACTIVATIONS = {
  'silu': jax.nn.silu,
  'relu': jax.nn.relu,
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
  'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and constants of a decoder: all that determines its computation.

  The defaults are Llama's; other families set other options.

  Attributes:
    vocab_size: Rows of the embedding.
    embed_dim: Width of the residual stream.
    num_layers: Number of blocks.
    num_heads: Query heads.
    num_kv_heads: Key and value heads; must divide `num_heads`.
    head_dim: Width of one head; must be even, for the rotary pairs.
    mlp_dim: Width of the MLP.
    rope_theta: Base of the rotary wavelengths.
    rotary_dim: How many of the first dimensions of a head are rotated; None for
      all.
    rope_divisors: One divisor per rotary frequency, or empty for none. Recipes
      for long contexts (linear, Llama 3, YaRN) can be written in this form.
    rope_gain: Factor of rotated queries and keys (YaRN, LongRoPE).
    long_rope_divisors: The divisors in texts of more than `rope_context`
      tokens (LongRoPE); empty to use `rope_divisors` there too.
    dynamic_rope: In texts of more than `rope_context` tokens, the base of the
      wavelengths grows with the length by this factor (NTK-aware scaling); None
      for no such growth.
    rope_context: See `long_rope_divisors` and `dynamic_rope`; None if neither
      is set.
    norm_eps: Epsilon of the norms.
    tie_embeddings: Whether the embedding is also the output head.
    max_length: Context length the weights were trained for.
    norm: 'rms', 'rms_plus_one' (the stored scale is the scale minus one) or
      'layer' (with mean and bias).
    pre_norms: Norms before attention and MLP.
    post_norms: Norms after attention and MLP, before the residual.
    qk_norm: A norm over each head of queries and keys, before the rotation.
    wide_qk_norm: Instead, one norm over all heads together.
    activation: 'silu', 'relu', 'gelu' (exact) or 'gelu_tanh'.
    gated_mlp: The MLP is down(activation(gate) * up), otherwise
      down(activation(up)).
    fused_gate: One projection for gate and up, in that order.
    attention_bias: Biases in all projections of the attention.
    qkv_bias: Biases in the projections of queries, keys and values only.
    mlp_bias: Biases in the projections of the MLP.
    fused_qkv: One projection for queries, keys and values, in that order.
    learned_positions: A learned table of `max_length` positions instead of
      rotations.
    scale_embedding: Multiply embeddings by sqrt(embed_dim).
    attention_scale: Factor of the attention scores, by default
      head_dim^-0.5.
    attention_softcap: Soft cap of the attention scores; None for no cap.
    logit_softcap: Soft cap of the logits; None for no cap.
    window: Most keys that a query of a windowed layer sees, itself included.
    windowed_layers: For each layer whether it is windowed; empty if none is.
    local_rope_theta: `rope_theta` of the windowed layers, to which no other
      `rope_...` option applies then; None to rotate them like the other layers.
    unrotated_layers: For each layer whether its queries and keys are not
      rotated; empty if all are rotated.

  Raises:
    ValueError: If a setting has the wrong type or is out of bounds, or the
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
    """Module path: (fan_in, fan_out) of every module that can be adapted."""
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
