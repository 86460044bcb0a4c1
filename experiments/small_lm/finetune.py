"""One run: a method on a domain, at one learning rate, with one seed."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.small_lm import network
from experiments.small_lm.corpus import Windows, evenly
from experiments.small_lm.methods import METHODS
from experiments.small_lm.plan import Setting
from lora_opt import transforms
from lora_opt.training.schedules import warmup_cosine

CHUNK = 25  # steps in one call
MOST_STEPS = 3000
CURVE_POINTS = 12  # approximate number of evaluations at a constant rate
# Numbers of windows for the curve, and of the pretraining text.
CURVE_WINDOWS, KEPT_WINDOWS = 256, 512


class Programs(NamedTuple):
  """Functions compiled once for all rates, seeds, schedules and domains."""

  start: Callable[..., Any]  # (base, seed, table) -> carry: (params, state)
  advance: Callable[..., Any]  # (carry, base, table, batches) -> carry, losses
  evaluate: Callable[..., Any]  # (params, base, windows) -> loss


@functools.lru_cache(maxsize=8)
def programs(method: str, width: int, rank: int, alpha: float) -> Programs:
  """The compiled functions for a method and a network of this size."""
  how = METHODS[method]
  model = network.network(width, 0 if how.full else rank, alpha)

  def optimizer(table):
    return how.optimizer(lambda count: table[count], alpha / max(rank, 1))

  def loss(params, base, windows):
    trees = (params, None) if how.full else (base, params)
    return network.loss(model, *trees, windows)

  def start(base, seed, table):
    if how.full:
      params = jax.tree.map(jnp.copy, base)
    else:
      params = _adapter(model, jax.random.key(seed), how.b_std)
    return params, optimizer(table).init(params)

  def advance(carry, base, table, batches):
    tx = optimizer(table)

    def step(carry, batch):
      params, state = carry
      value, gradient = jax.value_and_grad(loss)(params, base, batch)
      updates, state = tx.update(gradient, state, params)
      return (jax.tree.map(jnp.add, params, updates), state), value

    return jax.lax.scan(step, carry, batches)

  def evaluate(params, base, windows):
    trees = (params, None) if how.full else (base, params)
    return network.mean_loss(model, *trees, windows)

  return Programs(
    jax.jit(start), jax.jit(advance, donate_argnums=0), jax.jit(evaluate)
  )


def _adapter(model, key, b_std):
  keys = jax.random.split(key)

  def moved(path, leaf):
    if not b_std or path[-1].key != 'lora_b':
      return leaf
    name = jax.tree_util.keystr(path)
    own = jax.random.fold_in(keys[1], sum(name.encode()))
    return leaf + b_std * jax.random.normal(own, leaf.shape)

  return jax.tree_util.tree_map_with_path(moved, model.init(keys[0]))


def _to_evaluate(params, state):
  if transforms.keeps_average(state):
    return transforms.average_of(state, params)
  return params


def _linear(steps: int) -> np.ndarray:
  count = np.arange(steps)
  up, down = count / (0.1 * steps), (steps - count) / (0.9 * steps)
  return np.minimum(up, down)


# Learning rates relative to the peak, by the number of steps. Cosine and linear
# warm up for a tenth of the steps; cool-down falls to zero in the last fifth.
SCHEDULES = {
  'cosine': lambda steps: warmup_cosine(1.0, steps)(np.arange(steps)),
  'linear': _linear,
  'constant': np.ones,
  'cool-down': lambda steps: np.minimum(
    1.0, (steps - np.arange(steps)) / (0.2 * steps)
  ),
}


def rate_table(schedule: str, steps: int, peak: float) -> np.ndarray:
  """The learning rate of every step, (MOST_STEPS,); zero after the last.

  >>> rate_table('constant', 2, 0.5)[:3].tolist()
  [0.5, 0.5, 0.0]
  """
  table = np.zeros(MOST_STEPS, np.float32)
  if steps and schedule not in SCHEDULES:
    raise ValueError(f'schedule={schedule!r}: one of {", ".join(SCHEDULES)}?')
  if steps:
    table[:steps] = peak * np.asarray(SCHEDULES[schedule](steps))
  return table


def curve_steps(setting: Setting) -> list[int]:
  """Steps after which the curve is measured; none unless constant."""
  if setting.schedule != 'constant':
    return []
  every = CHUNK * max(1, round(setting.steps / CHUNK / CURVE_POINTS))
  inside = range(every, setting.steps, every)
  return [*inside, setting.steps]


def finetune(
  setting: Setting,
  rate: float,
  seed: int,
  base: network.Tree,
  domain: Windows,
  kept: np.ndarray,
) -> dict[str, Any]:
  """Trains and evaluates. Runs with the same seed see the same batches.

  Args:
    setting: the setting; its steps are a multiple of CHUNK.
    rate: the peak of the schedule.
    seed: seed of the adapters and the batches.
    base: pretrained weights.
    domain: windows to train and to evaluate on.
    kept: held-out windows of the pretraining text.

  Returns:
    `loss` on all held-out windows, `kept`, the loss on the pretraining text,
    and `curve`, the loss on some held-out windows after `curve_steps`. If the
    loss was not finite in training, the first two are inf and the curve is cut
    off.

  Raises:
    ValueError: the steps are not a multiple of CHUNK, or too many.
  """
  steps = setting.steps
  if steps % CHUNK or steps > MOST_STEPS:
    raise ValueError(
      f'steps={steps}: take a multiple of {CHUNK} up to {MOST_STEPS}'
    )
  shape = setting.width, setting.rank, setting.alpha
  start, advance, evaluate = programs(setting.method, *shape)
  table = jnp.asarray(rate_table(setting.schedule, steps, rate))
  carry, curve = start(base, seed, table), []
  random = np.random.default_rng(seed)
  rows = random.integers(len(domain.train), size=(steps, setting.batch))
  measured, some = curve_steps(setting), evenly(domain.held_out, CURVE_WINDOWS)
  for first in range(0, steps, CHUNK):
    last = first + CHUNK
    batches = jnp.asarray(domain.train[rows[first:last]])
    carry, values = advance(carry, base, table, batches)
    if not np.isfinite(np.asarray(values)).all():
      return {'loss': np.inf, 'kept': np.inf, 'curve': curve}
    trained = _to_evaluate(*carry)
    if last in measured:
      curve.append(float(evaluate(trained, base, some)))
  return {
    'loss': float(evaluate(trained, base, domain.held_out)),
    'kept': float(evaluate(trained, base, evenly(kept, KEPT_WINDOWS))),
    'curve': curve,
  }
