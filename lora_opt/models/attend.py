"""Softmax attention, with an implementation chosen by platform and length.

  plain      all scores of a row at once: memory grows with the square of the
             length
  blockwise  block after block, in ordinary JAX operations
  splash     JAX's kernel for TPUs
  flash      JAX's kernel for NVIDIA GPUs
  auto       for rows of at most `SHORT` keys plain, or blockwise on CPUs; for
             longer rows the platform's kernel if it supports the computation,
             and blockwise otherwise. Plain for a bias that is a dense array,
             and for rows that the devices do not share evenly

The platform is the one that a program is lowered for, even when that happens
on another machine (`--run_mode=plan`). The choice for long rows is logged once.
"""

import functools
import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lora_opt.models import blockwise, flash, splash
from lora_opt.models.axes import is_split, on_shards, row_shards
from lora_opt.models.kept import kept, kept_in_rule
from lora_opt.models.offset_bias import OffsetBias, frozen
from lora_opt.models.softcap import capped
from lora_opt.models.visibility import Visibility, limit_of

LOGGER = logging.getLogger(__name__)

IMPLEMENTATIONS = ('auto', 'plain', 'blockwise', 'splash', 'flash')

# Up to this many keys in a row, accelerators compute all its scores at once.
SHORT = 512

# Results of the forward pass that the backward pass needs besides the inputs.
RESULTS = ('attended', 'attention_sums')


def check_implementation(name: str) -> None:
  """Raises ValueError if there is no implementation of this name."""
  if name not in IMPLEMENTATIONS:
    raise ValueError(
      f'attention={name!r} must be one of {", ".join(IMPLEMENTATIONS)}'
    )


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  seen: Visibility,
  *,
  scale: float | None = None,
  softcap: float | None = None,
  window: int | None = None,
  windowed: jax.Array | bool = True,
  bias: OffsetBias | jax.Array | None = None,
  implementation: str = 'auto',
) -> jax.Array:
  """Attention of queries to the keys that are visible to them.

  The result is named 'attended' for the policies of `jax.checkpoint`.

  Args:
    q: (batch, length, heads, head_dim); heads that share keys are adjacent.
    k: (batch, keys, kv_heads, head_dim).
    v: Like k.
    seen: Which keys are visible.
    scale: Factor of the scores; None for 1 / sqrt(head_dim).
    softcap: Scaled scores s become softcap * tanh(s / softcap); None for no
      cap. Cannot be combined with a bias.
    window: Most keys that a query sees, itself included; None for all.
    windowed: Scalar bool, whether `window` applies; it may be traced.
    bias: Added to the scores: an `OffsetBias`, or an array (1 or batch, heads,
      length, keys), which only 'plain' supports. Kernels compute no gradient
      of it.
    implementation: One of `IMPLEMENTATIONS`.

  Returns:
    (batch, length, heads, head_dim), of the type of q.

  Raises:
    ValueError: If the implementation does not support these arguments.
  """
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  if isinstance(windowed, bool):
    window, windowed = (window if windowed else None), None
  if not is_plain(implementation, k.shape[1]) and _is_dense(bias):
    implementation = _plain_instead(implementation)
  short = is_plain(implementation, k.shape[1])
  uneven = len(q) % row_shards() != 0  # kernels need equal shards of rows
  if implementation == 'plain' or (short and (uneven or _is_dense(bias))):
    out = _plain(q, k, v, seen, windowed, bias, scale, softcap, window)
    return kept(out, 'attended')
  group = q.shape[2] // k.shape[2]
  if group > 1 and is_split('heads') and not is_split('kv_heads'):
    # The query heads on one device may share key heads unevenly.
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
  if short:
    kernels = _SHORT_KERNELS
  else:
    kernels = _kernels(implementation, q, seen, window, bias, softcap)
  bias = None if bias is None else frozen(bias)
  settings = _Settings(scale, softcap, window, kernels)
  return _attended(settings, q, k, v, seen, windowed, bias)


def is_plain(implementation: str, keys: int) -> bool:
  """Whether accelerators compute all scores of this many keys at once."""
  short = implementation == 'auto' and keys <= SHORT
  return short or implementation == 'plain'


def plain(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array,
  *,
  scale: float | None,
  softcap: float | None = None,
  bias: OffsetBias | jax.Array | None = None,
) -> jax.Array:
  """Attention with all scores of a row at once.

  Args:
    q, k, v, scale, softcap, bias: As for `attend`.
    mask: (batch, length, keys) bool.

  Returns:
    (batch, length, heads, head_dim), of the type of q.
  """
  if isinstance(bias, OffsetBias):
    bias = bias.of_all(q.shape[1])
  if softcap is not None:
    assert bias is None
    return _capped(q, k, v, mask, scale, softcap)
  # `dot_product_attention` relies on implicit promotion to accumulate bfloat16
  # in float32.
  with jax.numpy_dtype_promotion('standard'):
    return jax.nn.dot_product_attention(
      q, k, v, bias=bias, mask=mask[:, None], scale=scale
    )


def _capped(q, k, v, mask, scale, softcap):
  """`plain` with a soft cap, which `dot_product_attention` does not support."""
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  rows = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
  scores = scale * jnp.einsum(
    'bqkgd,bskd->bkgqs', rows, k, preferred_element_type=jnp.float32
  )
  lowest = jnp.finfo(jnp.float32).min
  scores = jnp.where(mask[:, None, None], capped(scores, softcap), lowest)
  weights = jax.nn.softmax(scores).astype(v.dtype)
  return jnp.einsum('bkgqs,bskd->bqkgd', weights, v).reshape(q.shape)


