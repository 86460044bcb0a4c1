"""Every file in configs/tasks and configs/mixtures sets up what it says.

tests/data/real_rows.py looks through the real rows of a folder.
"""

import pathlib

import gin
import pytest

ROOT = pathlib.Path(__file__).parents[2]
TASKS = sorted(path.stem for path in (ROOT / 'configs/tasks').glob('*.gin'))
MIXTURES = sorted(
  path.stem for path in (ROOT / 'configs/mixtures').glob('*.gin')
)
GENERIC = 'reasoning_gym'
# Folders of one's own: image_run_test.py, subject_run_test.py and talks_test.py
# of tests/training run them.
OF_ONES_OWN = ('image_folder', 'dreambooth', 'conversations', 'preferences')
# The prompt of the first evaluated row, by the publishers' made rows.
PROMPTS = {
  'arc_easy': 'Question: Why is the sky blue?\nAnswer:',
  'arc_challenge': 'Question: Why is the sky blue?\nAnswer:',
  'openbookqa': 'The sun is responsible for',
  'hellaswag': 'Cooking: A man boils water. He',
  'piqa': 'Question: Open a jar\nAnswer:',
  'siqa': 'Q: Tracy left. Why did Tracy do this?\nA:',
  'winogrande': 'Ann thanked Bo because ',
  'boolq': 'Water is a liquid.\nQuestion: is water wet?\nAnswer:',
  'boolq_closed': 'Question: is water wet?\nAnswer:',
  'gsm8k': 'Two and two?',
  'cola': 'It "is so.\nQuestion: Does this sentence make sense?\nAnswer:',
  'sst2': 'fine .\nQuestion: Is this sentence positive or negative?\nAnswer:',
  'mrpc': 'Sentence 1: First "0\nSentence 2: Second\nQuestion: Do both '
  'sentences mean the same thing?\nAnswer:',
  'qqp': 'Question 1: First "0\nQuestion 2: Second\nQuestion: Do both '
  'questions ask the same thing?\nAnswer:',
  'mnli': 'First "0\nQuestion: Second True, False or Neither?\nAnswer:',
  'mnli_mismatched': 'First "0\nQuestion: Second True, False or Neither?'
  '\nAnswer:',
  'qnli': 'First "0\nSecond\nQuestion: Does this response answer the question?'
  '\nAnswer:',
  'rte': 'First "0\nQuestion: Second True or False?\nAnswer:',
  'stsb': 'First "0\nSecond',
  'wnli': 'First "0\nQuestion: Second True or False?\nAnswer:',
  'stsb_text': 'stsb sentence1: First "0 sentence2: Second',
  'super_ni': 'Definition: Give the text a title.\n\n'
  ' Positive Example 1 -\nInput: Rain fell.\n Output: Rain!\n\n'
  ' Positive Example 2 -\nInput: Sun shone.\n Output: Sun.\n\n'
  'Now complete the following example -\nInput: Snow lay.\nOutput:',
}
ALPACA = (
  'Below is an instruction that describes a task. Write a response that '
  'appropriately completes the request.\n\n### Instruction:\n{}\n\n'
  '### Response:\n'
)
ANSWERS = {
  'arc_easy': ' It is painted',
  'winogrande': ' Bo had helped.',
  'boolq': ' yes',
  'cola': ' yes',
  'mnli': ' Neither',
  'qnli': ' no',
  'rte': ' False',
  'wnli': ' True',
  'stsb_text': ' 3.8',
  'super_ni': ' Snow',
}


@pytest.fixture(autouse=True)
def clean_gin(monkeypatch):
  monkeypatch.chdir(ROOT)
  gin.clear_config()
  yield
  gin.clear_config()


def build(file, *bindings):
  gin.add_config_file_search_path(str(ROOT))
  gin.parse_config_files_and_bindings([f'configs/{file}.gin'], bindings)
  return gin.query_parameter('TASK/gin.macro.value').scoped_configurable_fn()


def procedural(name):
  return 'reasoning_gym' in (ROOT / f'configs/tasks/{name}.gin').read_text()


