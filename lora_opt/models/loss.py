"""Cross-entropy of every token without the full matrix of logits.

Positions are processed in chunks, and the whole vocabulary table is read for
each chunk. On TPUs, chunks of 256 positions leave the matrix units idle a third
of the time, and chunks of 512 do not; larger ones gain almost nothing and take
more memory (experiments/compiled_steps). The size is chosen when the program is
lowered, because only then the platform is known.
"""

import functools

import jax
import jax.numpy as jnp

from lora_opt.models.axes import row_shards
from lora_opt.models.products import product_by_turned
from lora_opt.models.softcap import capped, slope

# Default number of positions whose logits a device holds at once.
ROWS_ON_CPUS, ROWS = 256, 512


def project_to_vocabulary(
  hidden: jax.Array,
  head: jax.Array,
  codes: jax.Array | None = None,
  up: jax.Array | None = None,
  softcap: float | None = None,
) -> jax.Array:
  """Logits in float32: hidden @ head.T, plus codes @ up of an adapter.

  Args:
    hidden: (..., embed).
    head: (vocab, embed) of the same type.
    codes: (..., rank), `lora.adapter_code` of `hidden` for the head's adapter,
      or None.
    up: (rank, vocab), the adapter's up factor, or None.
    softcap: Soft cap of the logits; None for no cap.

  Returns:
    (..., vocab) float32.
  """
  logits = product_by_turned(hidden, head)
  if codes is not None:
    rows = codes.reshape(-1, codes.shape[-1])
    change = jnp.dot(rows, up, preferred_element_type=jnp.float32)
    logits += change.reshape(logits.shape)
  return capped(logits, softcap)