def _plain(q, k, v, seen, windowed, bias, scale, softcap, window):
  mask = seen.mask(limit_of(window, windowed))
  return plain(q, k, v, mask, scale=scale, softcap=softcap, bias=bias)


def _plain_forward(q, k, v, seen, windowed, bias, **settings):
  """`plain` with the interface of a kernel; the sums it returns are zeros."""
  out = _plain(q, k, v, seen, windowed, bias, **settings)
  return out, jnp.zeros((len(q), q.shape[2], q.shape[1]), jnp.float32)


def _plain_backward(q, k, v, seen, windowed, bias, _, sums, change, **settings):
  del sums

  def again(q, k, v):
    return _plain(q, k, v, seen, windowed, bias, **settings)

  return jax.vjp(again, q, k, v)[1](change)


def _is_dense(bias):
  return bias is not None and not isinstance(bias, OffsetBias)


def _plain_instead(implementation):
  reason = 'scores have a bias of their own for each pair'
  if implementation != 'auto':
    raise ValueError(
      f"attention={implementation!r}: {reason}; take attention='auto'"
    )
  _say(f'plain ({reason})')
  return 'plain'


class _Settings(NamedTuple):
  """The static settings, known when a program is traced."""

  scale: float
  softcap: float | None
  window: int | None
  kernels: tuple[tuple[str, str], ...]  # (platform, key of `_KERNELS`)


_KERNELS = {
  'plain': (_plain_forward, _plain_backward),
  'blockwise': (blockwise.forward, blockwise.backward),
  'blockwise on CPUs': tuple(
    functools.partial(each, block=blockwise.BLOCK_ON_CPUS)
    for each in (blockwise.forward, blockwise.backward)
  ),
  'splash': (splash.forward, splash.backward),
  'flash': (flash.forward, flash.backward),
}
# Kernels emulated step by step on any platform, for tests and experiments.
_KERNELS |= {
  f'emulated {name}': tuple(
    functools.partial(each, emulated=True) for each in _KERNELS[name]
  )
  for name in ('splash', 'flash')
}
# For each platform the name of its kernel, and the function that says why the
# kernel cannot be used.
_OF_PLATFORM = {
  'tpu': ('splash', splash.refusal),
  'cuda': ('flash', flash.refusal),
}


# Pairs of a platform, or 'default', and the kernel to use on it.
_BLOCKWISE = (('cpu', 'blockwise on CPUs'), ('default', 'blockwise'))
_SHORT_KERNELS = (('cpu', 'blockwise on CPUs'), ('default', 'plain'))


def _kernels(implementation, *asked):
  """Chooses the kernels for long rows."""
  if implementation == 'blockwise':
    _say('blockwise')
    return _BLOCKWISE
  chosen, said = [], []
  for platform, (name, refusal) in _OF_PLATFORM.items():
    reason = refusal(*asked)
    if implementation == name:
      if reason:
        raise ValueError(f"attention={name!r}: {reason}; take attention='auto'")
      _say(f'{platform} {name}, elsewhere emulated, which is slow')
      return ((platform, name), ('default', f'emulated {name}'))
    if not reason:
      chosen.append((platform, name))
    said.append(f'{platform} {f"blockwise ({reason})" if reason else name}')
  _say(', '.join([*said, 'elsewhere blockwise']))
  return (*chosen, *_BLOCKWISE)


@functools.cache
def _say(what: str) -> None:
  LOGGER.info('attention to rows of more than %d keys: %s', SHORT, what)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attended(settings, q, k, v, seen, windowed, bias):
  return _forward(settings, q, k, v, seen, windowed, bias)[0]


def _attended_forward(settings, *given):
  results = _forward(settings, *given)
  results = tuple(map(kept_in_rule, results, RESULTS))
  return results[0], (*given, *results)


def _attended_backward(settings, residuals, cotangent):
  return *_backward(settings, *residuals, cotangent), None, None, None


_attended.defvjp(_attended_forward, _attended_backward)


def _forward(settings, *given):
  """The result, and the logarithms of the sums, (batch, heads, length)."""
  return on_shards(
    functools.partial(_on_platform, settings, 0),
    given,
    _names(*given),
    (_HEADS, ('batch', 'heads')),
  )


def _backward(settings, *given):
  """The gradients of q, k and v."""
  names = _names(*given[:6])
  return on_shards(
    functools.partial(_on_platform, settings, 1),
    given,
    (*names, _HEADS, ('batch', 'heads'), _HEADS),
    names[:3],
  )


_HEADS = ('batch', None, 'heads')


def _names(q, k, v, seen, windowed, bias):
  """Logical axes of a kernel's inputs; axes without a name are not split."""
  del v, windowed, bias
  kv_heads = _HEADS if k.shape[2] == q.shape[2] else ('batch', None, 'kv_heads')
  rows = jax.tree.map(lambda _: ('batch',), seen)
  return _HEADS, kv_heads, kv_heads, rows, (), ('heads',)


def _on_platform(settings, part, *given):
  branches = {
    platform: functools.partial(
      _KERNELS[name][part],
      scale=settings.scale,
      softcap=settings.softcap,
      window=settings.window,
    )
    for platform, name in settings.kernels
  }
  return jax.lax.platform_dependent(*given, **branches)
