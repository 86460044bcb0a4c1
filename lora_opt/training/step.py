"""The jitted training step: loss, gradients of the adapters, update."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lora_opt import diagnostics, linalg
from lora_opt.devices.partitioning import Placement
from lora_opt.training.objective import CrossEntropy
from lora_opt.training.train_state import TrainState

Batch = Mapping[str, jax.Array]


def make_train_step(
  model: Any,
  optimizer: optax.GradientTransformation,
  placement: Placement,
  state: TrainState,
  *,
  objective: Any = None,
  seed: int = 0,
  microbatches: int = 1,
  loss_normalizing_factor: float | None = None,
  diagnostics_period: int | None = None,
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, dict]]:
  """Makes the jitted function of one optimizer step, which donates its state.

  Args:
    model: has `token_losses(base, lora, batch, rng) -> (batch, length)`.
    optimizer: over the adapter parameters only.
    placement: the placement of the model.
    state: the initial state; its arrays keep their shardings.
    objective: the loss to minimise, see `lora_opt.training.objective`; None for
      the model's own token loss.
    seed: seed of the dropout; step t uses `fold_in(key(seed), t)`, so that a
      resumed run draws the same masks.
    microbatches: number of equal parts in which the batch goes through the
      model; gradients and metrics are those of the whole batch. The parts are
      summed in float32, or in the dtype of the adapters if that is wider.
    loss_normalizing_factor: divisor of the summed loss; None for the number of
      target tokens in the batch, or the sum of its `counts`.
    diagnostics_period: steps between two diagnoses of the factors
      (`lora_opt.diagnostics`), in the metrics as lora/...; zeros at other
      steps. None: no such metrics.

  Returns:
    `step(state, base, batch) -> (state, metrics)`. If the optimizer counts the
    steps that it skips, the metrics have `skipped_steps`, the number so far,
    and `skipped`, whether this step was skipped.
  """
  objective = objective or CrossEntropy()

  def summed_loss(lora, base, batch, rng):
    return objective(model, lora, base, batch, rng)

  def step(state: TrainState, base: Any, batch: Batch):
    target_tokens = jnp.sum(batch['weights'])
    # Some rows have a weight in the loss but are not counted.
    counted = jnp.sum(batch.get('counts', batch['weights']))
    normalizer = loss_normalizing_factor or jnp.maximum(counted, 1.0)
    rng = jax.random.fold_in(jax.random.key(seed), state.step)

    def accumulate(total, part):
      microbatch, index = part
      value_and_grads = jax.value_and_grad(summed_loss, has_aux=True)(
        state.lora, base, microbatch, jax.random.fold_in(rng, index)
      )
      return jax.tree.map(_add, total, value_and_grads), None

    # In a bfloat16 sum of many parts the contribution of each would be lost.
    sums = {name: jnp.zeros(()) for name in objective.metrics}
    zero = ((jnp.zeros(()), sums), jax.tree.map(_wide_zeros, state.lora))
    parts = (split_batch(batch, microbatches), jnp.arange(microbatches))
    ((loss, sums), grads), _ = jax.lax.scan(accumulate, zero, parts)
    grads = jax.tree.map(lambda g: (g / normalizer).astype(g.dtype), grads)
    # Reduced over the batch here, once, to the sharding of the parameters.
    grads = jax.lax.with_sharding_constraint(grads, placement.trainable)

    norm = optax.tree.norm(grads)
    grads = jax.tree.map(lambda g, x: g.astype(x.dtype), grads, state.lora)

    with jax.named_scope('optimizer'):
      # Work on the parameters alone, such as factorising their Gram matrices,
      # must wait for the gradients: on CPU, run beside the model's matrix
      # products, it would take a thread from them for the whole step.
      lora = jax.tree.map(lambda x: linalg.after(x, norm), state.lora)
      updates, opt_state = optimizer.update(grads, state.opt_state, lora)
      lora = optax.apply_updates(state.lora, updates)
    metrics = {
      'loss': loss / normalizer,
      'grad_norm': norm,
      'target_tokens': target_tokens,
    }
    for name, value in sums.items():
      metrics[name] = value / jnp.maximum(counted, 1.0)
    if 'segment_ids' in batch:
      filled = (batch['segment_ids'] > 0).astype(jnp.float32)
      metrics['non_padding_fraction'] = jnp.mean(filled)
    if diagnostics_period is not None:
      due = (state.step + 1) % diagnostics_period == 0
      metrics |= diagnose_if(due, lora, updates)
    if counts := skipped_counts(opt_state):
      before = skipped_counts(state.opt_state)
      metrics['skipped_steps'] = sum(counts)
      metrics['skipped'] = jnp.any(jnp.stack(counts) > jnp.stack(before))
    return TrainState(state.step + 1, lora, opt_state), metrics

  lies = jax.tree.map(lambda x: x.sharding, state)
  return placement.jit(
    step,
    donate_argnums=0,
    in_shardings=(lies, placement.base, placement.rows),
    out_shardings=(lies, placement.whole),
  )


def _add(total: jax.Array, part: jax.Array) -> jax.Array:
  return total + part.astype(total.dtype)


def _wide_zeros(x: jax.Array) -> jax.Array:
  return jnp.zeros_like(x, jnp.promote_types(x.dtype, jnp.float32))


def skipped_counts(opt_state: optax.OptState) -> list[jax.Array]:
  """The counts of steps that an optimizer skipped, () int32 each.

  They come from `transforms.skip_nonfinite`, which is part of every recipe, and
  from `optax.apply_if_finite`. The list is empty if nothing counts skips.
  """
  names = ('skipped', 'total_notfinite')
  return [
    count
    for name in names
    for _, count in optax.tree.get_all_with_path(opt_state, name)
    if getattr(count, 'shape', None) == ()
  ]


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """`optax.clip_by_global_norm`, with the norm computed in float32 or wider."""
  clip = optax.clip_by_global_norm(max_norm)

  def update(updates, state, params=None):
    wide = jax.tree.map(
      lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), updates
    )
    clipped, state = clip.update(wide, state, params)
    clipped = jax.tree.map(lambda c, g: c.astype(g.dtype), clipped, updates)
    return clipped, state

  return optax.GradientTransformation(clip.init, update)


def diagnose_if(due: jax.Array, lora: Any, updates: Any) -> dict:
  """Scalars lora/... about the factors after a step, zeros if not `due`."""

  def diagnose():
    return diagnostics.summarize(diagnostics.diagnose(lora, updates))

  def nothing():
    return jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(diagnose)
    )

  scalars = jax.lax.cond(due, diagnose, nothing)
  return {f'lora/{name}': value for name, value in scalars.items()}


def split_batch(batch: Batch, parts: int) -> Batch:
  """(rows, ...) -> (parts, rows / parts, ...), each part spread over devices.

  Part i takes the rows i, i + parts, ...: neighbouring rows would be on only a
  few devices.
  """
  return jax.tree.map(
    lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(
      0, 1
    ),
    dict(batch),
  )
