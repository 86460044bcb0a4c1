"""Rows of a study that never ran, with known winners."""

import numpy as np

RATES = (1e-4, 1e-3, 1e-2)


def make_row(
  method='adamw', rate=1e-3, seed=0, task='cola', rank=4, score=0.5, **more
):
  """A run that scored so on both halves of the examples."""
  fall = 0.05 + 0.1 * score
  return {
    'flags': [f'{method}-{rate}-{seed}-{task}-{rank}'],
    'model': 'tiny',
    'task': task,
    'method': method,
    'options': {},
    'rank': rank,
    'learning_rate': rate,
    'seed': seed,
    'budget': {'TRAIN_STEPS': '60'},
    'metric': 'accuracy',
    'score': score,
    'interval': [score - 0.1, score + 0.1],
    'halves': [{'accuracy': score}, {'accuracy': score}],
    'loss': 1 - score,
    'num_examples': 100,
    'curve': {
      'step': list(range(1, 61)),
      'loss': [float(np.exp(-fall * step)) for step in range(60)],
    },
    'step_seconds': 1.5 if method == 'lora_rite' else 1.0,
    'diagnostics': {'condition_max': 10.0, 'stable_rank_mean': 2.5},
    'seconds': 30.0,
    'peak_memory_bytes': 2**30,
    'pairs': {'stable_rank': {'attention.q': [1.0, 2.0], 'mlp.up': [3.0, 4.0]}},
  } | more


def make_study(
  merits, tasks=('cola', 'mrpc'), ranks=(4,), seeds=(0, 1, 2), noise=0.004
):
  """Rows of a whole study.

  Args:
    merits: method -> its score at the best rate, 1e-3.
    tasks, ranks, seeds: what is run.
    noise: standard deviation of the seeds.
  """
  rng = np.random.default_rng(0)
  falls = {1e-4: 0.05, 1e-3: 0.0, 1e-2: 0.1}
  return [
    make_row(
      method,
      rate,
      seed,
      task,
      rank,
      score=merit - falls[rate] + noise * rng.standard_normal(),
    )
    for task in tasks
    for rank in ranks
    for seed in seeds
    for rate in RATES
    for method, merit in merits.items()
  ]
