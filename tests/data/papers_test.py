"""The papers' tables: every run is configured, each trains on a tiny model."""

import itertools
import json
import pathlib

import pytest

from experiments import study
from experiments.papers import plans
from experiments.plans.run import planned
from lora_opt import config
from lora_opt.evaluation.history import read_metrics
from lora_opt.run_folder.run_directory import RunRecord
from lora_opt.training import loop

ROOT = pathlib.Path(__file__).parents[2]
TABLES = sorted(p.stem for p in (ROOT / 'experiments/papers').glob('*.json'))
# One table for each gin file and kind of model: what others of the same file
# differ in, the published model, is not there.
TRAINED = {
  'lora_plus_gpt2': 'lora_plus',
  'lora_plus_llama_7b': 'lora_plus',
  'lora_plus_roberta': 'lora_plus',
  'lora_rite_commonsense': 'adamw',
  'lora_rite_gemma_2b': 'lora_rite',
  'lora_rite_mt5_xxl': 'adamw',
  'reflora_glue': 'reflora_s',
  'reflora_llama_7b': 'reflora',
}
# A decoder and an encoder; the others are much like these, or compile for long.
SOON = ('lora_rite_gemma_2b', 'lora_plus_roberta')
ELSEWHERE = ['DATA_DIR=x', 'MODEL_PATH=x', 'MODEL_DIR=x']
SHORT = [
  *('TRAIN_STEPS=3', 'BATCH_SIZE=2', 'MICROBATCHES=1', 'DATA_WORKERS=0'),
  *('EVAL_EXAMPLES=1', 'MAX_NEW_TOKENS=2', 'MODEL_PATH=x', 'LORA_RANK=2'),
  *('loop.train.evaluate_before=False', 'loop.train.diagnostics=False'),
]
TINY = {
  'random_encoder': ['models.random_encoder.num_layers=1'],
  'random_t5': [
    *(
      'models.random_seq2seq.num_layers=1',
      'models.random_seq2seq.num_decoder_layers=1',
    ),
  ],
  'random': [  # whose tokens are bytes
    *(
      'models.random_model.num_layers=1',
      "TASK_FEATURE_LENGTHS={'targets': 512}",
    ),
  ],
}


@pytest.fixture(autouse=True)
def leave_gin_as_it_was(monkeypatch):
  monkeypatch.chdir(ROOT)
  yield
  config.gin.clear_config()


def configured(name):
  """Files and bindings: of every method on one task, of every task with one."""
  table = study.read(ROOT / f'experiments/papers/{name}.json')
  # Ranks, seeds and rates are numbers: one of each says all.
  table |= {key: table[key][:1] for key in ('ranks', 'seeds', 'factors')}
  table |= {'widen': 0}
  for single in ('tasks', 'methods'):
    part = table | {single: dict([next(iter(table[single].items()))])}
    seen = set()
    for run in itertools.chain(*study.ready(part, {})):
      flags = [*table['flags'], *run]
      files, bindings = (
        [f.removeprefix(start) for f in flags if f.startswith(start)]
        for start in ('--gin_file=', '--gin.')
      )
      if tuple(files) not in seen:
        yield files, bindings
      seen.add(tuple(files))


def tiny_model():
  """Which of the models with random weights is like the one configured."""
  settings = config.settings()
  if 'NUM_OUTPUTS' in settings:
    return 'random_encoder'
  if 'mt5' in settings['models.from_folder.name']:
    return 'random_t5'
  return 'random'


@pytest.mark.parametrize('name', TABLES)
def test_every_run_of_a_table_is_configured(name):
  for files, bindings in configured(name):
    config.load(files, [*bindings, *ELSEWHERE])
    assert config.settings()['OPTIMIZER'].startswith('@lora_opt.')


def test_every_file_of_the_papers_is_trained_with():
  used = {
    file for name in TRAINED for files, _ in configured(name) for file in files
  }
  there = (ROOT / 'experiments/papers').glob('*.gin')
  included = {'experiments/papers/glue_encoder.gin'}
  assert {str(p.relative_to(ROOT)) for p in there} - included <= used


@pytest.mark.slow
@pytest.mark.usefixtures('fast_compile')
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(n, marks=[pytest.mark.long] * (n not in SOON)) for n in TRAINED
  ],
)
def test_a_table_trains_on_a_tiny_model(name, prepared, tmp_path):
  optimizer = f'configs/optimizers/{TRAINED[name]}.gin'
  files, bindings = next(run for run in configured(name) if optimizer in run[0])
  config.load(files, [*bindings, *ELSEWHERE])
  tiny = tiny_model()
  files.append(f'configs/models/{tiny}.gin')
  places = [f'DATA_DIR={prepared}', f'MODEL_DIR={tmp_path}']
  config.load(files, [*bindings, *SHORT, *TINY[tiny], *places])
  config.build(loop.train)(record=RunRecord(settings=config.settings()))
  run = json.loads((tmp_path / 'run.json').read_text())
  assert run['steps'] == 3 and run['model'] == 'random'
  assert run['trainable_parameters'] > 0
  assert [row['step'] for row in read_metrics(tmp_path)] == [1, 2, 3]


# The models differ; the tables of one model do not, to a compiler.
@pytest.mark.long
@pytest.mark.parametrize(
  'name', ['lora_plus_gpt2', 'reflora_glue', 'lora_rite_gemma_2b']
)
def test_a_table_compiles_at_full_size(name, tmp_path):
  """For simulated devices, which takes seconds."""
  words = plans.command(name, tmp_path, f'{plans.DEVICES}xcpu')
  found = planned([*words, '--gin.plan.plan.search=False'], tmp_path)
  assert found['collectives'], 'eight devices must speak with each other'


@pytest.mark.long
@pytest.mark.parametrize('name', TABLES)
def test_a_table_fits_its_chips(name, tmp_path):
  """By the compiler of TPUs, where it is installed."""
  words = plans.command(name, tmp_path)
  found = planned([*words, '--gin.plan.plan.search=False'], tmp_path)
  assert found['fits'], found['total_bytes_per_device']
  assert found['collectives'], 'eight devices must speak with each other'
