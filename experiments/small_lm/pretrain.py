"""Pretrains the network, and resumes if it was stopped.

    python -m experiments.small_lm.pretrain WORK

needs what experiments.small_lm.corpus writes, and writes
WORK/base_128.safetensors. On one type of processor the weights are the same bit
by bit, stopped in between or not.
"""

import argparse
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.small_lm import corpus, network
from lora_opt import writing
from lora_opt.models import causal_lm
from lora_opt.training.schedules import warmup_cosine

STEPS, BATCH, RATE = 3000, 16, 4e-3
# The cosine has this many steps. The last sixth of the training goes to zero.
HORIZON, COOL_DOWN = 5000, 6
CHUNK = 50  # steps in one call
SAVED = 250  # steps between saved states


def schedule(steps: int) -> optax.Schedule:
  """Warm-up and cosine, times a line to zero in the last sixth."""
  cosine = warmup_cosine(RATE, HORIZON, warmup_fraction=0.04)

  def rate(count):
    left = (steps - count) / (steps / COOL_DOWN)
    return cosine(count) * jnp.minimum(1.0, left)

  return rate


def optimizer(steps: int) -> optax.GradientTransformation:
  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(schedule(steps), b2=0.95, weight_decay=0.1),
  )


def order(count: int, steps: int) -> np.ndarray:
  """Indices of windows (steps, BATCH); each comes once in every epoch."""
  epochs = -(-steps * BATCH // count)
  each = [np.random.default_rng(e).permutation(count) for e in range(epochs)]
  return np.concatenate(each)[: steps * BATCH].reshape(steps, BATCH)


def pretrain(
  windows: np.ndarray, width: int, steps: int, saved: pathlib.Path
) -> network.Tree:
  """Trains from random weights, or from the state in `saved`.

  Args:
    windows: (count, LENGTH + 1).
    width: Of the network.
    steps: Number of steps in all.
    saved: File of the state; the caller removes it.

  Returns:
    The weights.
  """
  model, tx = network.network(width), optimizer(steps)
  base = causal_lm.init_base(model.config, jax.random.key(0), 'float32')
  state, done = (base, tx.init(base)), 0
  if saved.exists():
    state, done = read_state(saved, state)
    print(f'resuming after step {done}', flush=True)

  @functools.partial(jax.jit, donate_argnums=0)
  def advance(state, batches):
    def step(state, batch):
      base, moments = state
      value, gradient = jax.value_and_grad(
        lambda base: network.loss(model, base, None, batch)
      )(base)
      updates, moments = tx.update(gradient, moments, base)
      return (optax.apply_updates(base, updates), moments), value

    return jax.lax.scan(step, state, batches)

  rows, started, first = order(len(windows), steps), time.monotonic(), done
  for start in range(done, steps, CHUNK):
    end = min(start + CHUNK, steps)
    state, losses = advance(state, jnp.asarray(windows[rows[start:end]]))
    if end % SAVED == 0 or end == steps:
      value = float(jnp.mean(losses))
      write_state(saved, state, end)
      rate = (time.monotonic() - started) / (end - first)
      print(
        f'step {end}/{steps}, loss {value:.3f}, {rate:.3f} s a step', flush=True
      )
  return state[0]


def write_state(file, state, done):
  leaves = {str(i): x for i, x in enumerate(jax.tree.leaves(state))}
  with writing.draft(file) as part, part.open('wb') as out:
    np.savez(out, done=done, **leaves)


def read_state(file, like):
  with np.load(file) as arrays:
    leaves = [jnp.asarray(arrays[str(i)]) for i in range(len(arrays) - 1)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), int(
      arrays['done']
    )


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__.partition('\n')[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  parser.add_argument('work', type=pathlib.Path, metavar='WORK')
  parser.add_argument('--width', type=int, default=128)
  parser.add_argument('--steps', type=int, default=STEPS)
  args = parser.parse_args(argv)
  windows = corpus.load(args.work)
  file = network.weights_file(args.work, args.width)
  saved = file.with_name(f'pretraining_{args.width}.npz')
  base = pretrain(windows['pretraining'].train, args.width, args.steps, saved)
  network.write_base(file, base)
  saved.unlink()
  base = network.load_base(args.work, args.width)
  model = network.network(args.width)
  evaluate = jax.jit(functools.partial(network.mean_loss, model))
  for name, (_, held_out) in windows.items():
    print(f'{name}: {float(evaluate(base, None, held_out)):.4f} nats a token')
  print(f'{file}: weights {network.weights_digest(base)}')


if __name__ == '__main__':
  main()
