"""Replays recorded trajectories of the authors' optimizers.

  python -m tests.golden_replay DIR [--method products]

prints the largest relative error of each .npz file in DIR, in float64, and
exits with an error if one is above 1e-9. The method is that of the r x r work.
The format is described in tests/golden/README.md.
"""

import argparse
import functools
import json
import pathlib
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lora_opt

TOLERANCE = 1e-9


def load(path: pathlib.Path) -> tuple[dict, dict[str, np.ndarray]]:
  """The meta data and the arrays of one file.

  Raises:
    ValueError: if it is no such file.
  """
  try:
    with np.load(path) as data:
      arrays = {key: data[key] for key in data.files}
    meta = json.loads(str(arrays.pop('meta')))
  except (OSError, KeyError, ValueError) as error:
    raise ValueError(f'{path} is not a recorded trajectory: {error}') from error
  needed = {'method', 'hyperparameters', 'scale', 'c', 'steps', 'pairs'}
  if not needed <= meta.keys():
    missing = sorted(needed - meta.keys())
    raise ValueError(f'{path}: meta lacks {", ".join(missing)}')
  for k in range(meta['pairs']):
    for name in ('A0', 'B0', 'M', 'N', 'A', 'B'):
      if f'{name}_{k}' not in arrays:
        raise ValueError(f'{path}: array {name}_{k} is missing')
  return meta, arrays


class _Options:
  """Reads the authors' hyperparameters and complains about what is left."""

  def __init__(self, values: dict, where: str):
    self._values = dict(values)
    self._where = where

  def take(self, name: str, default=None):
    return self._values.pop(name, default)

  def done(self) -> None:
    if self._values:
      names = ', '.join(sorted(self._values))
      raise ValueError(f'unknown hyperparameters of {self._where}: {names}')


def _positive(value: float) -> float | None:
  """The authors' 0 means off; ours is None."""
  return value if value > 0 else None


def _lora_rite(hyperparameters: dict) -> optax.GradientTransformation:
  take = _Options(hyperparameters, 'lora_rite')
  b1, b2 = take.take('betas', (0.9, 0.999))
  relative = take.take('relative_epsilon', False)
  if relative:
    raise ValueError('lora_rite: relative_epsilon=True never ran (NameError)')
  # Where the rank axis is, and whether inf counts as NaN: PEFT's axes and the
  # default are what the recordings use, they do not change a finite run.
  for name in ('lora_l_dim', 'lora_r_dim', 'maybe_inf_to_nan'):
    take.take(name)
  tx = lora_opt.lora_rite(
    take.take('lr', 1e-3),
    b1,
    b2,
    take.take('eps', 1e-6),
    clip_norm=_positive(take.take('clip_unmagnified_grad', 1.0)),
    # Their default skips at 1, ours never.
    skip_rms=_positive(take.take('update_skipping', 1.0)),
    cap_rms=_positive(take.take('update_capping', 0.0)),
    weight_decay=take.take('weight_decay', 0.0),
    escaped_mass='eigenvalues' if take.take('apply_escape', False) else None,
    rebalance=bool(take.take('balance_param', False)),
    # Ours limits the first steps of A from B = 0; theirs leaps.
    max_relative_step=None,
    rtol=0.0,
    layout=lora_opt.pairs.PEFT,
  )
  take.done()
  return tx


def _adamw(values: dict, where: str) -> tuple[tuple, dict]:
  """Arguments of torch's AdamW, with its defaults."""
  take = _Options(values, f'{where} (adamw)')
  b1, b2 = take.take('betas', (0.9, 0.999))
  arguments = take.take('lr', 1e-3), b1, b2, take.take('eps', 1e-8)
  decay = take.take('weight_decay', 1e-2)
  take.done()
  return arguments, {'weight_decay': decay, 'layout': lora_opt.pairs.PEFT}


def _reflora(hyperparameters: dict) -> optax.GradientTransformation:
  take = _Options(hyperparameters, 'reflora')
  arguments, options = _adamw(take.take('adamw', {}), 'reflora')
  scalar = take.take('use_scalar', False)
  options |= {
    'warmup_steps': take.take('warmup_steps', 0),
    'every': take.take('interval', 1),
  }
  take.done()
  if scalar:
    return lora_opt.reflora_s(*arguments, **options)
  return lora_opt.reflora(*arguments, max_spread=None, **options)