def adapted_cross_entropy(
  hidden: jax.Array,
  head: jax.Array,
  codes: jax.Array,
  up: jax.Array,
  targets: jax.Array,
  needed: jax.Array,
  chunk_rows: int | None,
  softcap: float | None = None,
) -> jax.Array:
  """`token_cross_entropy` for a head with an adapter.

  The gradient of `up` is a sum over positions with weights that are only known
  in the backward pass, so that pass recomputes the logits of each chunk.

  Args:
    hidden: (batch, length, embed).
    head: (vocab, embed). Frozen: its gradient is defined as zero.
    codes: (batch, length, rank), `lora.adapter_code` of `hidden`.
    up: (rank, vocab), the adapter's up factor.
    targets: (batch, length) int32.
    needed: (batch, length) bool; the loss is 0 where it is False.
    chunk_rows: Number of positions whose logits a device holds at once; None to
      choose it by platform.
    softcap: Soft cap of the logits; None for no cap.

  Returns:
    (batch, length) float32.
  """

  @jax.checkpoint
  def losses(both, head, targets, needed):
    hidden, codes = jnp.split(both, [head.shape[1]], axis=-1)
    logits = project_to_vocabulary(hidden, head, codes, up, softcap)
    return _losses(logits, targets, needed)

  both = jnp.concatenate([hidden, codes], axis=-1)
  head = jax.lax.stop_gradient(head)
  return _over_chunks(losses, both, head, targets, needed, chunk_rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def token_cross_entropy(
  hidden: jax.Array,
  head: jax.Array,
  targets: jax.Array,
  needed: jax.Array,
  chunk_rows: int | None,
  softcap: float | None = None,
) -> jax.Array:
  """-log softmax(hidden @ head.T)[target] at each position that is needed.

  A device holds the logits of at most about `chunk_rows` positions at a time.
  The loss of a position depends only on its own hidden state, so its gradient
  is (softmax - one_hot) @ head times the incoming scalar (with a soft cap, each
  logit's term is also multiplied by the slope of the cap). When a gradient is
  taken, the forward pass computes that vector while it has the logits, and the
  backward pass is one product instead of a second pass over the vocabulary.

  Args:
    hidden: (batch, length, embed).
    head: (vocab, embed). Frozen: its gradient is defined as zero.
    targets: (batch, length) int32.
    needed: (batch, length) bool; the loss is 0 where it is False.
    chunk_rows: Number of positions whose logits a device holds at once, but at
      least one time step of the whole batch. None to choose it by platform.
    softcap: Soft cap of the logits; None for no cap.

  Returns:
    (batch, length) float32.
  """
  function = functools.partial(_chunk_losses, softcap)
  return _over_chunks(function, hidden, head, targets, needed, chunk_rows)


def _forward(hidden, head, targets, needed, chunk_rows, softcap):
  function = functools.partial(_chunk_losses_and_gradient, softcap)
  losses, unit_gradient = _over_chunks(
    function, hidden, head, targets, needed, chunk_rows
  )
  return losses, unit_gradient


def _backward(chunk_rows, softcap, unit_gradient, cotangent):
  del chunk_rows, softcap
  gradient = cotangent[..., None] * unit_gradient.astype(jnp.float32)
  return gradient.astype(unit_gradient.dtype), None, None, None


token_cross_entropy.defvjp(_forward, _backward)


def _over_chunks(function, hidden, head, targets, needed, chunk_rows):
  over = functools.partial(_over_chunks_of, function)
  arguments = (hidden, head, targets, needed)
  if chunk_rows is not None:
    return over(chunk_rows, *arguments)
  return jax.lax.platform_dependent(
    *arguments,
    cpu=functools.partial(over, ROWS_ON_CPUS),
    default=functools.partial(over, ROWS),
  )


def _over_chunks_of(function, chunk_rows, hidden, head, targets, needed):
  # Chunks are slices of time, so a sharded batch axis stays sharded.
  batch, length = targets.shape
  steps = max(1, min(length, chunk_rows * row_shards() // batch))
  chunks = -(-length // steps)
  order = jnp.argsort(~needed, axis=1)  # needed positions first
  back = jnp.argsort(order, axis=1)

  def split(x):
    x = _take_times(x, order)
    padding = [(0, 0), (0, chunks * steps - length)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, padding).reshape(batch, chunks, steps, *x.shape[2:])
    return x.swapaxes(0, 1).reshape(chunks, batch * steps, *x.shape[3:])

  def join(x):
    x = x.reshape(chunks, batch, steps, *x.shape[2:]).swapaxes(0, 1)
    x = x.reshape(batch, chunks * steps, *x.shape[3:])[:, :length]
    return _take_times(x, back)

  def one(chunk):
    hidden, targets, needed = chunk
    skipped = jax.eval_shape(function, hidden, head, targets, needed)
    return jax.lax.cond(
      jnp.any(needed),
      lambda: function(hidden, head, targets, needed),
      lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), skipped),
    )

  parts = (split(hidden), split(targets), split(needed))
  return jax.tree.map(join, jax.lax.map(one, parts))


def _take_times(x, times):
  """Reorders the second axis of x (batch, length, ...)."""
  index = times.reshape(*times.shape, *[1] * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)


def _chunk_losses(softcap, hidden, head, targets, needed):
  logits = project_to_vocabulary(hidden, head, softcap=softcap)
  return _losses(logits, targets, needed)


def _losses(logits, targets, needed):
  target = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
  return jnp.where(needed, jax.nn.logsumexp(logits, axis=1) - target, 0)


def _chunk_losses_and_gradient(softcap, hidden, head, targets, needed):
  logits = project_to_vocabulary(hidden, head, softcap=softcap)
  target = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
  largest = jnp.max(logits, axis=1)
  # The unnormalised softmax: one exponential serves both the loss and the
  # gradient, which is divided by the sum after the product with the head, when
  # its rows are short.
  shares = jnp.exp(logits - largest[:, None])
  total = jnp.sum(shares, axis=1)
  shares *= slope(logits, softcap)
  gradient = jnp.dot(
    shares.astype(head.dtype), head, preferred_element_type=jnp.float32
  )
  gradient /= total[:, None]
  of_target = head[targets].astype(jnp.float32)
  if softcap is not None:
    of_target *= slope(target, softcap)[:, None]
  gradient -= of_target
  gradient = jnp.where(needed[:, None], gradient, 0)
  losses = jnp.where(needed, largest + jnp.log(total) - target, 0)
  return losses, gradient.astype(hidden.dtype)
