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
6 devices              never 4-5, as all up to 10: they receive model and task
7 run_folder           6
8 evaluation           6, 7
9 training             6-8
10 planning            6-9
11 command, config, main   everything; only config imports gin

Nothing imports in a circle: no modules, and no parts of one package.
"""

import ast
import itertools
import pathlib
import subprocess
import sys
from collections.abc import Mapping

import pytest

ROOT = pathlib.Path(__file__).parents[1]
Graph = dict[str, set[str]]
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
  'devices': 6,
  'run_folder': 7,
  'evaluation': 8,
  'training': 9,
  'planning': 10,
  'command': 11,
  'config': 11,
  'gin_text': 11,
  'gin_types': 11,
  'main': 11,
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
  # From 6 on, all below but 4 and 5, which are given to them as arguments.
  **{n: set(range(-3, n + 1)) - {4, 5} for n in range(6, 11)},
  11: set(range(-3, 12)),
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


def modules(root: pathlib.Path) -> dict[str, str]:
  """The source of every module of the package and of the experiments."""
  found = {}
  for top in ('lora_opt', 'experiments'):
    for path in (root / top).rglob('*.py'):
      parts = path.relative_to(root).with_suffix('').parts
      name = '.'.join(parts).removesuffix('.__init__')
      found[name] = path.read_text(encoding='utf-8')
  return found


def imports(sources: Mapping[str, str]) -> Graph:
  """Which of these modules each imports: also in functions, also for types."""
  graph: Graph = {}
  for name, source in sources.items():
    graph[name] = set()
    for other in imported_modules(source):
      while other and other not in sources:
        other = other.rpartition('.')[0]
      graph[name] |= {other} - {'', name}
  return graph


def imports_of_parts(graph: Graph, package: str) -> Graph:
  """The same for what lies in a package: modules, and folders as a whole."""
  parts: Graph = {}
  inside = f'{package}.'
  for name, others in graph.items():
    for other in others:
      if name.startswith(inside) and other.startswith(inside):
        one, two = (x.removeprefix(inside).split('.')[0] for x in (name, other))
        if one != two:
          parts.setdefault(one, set()).add(two)
  return parts


def circle(graph: Graph) -> list[str]:
  """A way along the imports back to where it began; [] if there is none.

  >>> circle({'a': {'b', 'c'}, 'b': set(), 'c': {'d'}, 'd': {'c'}})
  ['c', 'd', 'c']
  """
  way: list[str] = []
  done = set()

  def visit(name: str) -> list[str]:
    if name in way:
      return [*way[way.index(name) :], name]
    if name in done:
      return []
    done.add(name)
    way.append(name)
    for other in sorted(graph.get(name, ())):
      if found := visit(other):
        return found
    way.pop()
    return []

  return next(filter(None, map(visit, sorted(graph))), [])


def circle_of_parts(graph: Graph, package: str) -> str:
  """Says which parts of a package import each other, and by which imports."""
  found = circle(imports_of_parts(graph, package))
  lines = [f'in {package}: {" -> ".join(found)}'] if found else []
  for one, two in itertools.pairwise(found):
    lines += [
      f'  {name} imports {other}'
      for name in sorted(graph)
      for other in sorted(graph[name])
      if f'{name}.'.startswith(f'{package}.{one}.')
      and f'{other}.'.startswith(f'{package}.{two}.')
    ]
  return '\n'.join(lines)


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
    ('evaluation/x.py', 'from lora_opt.training import loop'),
    ('run_folder/x.py', 'from lora_opt.evaluation import history'),
    ('devices/x.py', 'if TYPE_CHECKING:\n  from lora_opt.training import step'),
    ('training/x.py', 'import gin'),
    ('strange.py', ''),
  ],
)
def test_a_violation_is_found(file, line):
  assert violations(ROOT / 'lora_opt' / file, line)


@pytest.fixture(scope='module')
def graph():
  return imports(modules(ROOT))


def test_no_modules_import_in_a_circle(graph):
  found = circle(graph)
  assert not found, ' -> '.join(found)


def test_no_parts_of_a_package_import_in_a_circle(graph):
  packages = {name.rpartition('.')[0] for name in graph} - {''}
  found = [
    text for p in sorted(packages) if (text := circle_of_parts(graph, p))
  ]
  assert not found, '\n'.join(found)


def test_a_circle_is_found():
  sources = {
    'lora_opt.models.lm': 'from lora_opt.models.pretrained import peft',
    'lora_opt.models.pretrained.peft': 'import jax',
    'lora_opt.models.pretrained.gguf': (
      'if TYPE_CHECKING:\n  from lora_opt.models.lm import LM'
    ),
  }
  apart = imports(sources)
  assert circle(apart) == []
  assert circle_of_parts(apart, 'lora_opt.models') == (
    'in lora_opt.models: lm -> pretrained -> lm\n'
    '  lora_opt.models.lm imports lora_opt.models.pretrained.peft\n'
    '  lora_opt.models.pretrained.gguf imports lora_opt.models.lm'
  )
  sources['lora_opt.models.pretrained.peft'] = (
    'def f():\n  import lora_opt.models.lm'
  )
  lm, peft = 'lora_opt.models.lm', 'lora_opt.models.pretrained.peft'
  assert circle(imports(sources)) == [lm, peft, lm]


def test_files_are_short():
  """A file of more than 500 lines is more than one idea."""
  for top in ('lora_opt', 'experiments', 'launch', 'tests'):
    for path in (ROOT / top).rglob('*.py'):
      assert len(path.read_text(encoding='utf-8').splitlines()) <= 500, path


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