def _lora_plus(hyperparameters: dict) -> optax.GradientTransformation:
  take = _Options(hyperparameters, 'lora_plus')
  arguments, options = _adamw(take.take('adamw', {}), 'lora_plus')
  options['lr_ratio'] = take.take('lr_ratio', 16.0)
  take.done()
  return lora_opt.lora_plus(*arguments, **options)


def _plain(hyperparameters: dict) -> optax.GradientTransformation:
  arguments, options = _adamw(
    hyperparameters.get('adamw', hyperparameters), 'adamw'
  )
  return lora_opt.adamw(*arguments, **options)


_METHODS = {
  'lora_rite': _lora_rite,
  'reflora': _reflora,
  'lora_plus': _lora_plus,
  'adamw': _plain,
}


def optimizer(meta: dict) -> optax.GradientTransformation:
  """Our optimizer for the authors' method and hyperparameters.

  Raises:
    ValueError: unknown method or hyperparameter.
  """
  method = meta['method']
  if method not in _METHODS:
    known = ', '.join(sorted(_METHODS))
    raise ValueError(f'unknown method {method!r}; known are {known}')
  return _METHODS[method](meta['hyperparameters'])


def replay(
  path: pathlib.Path, method: lora_opt.linalg.Method = 'platform'
) -> float:
  """Largest |ours - recorded| / |recorded| over steps and factors.

  Frobenius norms; a recorded factor that is zero counts by absolute error.

  Args:
    path: a recorded trajectory.
    method: of the r x r work.

  Raises:
    ValueError: for a file that cannot be replayed.
  """
  meta, arrays = load(path)
  tx = lora_opt.transforms.with_matrix_method(optimizer(meta), method)
  count, scale, c = meta['pairs'], meta['scale'], meta['c']
  pairs = range(count)
  params = {
    f'p{k}.lora_{f}.weight': jnp.asarray(arrays[f'{f}0_{k}'])
    for k in pairs
    for f in 'AB'
  }

  @jax.jit
  def step(params, state, noise):
    grads = {}
    for k in pairs:
      a, b = params[f'p{k}.lora_A.weight'], params[f'p{k}.lora_B.weight']
      full = c * (scale * b @ a - arrays[f'M_{k}']) + noise[k]
      grads[f'p{k}.lora_A.weight'] = scale * b.T @ full
      grads[f'p{k}.lora_B.weight'] = scale * full @ a.T
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state, worst = tx.init(params), 0.0
  for t in range(meta['steps']):
    params, state = step(params, state, [arrays[f'N_{k}'][t] for k in pairs])
    for k in pairs:
      # RefLoRA-S rescales before a step, the authors' code after it: between
      # steps A is matched up to a number, and B up to its inverse.
      ours = {f: np.asarray(params[f'p{k}.lora_{f}.weight']) for f in 'AB'}
      if meta['hyperparameters'].get('use_scalar', False):
        norm = np.linalg.norm(arrays[f'A_{k}'][t]) / np.linalg.norm(ours['A'])
        ours = {'A': ours['A'] * norm, 'B': ours['B'] / norm}
      for f in 'AB':
        recorded = arrays[f'{f}_{k}'][t]
        error = np.linalg.norm(ours[f] - recorded)
        # max() would let a NaN pass.
        relative = error / (np.linalg.norm(recorded) or 1.0)
        worst = relative if not relative <= worst else worst
  return float(worst)


def main(arguments: list[str] | None = None) -> int:
  """Replays a folder; the number of files above the tolerance, or broken."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('folder', type=pathlib.Path)
  methods = typing.get_args(lora_opt.linalg.Method)
  parser.add_argument('--method', choices=methods, default='platform')
  options = parser.parse_args(arguments)
  folder = options.folder
  paths = sorted(folder.glob('*.npz'))
  if not paths:
    print(f'no .npz file in {folder}', file=sys.stderr)
    return 1
  show = functools.partial(print, flush=True)
  bad = 0
  with jax.enable_x64(True):
    for path in paths:
      try:
        worst = replay(path, options.method)
      except ValueError as error:
        bad += 1
        show(f'{path.name:<36} error: {error}')
        continue
      good = worst <= TOLERANCE
      bad += not good
      show(f'{path.name:<36} {worst:.1e} {"" if good else "ABOVE"}'.rstrip())
  show(f'{len(paths) - bad} of {len(paths)} files within {TOLERANCE:.0e}')
  return min(bad, 1)


if __name__ == '__main__':
  sys.exit(main())
