"""Models, adapters and data by name, from a server that speaks the protocol."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pyarrow as pa
import pytest
from pyarrow import parquet

from lora_opt.models import LoraConfig, from_folder
from tests.data import hub_server
from tests.models.parity import material

pytestmark = pytest.mark.slow

LLAMA = {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'vocab_size': 262,
  'hidden_size': 16,
  'intermediate_size': 24,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'num_key_value_heads': 1,
  'max_position_embeddings': 64,
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': False,
}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Repositories of a model, of one that is gated, and of a data set."""
  root = tmp_path_factory.mktemp('hub')
  for name in ('org/tiny', 'gated/tiny'):
    folder = root / 'models' / name
    folder.mkdir(parents=True)
    material.write_folder(folder, json.dumps(LLAMA))
  # Other forms of the same weights, which nobody needs.
  folder = root / 'models/org/tiny'
  for other in ('consolidated.safetensors', 'onnx/model.safetensors', 'a.bin'):
    (folder / other).parent.mkdir(exist_ok=True)
    (folder / other).write_bytes(b'\0' * 100)
  model = from_folder(folder, lora=LoraConfig(rank=2))
  adapter = root / 'models/org/adapter'
  model.export(adapter, model.init(jax.random.key(0)))
  data = root / 'datasets/org/rows/data'
  data.mkdir(parents=True)
  for split, count in (('train', 3), ('test', 2)):
    table = pa.table({'question': [f'{split} {i}' for i in range(count)]})
    parquet.write_table(table, data / f'{split}-00000-of-00001.parquet')
  return root


@pytest.fixture
def hub(root, tmp_path):
  with hub_server.serve(root) as hub:
    yield hub


def ask(hub, home, code, **settings):
  """Runs code in a process of its own, whose hub is the server.

  The library reads its settings when it is imported.
  """
  environment = os.environ | {
    'HF_HOME': str(home),
    'HF_ENDPOINT': hub.url,
    'HF_HUB_DISABLE_TELEMETRY': '1',
    'HF_HUB_DISABLE_PROGRESS_BARS': '1',
    **settings,
  }
  environment.pop('HF_TOKEN', None)
  environment |= settings
  prelude = (
    'import sys\nfrom lora_opt.models import LoraConfig, from_folder\n'
    'from lora_opt.data import sources\n'
  )
  body = '\n'.join(f'  {line}' for line in code.splitlines())
  caught = 'except (OSError, ValueError) as error:\n  print("error:", error)\n'
  return subprocess.run(
    [sys.executable, '-c', f'{prelude}try:\n{body}\n{caught}'],
    cwd=home.parent,
    env=environment | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])},
    capture_output=True,
    text=True,
    timeout=120,
  )


LOAD = """
model = from_folder('org/tiny', lora=LoraConfig(rank=2))
adapter = model.load_adapter('org/adapter')
print(model.name, len(adapter), float(model.base['embedding']['table'][3, 3]))
"""


def test_a_model_and_an_adapter_are_fetched_once(hub, tmp_path):
  home = tmp_path / 'home'
  merge = "model.merge('merged', adapter, source='org/tiny')\n"
  done = ask(hub, home, LOAD + merge)
  name, _, value = done.stdout.split()
  assert name == 'org/tiny', done.stderr
  here = from_folder(hub.root / 'models/org/tiny')
  assert float(value) == float(here.base['embedding']['table'][3, 3])
  assert hub.fetched() == {
    'config.json', 'model.safetensors', 'tokenizer.json',
    'tokenizer_config.json', 'adapter_config.json',
    'adapter_model.safetensors',
  }  # fmt: skip
  merged = from_folder(tmp_path / 'merged')
  assert merged.tokenizer.vocab_size == here.tokenizer.vocab_size
  hub.asked.clear()
  again = ask(hub, home, LOAD)
  assert again.stdout == done.stdout
  assert not hub.fetched()


@pytest.mark.long
def test_offline_what_was_fetched_is_there(hub, tmp_path):
  home = tmp_path / 'home'
  done = ask(hub, home, LOAD)
  hub.asked.clear()
  offline = ask(hub, home, LOAD, HF_HUB_OFFLINE='1')
  assert offline.stdout == done.stdout
  assert not hub.asked


@pytest.mark.long
def test_a_download_that_was_cut_is_made_whole(hub, tmp_path):
  hub.cut = 20000
  done = ask(hub, tmp_path / 'home', LOAD)
  assert done.stdout.startswith('org/tiny'), done.stderr
  ends = '/tiny/resolve/', '/model.safetensors'
  asked = [m for m, path, _ in hub.asked if all(end in path for end in ends)]
  assert asked.count('GET') == 2


def test_revisions_tokens_and_names(hub, tmp_path):
  home = tmp_path / 'home'
  names = {
    f'org/tiny@{hub_server.COMMIT}': 'good',
    'gated/tiny': 'gated/tiny is gated: accept',
    'org/none': 'no folder org/none, and no model org/none on the hub',
    'org/tiny@v9': "org/tiny has no revision 'v9'",
    '/no/such': 'no model folder at /no/such',
    'home/mine': 'no model folder at home/mine',
  }
  home.mkdir()
  done = ask(hub, home, TRY.format(list(names)))
  lines = done.stdout.splitlines()
  for line, (name, said) in zip(lines, names.items(), strict=True):
    assert said in line, (name, done.stderr)
  assert not [p for _, p, _ in hub.asked if 'mine' in p or 'such' in p]
  done = ask(hub, home, TRY.format(['gated/tiny']), HF_TOKEN='secret')
  assert done.stdout == 'good\n', done.stderr


TRY = """
for name in {}:
  try:
    from_folder(name)
    print('good')
  except (OSError, ValueError) as error:
    print(error)
"""


def test_without_a_network_it_is_said(hub, tmp_path):
  hub.url = 'http://127.0.0.1:9'
  said = ask(hub, tmp_path / 'home', "from_folder('org/tiny')").stdout
  assert 'no folder org/tiny, and the hub cannot be reached' in said


def test_data_sets_by_name(hub, tmp_path):
  code = """
for split in ('test', 'nope'):
  print([r['question'] for r in sources.HuggingFace('org/rows', split)])
"""
  done = ask(hub, tmp_path / 'home', code)
  found, refused = done.stdout.splitlines()
  assert found == "['test 0', 'test 1']", done.stderr
  assert "holds no split 'nope'" in refused
  assert hub.fetched() == {'data/test-00000-of-00001.parquet'}
