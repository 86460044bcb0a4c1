"""The authors' recorded trajectories, and what the replay does with others."""

import json
import pathlib

import jax
import numpy as np
import pytest

from tests import golden_replay

FOLDER = pathlib.Path(__file__).parents[1] / 'golden'


# Of the other method, for accelerators, the rest is long.
PRODUCTS = ('rite_default', 'rite_zero_b', 'reflora_full')
PATHS = sorted(FOLDER.glob('*.npz'))


@pytest.mark.parametrize(
  ('path', 'method'),
  [
    pytest.param(
      *(path, method),
      marks=[pytest.mark.long]
      * (method == 'products' and path.stem not in PRODUCTS),
      id=f'{path.stem}-{method}',
    )
    for path in PATHS
    for method in ('lapack', 'products')
  ],
)
def test_authors_trajectory(path, method):
  with jax.enable_x64(True):
    assert golden_replay.replay(path, method) <= golden_replay.TOLERANCE


def _changed(tmp_path, name, change):
  with np.load(FOLDER / name) as data:
    arrays = dict(data)
  meta = json.loads(str(arrays['meta']))
  change(meta, arrays)
  if 'meta' in arrays:
    arrays['meta'] = json.dumps(meta)
  np.savez(tmp_path / 'x.npz', **arrays)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda m, a: m.update(method='sgd'), "unknown method 'sgd'"),
    (lambda m, a: m['hyperparameters'].update(x=1), 'of lora_rite: x'),
    (lambda m, a: m.pop('scale'), 'meta lacks scale'),
    (lambda m, a: a.pop('A_0'), 'array A_0 is missing'),
    (lambda m, a: a.pop('meta'), 'not a recorded trajectory'),
  ],
)
def test_a_file_it_cannot_replay_is_named(tmp_path, capsys, change, message):
  _changed(tmp_path, 'rite_rank1.npz', change)
  assert golden_replay.main([str(tmp_path)]) == 1
  assert message in capsys.readouterr().out


def test_a_deviation_is_found(tmp_path, capsys):
  def change(meta, arrays):
    arrays['B_0'] = arrays['B_0'] * (1 + 1e-8)

  _changed(tmp_path, 'plus_16.npz', change)
  assert golden_replay.main([str(tmp_path)]) == 1
  assert '1.0e-08 ABOVE' in capsys.readouterr().out


def test_an_empty_folder_is_an_error(tmp_path, capsys):
  assert golden_replay.main([str(tmp_path)]) == 1
  assert 'no .npz file' in capsys.readouterr().err
