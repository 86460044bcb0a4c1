"""Gin files and flags: what is said when they are wrong, and every config."""

import pathlib

import pytest

from lora_opt import config

ROOT = pathlib.Path(__file__).parent.parent
OPTIMIZERS = sorted(p.stem for p in (ROOT / 'configs/optimizers').glob('*.gin'))
MODELS = sorted(p.stem for p in (ROOT / 'configs/models').glob('*.gin'))
LORAS = sorted(p.stem for p in (ROOT / 'configs/lora').glob('*.gin'))
FINETUNE = 'configs/runs/finetune.gin'


@pytest.fixture(autouse=True)
def leave_gin_as_it_was():
  yield
  config.gin.clear_config()


def files(**parts):
  parts = {
    'models': 'random',
    'lora': 'all_linear',
    'tasks': 'word_sequence_reversal',
    'optimizers': 'adamw',
  } | parts
  return [FINETUNE, *(f'configs/{k}/{v}.gin' for k, v in parts.items())]


BINDINGS = ['MODEL_DIR=runs/x', 'TRAIN_STEPS=3']


def _recipe(optimizer):
  """The recipe of a file, which may set some of its arguments."""
  return optimizer.removesuffix('_normalised')


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_every_optimizer_file_completes_a_run(optimizer):
  config.load(files(optimizers=optimizer), BINDINGS)
  assert config.settings()['OPTIMIZER'] == f'@lora_opt.{_recipe(optimizer)}()'
  assert config.settings()['TRAIN_STEPS'] == '3'


@pytest.mark.parametrize(('lora', 'scale'), [('all_linear', 3), ('rslora', 6)])
def test_a_normalised_optimizer_is_told_the_scale_of_the_adapters(lora, scale):
  from lora_opt import models

  parts = files(optimizers='lora_rite_normalised', lora=lora)
  config.load(parts, [*BINDINGS, 'LORA_RANK=4', 'LORA_ALPHA=12'])
  assert config.build(models.lora_scale)() == scale
  assert config.settings()['lora_opt.lora_rite.lora_scale'] == '%LORA_SCALE'
  assert config.settings()['LORA_SCALE'] == '@models.lora_scale()'


@pytest.mark.parametrize('model', MODELS)
def test_every_model_file_completes_a_run(model):
  text = (ROOT / f'configs/models/{model}.gin').read_text()
  path = ['MODEL_PATH=weights'] if 'MODEL_PATH' in text else []
  config.load(files(models=model), BINDINGS + path)


@pytest.mark.parametrize('lora', LORAS)
def test_every_adapter_file_completes_a_run(lora):
  config.load(files(lora=lora), BINDINGS)


def test_what_dora_adds_is_trained_by_every_recipe():
  config.load(files(lora='dora'), BINDINGS)
  for name in OPTIMIZERS:
    assert config.settings()[f'lora_opt.{_recipe(name)}.other'] == '%OTHER'


@pytest.mark.parametrize('order', [1, -1])
def test_the_order_of_the_files_does_not_matter(order):
  config.load(files()[::order], BINDINGS)


@pytest.mark.parametrize('name', ['quickstart'])
def test_runs_are_complete(name):
  config.load([f'configs/runs/{name}.gin'])


def test_strings_need_no_quotes():
  config.load([], ['MODEL_DIR=runs/a-b', 'STEPS=3', 'LIST=[1, 2]'])
  assert config.settings() == {
    'MODEL_DIR': "'runs/a-b'",
    'STEPS': '3',
    'LIST': '[1, 2]',
  }


def test_a_binding_may_name_any_optimizer():
  config.load(files(), [*BINDINGS, 'OPTIMIZER=@lora_opt.reflora()'])
  assert config.settings()['OPTIMIZER'] == '@lora_opt.reflora()'


def test_long_values_are_read_whole():
  value = str(list(range(60)))
  config.load([], [f'LIST={value}'])
  joined = config.settings()['LIST'].replace(' ', '')
  assert joined == value.replace(' ', '')


def test_build_fills_in_what_is_configured():
  from lora_opt import models

  config.load(files(), [*BINDINGS, 'LORA_RANK=5'])
  assert config.build(models.LoraConfig)().rank == 5


@pytest.mark.parametrize(
  ('bindings', 'expected'),
  [
    ([], r'required and not set: MODEL_DIR, TRAIN_STEPS'),
    (['TRIAN_STEPS=3'], r'TRIAN_STEPS.*Did you mean TRAIN_STEPS\?'),
    (['models.LoraConfig.rslora=false'], 'rslora=false: write True, False or'),
    ([*BINDINGS, 'OPTIMIZER=@lora_opt.nope()'], 'no attribute nope'),
    ([*BINDINGS, 'loop.train.nope=1'], "doesn't have a parameter named 'nope'"),
    ([*BINDINGS, 'nope.train.x=1'], "'nope' was not provided"),
    ([*BINDINGS, 'BATCH_SIZE=[1,'], r'--gin.BATCH_SIZE=\[1,'),
  ],
)
def test_mistakes_in_flags_are_named(bindings, expected):
  with pytest.raises(config.ConfigError, match=expected):
    config.load(files(), bindings)


def test_a_missing_file_is_named():
  with pytest.raises(config.ConfigError, match='nowhere.gin'):
    config.load(['nowhere.gin'])


def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path):
  path = tmp_path / 'bad.gin'
  path.write_text('A = 1\nB = = 2\n')
  with pytest.raises(config.ConfigError, match='bad.gin'):
    config.load([str(path)])
