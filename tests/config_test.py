"""Gin files and flags: what is said when they are wrong, and every config."""

import pathlib

import pytest

from lora_opt import config
from lora_opt.training import loop

ROOT = pathlib.Path(__file__).parent.parent
OPTIMIZERS = sorted(p.stem for p in (ROOT / 'configs/optimizers').glob('*.gin'))
MODELS = sorted(p.stem for p in (ROOT / 'configs/models').glob('*.gin'))
LORAS = sorted(p.stem for p in (ROOT / 'configs/lora').glob('*.gin'))
FINETUNE = 'configs/runs/finetune.gin'

pytestmark = pytest.mark.usefixtures('leave_gin_as_it_was')


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


def test_float32_masters_go_around_a_recipe():
  config.load(
    files(optimizers='lora_rite'),
    [
      *BINDINGS,
      'OPTIMIZER=@lora_opt.float32_masters()',
      'lora_opt.float32_masters.inner=@lora_opt.lora_rite()',
    ],
  )
  assert config.settings()['OPTIMIZER'] == '@lora_opt.float32_masters()'


@pytest.mark.parametrize('optimizer', ['adamw', 'recommended'])
def test_an_average_goes_around_every_optimizer_file(optimizer):
  parts = files(optimizers=optimizer, schedules='averaged')
  config.load(parts, BINDINGS, called=[loop.train])
  settings = config.settings()
  assert settings['WHOLE_OPTIMIZER'] == '@lora_opt.averaged()'
  assert settings['lora_opt.averaged.inner'] == '%OPTIMIZER'
  assert settings['LEARNING_RATE'] == '@schedules.warmup_constant()'
  assert settings['OPTIMIZER'] == f'@lora_opt.{optimizer}()'


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
  must = {'MODEL_PATH': 'weights', 'NUM_OUTPUTS': 2}
  bindings = [f'{k}={v}' for k, v in must.items() if k in text]
  config.load(files(models=model), BINDINGS + bindings)


@pytest.mark.parametrize('lora', LORAS)
def test_every_adapter_file_completes_a_run(lora):
  config.load(files(lora=lora), BINDINGS)


@pytest.mark.parametrize('name', ['wandb', 'mlflow', 'trackio'])
def test_every_tracker_file_completes_a_run(name):
  from lora_opt.training import loop

  config.load(
    [*files(), f'configs/trackers/{name}.gin'], BINDINGS, (), [loop.train]
  )
  assert config.settings()['TRACKERS'] == f'[@trackers.{name.capitalize()}()]'


def test_several_trackers_are_chosen_on_the_command_line():
  from lora_opt.training import loop

  chosen = '[@trackers.Wandb(), @trackers.Mlflow()]'
  more = ['TRACKERS=' + chosen, 'trackers.Wandb.mode=offline']
  config.load(files(), [*BINDINGS, *more], (), [loop.train])
  assert config.settings()['TRACKERS'] == chosen


def test_what_dora_adds_is_trained_by_every_recipe():
  config.load(files(lora='dora'), BINDINGS)
  for name in OPTIMIZERS:
    assert config.settings()[f'lora_opt.{_recipe(name)}.other'] == '%OTHER'


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_a_head_never_gets_a_rate_in_other_units_than_adams(name):
  config.load(files(optimizers=name, lora='encoder'), BINDINGS)
  settings = config.settings()
  assert settings['optax.adamw.learning_rate'] == '%HEAD_LEARNING_RATE'
  assert settings['HEAD_LEARNING_RATE'] == '%OTHER_LEARNING_RATE'
  of_adapters = settings['OTHER_LEARNING_RATE'] == '%LEARNING_RATE'
  if of_adapters:
    assert float(settings['PEAK_LEARNING_RATE']) <= 1e-3
  else:
    assert float(settings['OTHER_PEAK_LEARNING_RATE']) == 1e-3


@pytest.mark.parametrize('order', [1, -1])
def test_the_order_of_the_files_does_not_matter(order):
  config.load(files()[::order], BINDINGS)


