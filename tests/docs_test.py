"""The documentation site, as far as it can be checked without building it."""

import doctest
import importlib.util
import json
import pathlib
import re

import pytest

import lora_opt
from lora_opt import linalg, models, transforms
from lora_opt.data import sources, tasks

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / 'docs'
PAGES = sorted(
  path
  for path in DOCS.rglob('*')
  if path.suffix in ('.md', '.rst', '.ipynb')
  and not {'_build', '.ipynb_checkpoints'} & set(path.parts)
)
NOTEBOOKS = [path for path in PAGES if path.suffix == '.ipynb']
# Names of the reference that are constants, types, or have another home.
NOT_DOCUMENTED = {
  'EMBEDDINGS', 'ILL_CONDITIONED', 'MAX_CHANGE', 'MAX_CONSECUTIVE_SKIPS',
  'Method', 'RESOLUTION', 'Row', 'ScalarOrSchedule', 'diagnostics', 'linalg',
  'pairs', 'transforms',
}  # fmt: skip


def _load(path: pathlib.Path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _text(page: pathlib.Path) -> str:
  """The page, or the text cells of a notebook."""
  text = page.read_text(encoding='utf-8')
  if page.suffix != '.ipynb':
    return text
  cells = json.loads(text)['cells']
  return '\n'.join(''.join(cell['source']) for cell in cells)


def _toctree(page: pathlib.Path) -> list[pathlib.Path]:
  """The pages that the toctrees of a page name, without their suffix."""
  blocks = re.findall(r'```{toctree}\n(.*?)```', _text(page), re.S)
  names = [
    name for block in blocks for name in re.findall(r'^\w\S*$', block, re.M)
  ]
  return [page.parent / name for name in names]


@pytest.fixture(scope='module')
def links():
  return _load(DOCS / '_extensions/repository_links.py')


@pytest.fixture(scope='module')
def tracked(links):
  return links.tracked()


def test_every_page_is_in_one_toctree():
  named = [target for page in PAGES for target in _toctree(page)]
  pages = [path.with_suffix('') for path in PAGES]
  assert sorted([*named, DOCS / 'index']) == pages


@pytest.mark.parametrize(
  'page', PAGES, ids=lambda path: str(path.relative_to(DOCS))
)
def test_links_to_files_of_the_repository_hold(page, links, tracked):
  targets = links.links(_text(page))
  missing = [x for x in targets if links.resolve(page, x) not in tracked]
  assert not missing


def test_a_link_to_a_missing_file_is_found(links, tracked):
  page = DOCS / 'install.md'
  assert links.resolve(page, '../setup.py#x') in tracked
  assert links.resolve(page, '../experiments/glue') in tracked
  assert links.resolve(page, '../no_such_file.py') not in tracked


@pytest.mark.parametrize(
  'name', ['colab_badge', 'docstrings', 'repository_links']
)
def test_doctests_of_the_extensions(name):
  assert not doctest.testmod(_load(DOCS / f'_extensions/{name}.py')).failed


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_results(path):
  notebook = json.loads(path.read_text(encoding='utf-8'))
  assert (notebook['nbformat'], notebook['nbformat_minor']) == (4, 5)
  assert notebook['metadata']['kernelspec']['name'] == 'python3'
  ids = [cell['id'] for cell in notebook['cells']]
  assert len(set(ids)) == len(ids)
  assert notebook['cells'][0]['cell_type'] == 'markdown'
  for cell in notebook['cells']:
    assert isinstance(cell['source'], list)
    assert isinstance(cell['metadata'], dict)
    if cell['cell_type'] == 'code':
      assert cell['outputs'] == [] and cell['execution_count'] is None


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_install_from_the_repository_of_conf_py(path):
  conf = (DOCS / 'conf.py').read_text(encoding='utf-8')
  repository = re.search(r"^REPOSITORY = '(.*)'$", conf, re.M)[1]
  assert f'git+{repository}' in _text(path)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('MPLBACKEND', 'agg')
  cells = json.loads(path.read_text(encoding='utf-8'))['cells']
  names = {}
  for i, cell in enumerate(cells):
    if cell['cell_type'] == 'code':
      # Everything is installed, and this is no IPython.
      code = re.sub(r'%pip .*', 'pass', ''.join(cell['source']))
      exec(compile(code, f'{path.stem}, cell {i}', 'exec'), names)


@pytest.mark.parametrize(
  ('module', 'pages'),
  [
    (lora_opt, ['optimizers', 'pairs']),
    (transforms, ['transforms', 'optimizers']),
    (linalg, ['linalg']),
    (models, ['models']),
    (tasks, ['tasks']),
    (sources, ['sources']),
  ],
  ids=lambda x: getattr(x, '__name__', ''),
)
def test_every_public_name_is_in_the_reference(module, pages):
  text = '\n'.join(_text(DOCS / f'api/{page}.rst') for page in pages)
  there = set(re.findall(r'^\.\. auto\w+:: (\w+)$', text, re.M))
  assert set(module.__all__) - NOT_DOCUMENTED <= there
