"""What does LoRA-RITE do at B = 0?

A's step is divided by B. After one step, B is about as large as the learning
rate, and by the paper's rule A then makes a very large step.
`max_relative_step` limits the step of A where A B^T is weak. This prints how
far A moves in the first steps and how well training goes, for several limits,
starts and learning rates.
"""

import argparse
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import figure

import lora_opt
from experiments import student

LIMITS = (None, 1.0, 0.3, 0.1, 0.03)
WIDTH, RANK = 128, 8
STARTS = ('B = 0', 'A = 0', 'full rank')


def start_of(name, key):
  a, b = jax.random.split(key)
  lora = student.init_lora(a, WIDTH, RANK)
  other = 0.3 * jax.random.normal(b, lora['lora_b'].shape) * WIDTH**-0.5
  if name == 'B = 0':
    return lora
  if name == 'A = 0':
    return {'lora_a': 0 * lora['lora_a'], 'lora_b': other / 0.3}
  return {'lora_a': lora['lora_a'], 'lora_b': other}


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def run(limit, start, rate, seed, steps):
  """Returns (loss, |dA|/|A|) of every step of one run."""
  keys = jax.random.split(jax.random.key(seed), 3)
  problem = student.make_problem(keys[0], WIDTH, 1.0)
  tx = lora_opt.lora_rite(rate, max_relative_step=limit)

  def step(carry, key):
    lora, state = carry
    loss, gradients = jax.value_and_grad(student.loss_fn)(lora, problem, key)
    updates, state = tx.update(gradients, state, lora)
    size = jnp.linalg.norm(lora['lora_a']) + 1e-30
    moved = jnp.linalg.norm(updates['lora_a']) / size
    return (jax.tree.map(jnp.add, lora, updates), state), (loss, moved)

  lora = start_of(start, keys[1])
  keys = jax.random.split(keys[2], steps)
  _, (losses, moved) = jax.lax.scan(step, (lora, tx.init(lora)), keys)
  return losses, moved


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument(
    '--rates', type=float, nargs='+', default=[0.003, 0.01, 0.03]
  )
  parser.add_argument('--out', default='runs/cold_start')
  args = parser.parse_args(argv)
  out = pathlib.Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  canvas = figure.Figure(figsize=(12, 3.4), layout='constrained')
  panels = dict(zip(STARTS, canvas.subplots(1, 3, sharey=True), strict=True))
  middle_rate = args.rates[len(args.rates) // 2]
  rows = []
  print('| start | rate | max_relative_step | dA / A, steps 1 to 4 '
        '| loss after 20 | at the end [over seeds] |')  # fmt: skip
  print('| --- | --- | --- | --- | --- | --- |')
  for start in STARTS:
    for rate in args.rates:
      for limit in LIMITS:
        losses, moved = (
          np.asarray(x)
          for x in zip(
            *(
              run(limit, start, rate, s, args.steps) for s in range(args.seeds)
            ),
            strict=True,
          )
        )
        end = np.mean(losses[:, -10:], axis=1)
        first = ', '.join(f'{x:.2g}' for x in np.mean(moved, axis=0)[:4])
        early = np.mean(losses[:, 18:22])
        print(f'| {start} | {rate:g} | {limit} | {first} | {early:.3f} '
              f'| {np.mean(end):.4f} [{end.min():.4f}, {end.max():.4f}] |',
              flush=True)  # fmt: skip
        rows.append(
          {'start': start, 'rate': rate, 'max_relative_step': limit,
           'losses': losses.tolist(), 'relative_steps_of_a': moved.tolist()}
        )  # fmt: skip
        if rate == middle_rate:
          panels[start].plot(np.mean(losses, axis=0), label=str(limit))
  for start, panel in panels.items():
    panel.set(
      yscale='log', xlabel='step', title=f'{start}, rate {middle_rate:g}'
    )
    panel.spines[['top', 'right']].set_visible(False)
  panels[STARTS[0]].set_ylabel('loss / first loss')
  panels[STARTS[-1]].legend(title='max_relative_step', frameon=False)
  canvas.savefig(out / 'cold_start.png', dpi=130)
  (out / 'result.json').write_text(json.dumps(rows), encoding='utf-8')
  print(f'{out}/result.json, {out}/cold_start.png')


if __name__ == '__main__':
  main()
