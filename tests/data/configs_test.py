"""Every file in configs/tasks sets up a task that encodes its rows."""

import json
import pathlib

import gin
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def text(name):
  return (ROOT / 'configs/tasks' / name).read_text()


FILES = sorted(path.name for path in (ROOT / 'configs/tasks').glob('*.gin'))
GENERIC = 'reasoning_gym.gin'
PROCEDURAL = {name for name in FILES if 'reasoning_gym' in text(name)}
ROW = {
  'question': 'Sky?',
  'choices': ['blue', 'red'],
  'answer': 1,
  'sentence': 'fine',
  'label': 1,
}


@pytest.fixture
def clean_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def write(folder, row):
  folder.mkdir()
  for name in ('train.jsonl', 'test.jsonl'):
    (folder / name).write_text(json.dumps(row) + '\n')


def build(name, bindings):
  gin.add_config_file_search_path(str(ROOT))
  gin.parse_config_files_and_bindings([f'configs/tasks/{name}'], bindings)
  return gin.query_parameter('TASK/gin.macro.value').scoped_configurable_fn()


@pytest.mark.parametrize('name', FILES)
def test_task_is_set_up_and_validates(
  clean_gin, monkeypatch, tmp_path, toy, name
):
  monkeypatch.chdir(ROOT)
  stem = name.removesuffix('.gin')
  if name in PROCEDURAL:
    bindings = [
      'train/sources.ReasoningGym.size = 5',
      'eval/sources.ReasoningGym.size = 5',
    ]
    if name == GENERIC:
      stem = 'leg_counting'
      bindings.append(f'MIXTURE_OR_TASK_NAME = "{stem}"')
  else:
    answer = {'answer': '1 + 1\n#### 2'} if stem == 'gsm8k' else {}
    write(tmp_path / stem, ROW | answer)
    bindings = [f'DATA_DIR = "{tmp_path}"']
  task = build(name, bindings)
  task.validate()
  example = task.examples('eval')[0]
  assert all(task.encode(example, toy))
  assert task.name == stem
  if example.choices:
    assert len(task.encode_choices(example, toy)[1]) == 2
  else:
    assert task.score(example, example.completion) == 1


@pytest.mark.parametrize(
  'name', [name for name in FILES if '%gin.REQUIRED' in text(name)]
)
def test_what_must_be_set_is_asked_for_by_name(clean_gin, monkeypatch, name):
  monkeypatch.chdir(ROOT)
  required = 'MIXTURE_OR_TASK_NAME' if name == GENERIC else 'DATA_DIR'
  with pytest.raises(ValueError, match=required):
    build(name, [])


@pytest.mark.parametrize('name', FILES)
def test_the_file_is_short_and_says_what_to_override(name):
  content = text(name)
  assert content.startswith('# ')
  assert '# Commonly overridden:' in content
  assert len(content.splitlines()) <= 40