@pytest.mark.parametrize(
  ('name', 'bindings'),
  [
    ('quickstart', []),
    ('image_classification', ['MODEL_PATH=a', 'IMAGES=b', 'NUM_OUTPUTS=2']),
    (
      'dreambooth',
      ['MODEL_PATH=a', 'INSTANCE_IMAGES=b', 'INSTANCE_PROMPT=a sks dog'],
    ),
  ],
)
def test_runs_are_complete(name, bindings):
  config.load([f'configs/runs/{name}.gin'], bindings)


def test_an_optimizer_takes_back_the_clipping_of_another():
  set_by_the_run = ['MODEL_PATH=a', 'INSTANCE_IMAGES=b', 'INSTANCE_PROMPT=c']
  for name, clip in (('adamw', '1.0'), ('lora_rite', 'None')):
    files = ['configs/runs/dreambooth.gin', f'configs/optimizers/{name}.gin']
    config.load(files, set_by_the_run)
    assert config.settings()['CLIP_NORM'] == clip


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


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('A = 1\nB = = 2\n', 'line 2: Unable to parse value'),
    ('A = 1\n  B = 2\n C = 3\n', 'line 3: '),
    ('A = 1\nB = """x\n', 'line [23]: '),
    ('A = [1,\n', 'line [12]: '),
    ('A = 1\nnope.x = 2\n', 'line 2: .*nope'),
    ('import no_such_module\n', 'line 1: No module named'),
    ('A = 1\ninclude 3\n', 'line 2: Expected file path'),
    ('A = 1e999\n', "line 1: '1e999' is too large"),
    ('A = ' + '9' * 5000, 'line 1: '),
    ('A = ' + '[' * 60 + ']' * 60, 'line 1: brackets nested more than 50'),
    ('A = ' + '(' * 100_000, 'line 1: '),
    ('# é\nA = \x00', 'line [12]: '),
    ('A = %B\nB = [%C]\nC = %B\n', 'B = %C = %B|C = %B = %C'),
    ('A = 1\n' * 100_000, 'at most 524,288 are read'),
  ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path, text, said):
  path = tmp_path / 'bad.gin'
  path.write_text(text, encoding='utf-8')
  with pytest.raises(config.ConfigError, match=said) as caught:
    config.load([str(path)])
  message = str(caught.value)
  assert str(path) in message or 'the value needs itself' in message
  assert len(message) < 1500


@pytest.mark.parametrize('data', [b'\xff\xfe', b'A = "\xe9"', b'\x00' * 99])
def test_a_file_that_is_no_text_is_named(tmp_path, data):
  path = tmp_path / 'bad.gin'
  path.write_bytes(data)
  with pytest.raises(config.ConfigError, match=r'bad\.gin'):
    config.load([str(path)])


def test_a_mistake_in_an_included_file_is_named_there(tmp_path):
  outer, inner = tmp_path / 'outer.gin', tmp_path / 'inner.gin'
  outer.write_text(f"A = 1\ninclude '{inner}'\n", encoding='utf-8')
  inner.write_text('B = 1\nC = 2\nD = =\n', encoding='utf-8')
  with pytest.raises(config.ConfigError) as caught:
    config.load([str(outer)])
  assert str(caught.value) == f'{inner}, line 3: Unable to parse value.'


def test_an_included_file_that_is_missing_is_named(tmp_path):
  outer = tmp_path / 'outer.gin'
  outer.write_text("A = 1\n\ninclude 'nowhere.gin'\n", encoding='utf-8')
  with pytest.raises(config.ConfigError, match=r'outer.gin, line \d.*nowhere'):
    config.load([str(outer)])


def test_a_file_that_includes_itself_is_named(tmp_path):
  one, two = tmp_path / 'one.gin', tmp_path / 'two.gin'
  one.write_text(f"include '{two}'\n", encoding='utf-8')
  two.write_text(f"include '{one}'\n", encoding='utf-8')
  with pytest.raises(config.ConfigError, match=r'one.gin includes itself'):
    config.load([str(one)])


def test_files_that_include_each_other_too_often_are_stopped(tmp_path):
  for number in range(30):  # each includes the next one twice: 2^30 readings
    name = tmp_path / f'{number + 1}.gin'
    line = f"include '{name}'\n" if number < 29 else 'A = 1\n'
    path = tmp_path / f'{number}.gin'
    path.write_text(2 * line, encoding='utf-8')
  with pytest.raises(config.ConfigError, match='more than 500 gin files'):
    config.load([str(tmp_path / '0.gin')])


