"""The layers of the code, by the imports that stand in its files.

-3 buckets             etils and fsspec, once a bucket is named
-2 reading, writing    -3, the standard library
-1 progress            -2, tqdm
0 linalg               jax
1 layouts, pairs       jax
2 transforms           0, 1, optax
3 optimizers, diagnostics, state_sharding, the package itself: 0-2, optax
4 integrations/X       1-3 and library X
5 models, data         -3 to -1; never 2-4
6 training, evaluation, planning   never 4-5: they receive model and task
7 command, config, main   everything; only config imports gin
"""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / 'lora_opt').rglob('*.py'))
LAYERS = {
  'buckets': -3,
  'reading': -2,
  'writing': -2,
  'progress': -1,
  'linalg': 0,
  'layouts': 1,
  'pairs': 1,
  'transforms': 2,
  'optimizers': 3,
  'diagnostics': 3,
  'state_sharding': 3,
  '': 3,
  'integrations': 4,
  'models': 5,
  'data': 5,
  'training': 6,
  'planning': 6,
  'evaluation': 6,
  'command': 7,
  'config': 7,
  'gin_text': 7,
  'gin_types': 7,
  'main': 7,
}
# Layers of this package that a layer may import.
MAY_IMPORT = {
  -3: {-3},
  -2: {-3, -2},
  -1: {-2, -1},
  0: {0},
  1: {1},
  2: {0, 1, 2},
  3: {0, 1, 2, 3},
  4: {1, 2, 3, 4},
  5: {-3, -2, -1, 0, 1, 5},
  6: {-3, -2, -1, 0, 1, 2, 3, 6},
  7: set(range(-3, 8)),
}
# The publishable library: what `pip install lora_opt` brings.
BASE = {
  -3: {'etils', 'fsspec'},
  -2: set(),
  -1: {'tqdm'},
  0: {'jax'},
  1: {'jax'},
  2: {'jax', 'optax'},
  3: {'jax', 'optax'},
}


def imported_modules(source: str) -> list[str]:
  """Absolute names of everything imported, also inside functions."""
  names = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'relative import'
      names += [f'{node.module}.{alias.name}' for alias in node.names]
  return names


def layer_of(module: str) -> int:
  """The layer of 'lora_opt.a.b'; names of the package itself are layer 3."""
  parts = module.split('.')
  return LAYERS.get(parts[1] if len(parts) > 1 else '', 3)


def violations(path: pathlib.Path, source: str) -> list[str]:
  parts = path.relative_to(ROOT / 'lora_opt').with_suffix('').parts
  name = '' if parts == ('__init__',) else parts[0]
  if name not in LAYERS:
    return [f'{path.name}: belongs to no layer']
  layer, wrong = LAYERS[name], []
  for module in imported_modules(source):
    top = module.split('.')[0]
    if top == 'lora_opt':
      if layer_of(module) not in MAY_IMPORT[layer]:
        wrong.append(f'layer {layer} imports {module}')
    elif top == 'gin' and name != 'config':
      wrong.append('only config imports gin')
    elif top not in sys.stdlib_module_names and top not in BASE.get(
      layer, {top}
    ):
      wrong.append(f'layer {layer} imports {module}')
  return wrong


@pytest.mark.parametrize(
  'path', FILES, ids=lambda p: str(p.relative_to(ROOT / 'lora_opt'))
)
def test_layers(path):
  assert not violations(path, path.read_text(encoding='utf-8'))


@pytest.mark.parametrize(
  ('file', 'line'),
  [
    ('progress.py', 'import jax'),
    ('buckets/x.py', 'from lora_opt import writing'),
    ('reading/x.py', 'import jax'),
    ('linalg.py', 'import optax'),
    ('pairs.py', 'from lora_opt import linalg'),
    ('transforms/_x.py', 'import flax'),
    ('transforms/_x.py', 'from lora_opt.optimizers import adamw'),
    ('optimizers.py', 'def f():\n  import gin'),
    ('models/x.py', 'import lora_opt.transforms'),
    ('training/x.py', 'from lora_opt.models import decoder'),
    ('training/x.py', 'import gin'),
    ('strange.py', ''),
  ],
)
def test_a_violation_is_found(file, line):
  assert violations(ROOT / 'lora_opt' / file, line)


def test_base_install_imports_nothing_else():
  """`import lora_opt` must work with jax and optax alone."""
  code = (
    'import sys, lora_opt;'
    "extra = {'flax', 'orbax', 'grain', 'gin', 'tokenizers', 'safetensors',"
    "'tqdm', 'tensorboardX', 'gguf', 'fsspec'} & set(sys.modules);"
    'sys.exit(str(extra) if extra else 0)'
  )
  run = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert run.returncode == 0, run.stderr
