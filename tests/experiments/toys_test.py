"""The experiments that need no model run, and their READMEs say the results."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_opt
from experiments import results, sweeps
from experiments.ablation import run as ablation
from experiments.ablation.transport import scale_by_rite_carrying
from experiments.feature_learning import run as features
from experiments.invariance import run as invariance
from experiments.learning_rate_transfer import run as transfer
from experiments.matrix_factorization import run as factorization
from lora_opt import transforms


@pytest.fixture(autouse=True)
def compile_fast():
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.mark.parametrize(
  ('run', 'flags', 'file'),
  [
    (invariance, '--seeds 1 --steps 2 --methods sgd', 'results'),
    (factorization, '--parts sweep --seeds 1 --steps 2 --methods sgd', 'sweep'),
    (
      ablation,
      '--seeds 1 --steps 2 --variants adamw --problems matrix',
      'results',
    ),
    (transfer, '--seeds 1 --steps 2 --methods sgd --axes alpha', 'results'),
    (features, '--parts ratio --seeds 1 --tiny', 'ratio'),
  ],
)
def test_runs(tmp_path, run, flags, file):
  """What is written has the form of what is committed, and is finite."""
  run.main([*flags.split(), '--out', str(tmp_path)])
  rows = results.load_rows(tmp_path / f'{file}.jsonl')
  committed = results.load_rows(run.FOLDER / f'{file}.jsonl')
  assert [r.keys() for r in rows] == [committed[0].keys()] * len(rows)
  name = 'largest' if run is invariance else 'losses'
  assert all(np.isfinite(row[name]).any() for row in rows)


def test_rows_come_back(tmp_path):
  rows = [{'a': np.array([[1.23456, np.inf]]), 'b': 'x', 'c': [3], 'd': np.nan}]
  results.save_rows(tmp_path / 'r.jsonl', rows)
  [line] = (tmp_path / 'r.jsonl').read_text().splitlines()
  plain = {'a': [[1.235, None]], 'b': 'x', 'c': [3], 'd': None}
  assert json.loads(line) == plain
  [row] = results.load_rows(tmp_path / 'r.jsonl')
  np.testing.assert_array_equal(row['a'], [[1.235, np.inf]])
  assert row['d'] == np.inf


def test_section_without_marks():
  with pytest.raises(ValueError, match='add one line "<!-- x -->"'):
    results.with_section('no marks', 'x', 'text')


def test_interval_of_known_numbers():
  # t of two degrees of freedom is 4.303; the logs are -1, 0, 1.
  interval = sweeps.geometric_mean(np.exp([-1.0, 0.0, 1.0]))
  assert interval.middle == pytest.approx(1)
  assert np.log(interval.high) == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)
  assert sweeps.geometric_mean([1.0, np.inf]).text() == 'diverges'


def test_best_rate_at_the_edge():
  best = sweeps.best_rate([1.0, 2.0, 4.0], np.array([[1.0], [1.5], [np.inf]]))
  assert best.rate_text() == '1 (edge)'
  assert best.octaves == 2


def test_transport_is_the_only_change():
  """With all of it carried it is LoRA-RITE, without it is not."""

  def ours(rate, carried):
    direction = scale_by_rite_carrying(
      carry_mu=carried,
      carry_nu=carried,
      learning_rate=rate,
      max_relative_step=0.3,
    )
    return optax.chain(
      transforms.on_lora_pairs(direction), optax.scale_by_learning_rate(rate)
    )

  def end(tx):
    keys = jax.random.split(jax.random.key(0), 2)
    y = jax.random.normal(keys[1], (9, 7))

    def step(carry, _):
      params, state = carry
      missing = params['lora_a'] @ params['lora_b'] - y
      gradients = {
        'lora_a': missing @ params['lora_b'].T,
        'lora_b': params['lora_a'].T @ missing,
      }
      updates, state = tx.update(gradients, state, params)
      return (jax.tree.map(jnp.add, params, updates), state), None

    a = jax.random.normal(keys[0], (9, 3))
    params = {'lora_a': a, 'lora_b': jnp.zeros((3, 7))}
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=6)
    return params['lora_a'] @ params['lora_b']

  with jax.enable_x64(True):
    each = jax.jit(jax.vmap(lambda carried: end(ours(0.1, carried))))
    without, with_it = np.asarray(each(jnp.array([False, True])))
    whole = np.asarray(jax.jit(lambda: end(lora_opt.lora_rite(0.1)))())
  size = np.linalg.norm(whole)
  # Rounding of 1e-16, times the condition of a B that has just started.
  assert np.linalg.norm(with_it - whole) / size < 1e-9
  assert np.linalg.norm(without - whole) / size > 1e-3