def test_configs_are_found_from_anywhere(tmp_path, monkeypatch):
  # Where the project is on the path of modules, gin itself would take configs/
  # for a package.
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(ROOT))
  config.load(['configs/runs/quickstart.gin'])
  with pytest.raises(config.ConfigError, match=r"no gin file 'configs/x\.gin'"):
    config.load(['configs/x.gin'])


def test_further_folders_are_those_of_one_call(tmp_path):
  (tmp_path / 'mine.gin').write_text('A = 1\n', encoding='utf-8')
  config.load(['mine.gin'], search_paths=[str(tmp_path)])
  assert config.settings() == {'A': '1'}
  with pytest.raises(config.ConfigError, match='no gin file'):
    config.load(['mine.gin'])


@pytest.mark.parametrize(
  ('binding', 'said'),
  [
    ('BATCH_SIZE=@lora_opt.adamw()\nTRAIN_STEPS=9', 'more than one setting'),
    ('', 'sets nothing'),
    ('BATCH_SIZE=1e999', 'too large'),
    ('BATCH_SIZE=%BATCH_SIZE', '%BATCH_SIZE: the value needs itself'),
    ('BATCH_SIZE=%nope', 'required and not set: nope'),
    ('MODEL_DIR=a\udcc3', 'set PYTHONUTF8=1'),
    ('BATCH_SIZE=' + '[' * 5000, 'nested'),
  ],
)
def test_damaged_flags_are_named(binding, said):
  with pytest.raises(config.ConfigError, match=said) as caught:
    config.load(files(), [*BINDINGS, binding])
  assert len(str(caught.value)) < 1500


def test_a_percent_sign_in_a_text_is_no_macro():
  config.load(files(), [*BINDINGS, "MODEL_DIR='100%A'"])
  assert config.settings()['MODEL_DIR'] == "'100%A'"


@pytest.mark.parametrize(
  ('binding', 'said'),
  [
    ("TRAIN_STEPS='3'", "train_steps: expected a whole number, found '3'"),
    ('TRAIN_STEPS=1.5', 'expected a whole number, found 1.5'),
    ('BATCH_SIZE=True', 'expected a whole number, found True'),
    ('OPTIMIZER=@lora_opt.adamw', r'@lora_opt.adamw\(\) calls it'),
    ('TASK_FEATURE_LENGTHS=5', r'expected Mapping\[str, int\] or None'),
    ('MODEL_DIR=2024', 'expected a text or a PathLike, found 2024'),
    ('loop.train.evaluator=1', 'evaluator: expected Callable'),
  ],
)
def test_values_of_another_kind_are_named(binding, said):
  with pytest.raises(config.ConfigError, match=said) as caught:
    config.load(files(), [*BINDINGS, binding], called=[loop.train])
  assert f'--gin.{binding}' in str(caught.value)


@pytest.mark.parametrize(
  'text',
  [
    "A = 1\nBATCH_SIZE = '8'\n",
    "# x\nloop.train.batch_size = '8'\n",
    "loop.train:\n  batch_size = '8'\n",
  ],
)
def test_a_value_of_another_kind_is_named_with_its_line(tmp_path, text):
  path = tmp_path / 'bad.gin'
  imports = 'from lora_opt.training import loop\n'
  head = f'from __gin__ import dynamic_registration\n{imports}'
  path.write_text(head + text, encoding='utf-8')
  with pytest.raises(config.ConfigError, match=r'bad\.gin, line 4: .*whole'):
    config.load([*files(), str(path)], BINDINGS, called=[loop.train])


def test_numbers_may_be_written_as_python_takes_them():
  bindings = [*BINDINGS, 'PEAK_LEARNING_RATE=1', 'TASK=[]']
  config.load(files(), bindings, called=[loop.train])


def test_what_another_file_has_replaced_is_not_looked_at():
  # Of the first task, whose source wants a number of examples, nothing is left.
  both = [*files(), 'configs/tasks/arc_easy.gin']
  config.load(both, [*BINDINGS, 'DATA_DIR=x'], called=[loop.train])