@pytest.mark.parametrize('name', [t for t in TASKS if procedural(t)])
def test_procedural_tasks_validate(name, toy):
  bindings = [
    'train/sources.ReasoningGym.size = 5',
    'eval/sources.ReasoningGym.size = 5',
  ]
  if name == GENERIC:
    name = 'leg_counting'
    bindings.append(f'MIXTURE_OR_TASK_NAME = "{name}"')
    task = build(f'tasks/{GENERIC}', *bindings)
  else:
    task = build(f'tasks/{name}', *bindings)
  check(task, name, toy)


@pytest.mark.parametrize(
  'name', [n for n in TASKS if not procedural(n) and n not in OF_ONES_OWN]
)
def test_tasks_validate_on_publishers_rows(name, toy, prepared):
  task = build(f'tasks/{name}', f'DATA_DIR = "{prepared}"')
  example = check(task, name, toy)
  expected = PROMPTS.get(name)
  if expected is None:
    expected = ALPACA.format(example.row['question'])
  assert example.prompt == expected
  if name in ANSWERS:
    _, completion = task.encode(example, toy)
    assert toy.show(completion).removesuffix('<eos>') == ANSWERS[name]


def check(task, name, toy):
  """Validates a task; returns its first example."""
  task.validate()
  assert task.name == name
  example = task.examples('eval')[0]
  assert example.texts == tuple(example.row[t] for t in task.texts or ())
  assert all(task.encode(example, toy))
  if example.choices:
    assert len(task.encode_choices(example, toy)[1]) == len(example.choices)
  else:
    right = example.references[0] if example.references else example.completion
    assert task.score(example, right) == 1
    assert task.score(example, 'no such thing') == 0
  return example


@pytest.mark.parametrize('name', MIXTURES)
def test_mixtures_validate_on_publishers_rows(name, toy, prepared):
  mixture = build(f'mixtures/{name}', f'DATA_DIR = "{prepared}"')
  mixture.validate()
  assert len(mixture.tasks) == 8
  for task in mixture.tasks:
    check(task, task.name, toy)
  batches = mixture.train_batches(toy, length=1200, batch_size=1, seed=0)
  assert next(iter(batches))['weights'].any()
  assert mixture.facts()['kind'] == 'mixture'


def test_commonsense_instructions_are_those_of_the_publisher(prepared):
  """Written as in the files of LLM-Adapters, from the sets themselves."""
  mixture = build('mixtures/commonsense', f'DATA_DIR = "{prepared}"')
  found = {task.name: task.examples('eval')[0] for task in mixture.tasks}
  expected = {
    'arc_easy': (
      'Please choose the correct answer to the question: Why is the sky blue?'
      '\n\nAnswer1: It scatters light Answer2: It is painted\n\n'
      'Answer format: answer1/answer2',
      'answer2',
    ),
    'piqa': (
      'Please choose the correct solution to the question: Open a jar\n\n'
      'Solution1: Turn it\n\nSolution2: Eat it\n\n'
      'Answer format: solution1/solution2',
      'solution2',
    ),
    'winogrande': (
      'Please choose the correct answer to fill in the blank to complete the '
      'given sentence: Ann thanked Bo because _ had helped.\n\n'
      'Option1: Ann Option2: Bo Answer format: option1/option2',
      'option2',
    ),
    'boolq': (
      'Please answer the following question with true or false, question: '
      'is water wet?\n\nAnswer format: true/false',
      'true',
    ),
  }
  for name, (instruction, answer) in expected.items():
    assert found[name].prompt == ALPACA.format(instruction)
    assert found[name].completion == f'the correct answer is {answer}'


@pytest.mark.parametrize(
  'name',
  [
    *(name for name in TASKS if name == GENERIC or not procedural(name)),
    *MIXTURES,
  ],
)
def test_what_must_be_set_is_asked_for_by_name(name):
  folder = 'tasks' if name in TASKS else 'mixtures'
  required = {
    GENERIC: 'MIXTURE_OR_TASK_NAME',
    'image_folder': 'IMAGES',
    'dreambooth': 'INSTANCE_IMAGES',
  }
  required = required.get(name, 'DATA_DIR')
  with pytest.raises(ValueError, match=required):
    build(f'{folder}/{name}').validate()


@pytest.mark.parametrize('name', TASKS)
def test_the_file_is_short_and_says_what_to_override(name):
  content = (ROOT / f'configs/tasks/{name}.gin').read_text()
  assert content.startswith('# ')
  assert '# Commonly overridden:' in content
  assert len(content.splitlines()) <= 45
