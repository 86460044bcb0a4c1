"""The bridge to EleutherAI's harness, against plain forward passes.

Where `lm_eval` is importable, the harness itself runs a local task.
"""

import dataclasses
import importlib.util
import types

import jax
import numpy as np
import pytest

from lora_opt.evaluation import lm_eval_bridge
from lora_opt.evaluation.lm_eval_bridge import Bridge, harness_model
from lora_opt.models import random_model
from tests.models.batches import row_batch

pytestmark = pytest.mark.usefixtures('fast_compile')

# A template that writes the token that opens a text.
OPENING = (
  '<bos>{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}'
  '{% if add_generation_prompt %}<assistant>{% endif %}'
)


@pytest.fixture(scope='module')
def model():
  # The longest row is short, so that texts go beyond it.
  return random_model(num_layers=1, max_length=24, remat='none')


@pytest.fixture(scope='module')
def bridge(model):
  return Bridge(model, batch_size=2)


def request(*args):
  return types.SimpleNamespace(args=args)


def step_by_step(model, ids, count):
  """Log-probabilities of the last `count` ids, and whether they are greedy."""
  batch = row_batch(ids)
  logits = np.asarray(jax.jit(model.logits)(model.base, None, batch))[0]
  logs = np.asarray(jax.nn.log_softmax(logits))[: len(ids) - 1]
  targets = np.asarray(ids[1:])
  likelihood = logs[np.arange(len(targets)), targets][-count:].sum()
  return likelihood, bool((logs.argmax(-1) == targets)[-count:].all())


def test_continuations_have_the_likelihood_of_one_row(model, bridge):
  encode = model.tokenizer.encode
  pairs = [('Sky:', ' blue'), ('Grass: ', 'green'), ('', 'abc'), ('Q', 'x')]
  found = bridge.loglikelihood([request(*pair) for pair in pairs])
  rows = [
    (encode('Sky: blue'), 5),
    (encode('Grass: green'), 6),
    ([model.tokenizer.bos_id, *encode('abc')], 3),
    (encode('Qx'), 1),
  ]
  for (likelihood, greedy), (ids, count) in zip(found, rows, strict=True):
    expected = step_by_step(model, ids, count)
    assert likelihood == pytest.approx(expected[0], abs=1e-4)
    assert greedy == expected[1]


def test_texts_open_with_the_token_the_model_was_trained_with(model):
  opened = dataclasses.replace(model.tokenizer, add_bos=True)
  bridge = Bridge(dataclasses.replace(model, tokenizer=opened), batch_size=2)
  start, encode = opened.bos_id, opened.encode
  pairs = [('Sky:', ' blue'), ('', 'abc')]
  found = bridge.loglikelihood([request(*pair) for pair in pairs])
  rows = [([start, *encode('Sky: blue')], 5), ([start, *encode('abc')], 3)]
  for (likelihood, _), (ids, count) in zip(found, rows, strict=True):
    expected, _ = step_by_step(model, ids, count)
    assert likelihood == pytest.approx(expected, abs=1e-4)
  settings = {'until': [], 'max_gen_toks': 2}
  (written,) = bridge.generate_until([request('Sky', settings)])
  ids = [start, *encode('Sky')]
  for _ in range(2):
    logits = model.logits(model.base, None, row_batch(ids))[0, len(ids) - 1]
    ids.append(int(np.argmax(logits)))
  assert written == opened.decode(ids[-2:])


def test_a_text_that_opens_itself_is_not_opened_again(model):
  tokenizer = dataclasses.replace(
    model.tokenizer, add_bos=True, chat_template=OPENING
  )
  bridge = Bridge(dataclasses.replace(model, tokenizer=tokenizer), batch_size=2)
  text = bridge.apply_chat_template([{'role': 'user', 'content': 'Q'}])
  assert text == '<bos><user>Q<eos><assistant>'
  ((found, _),) = bridge.loglikelihood([request(text, 'ab')])
  ids = tokenizer.encode(text + 'ab')
  assert ids.count(tokenizer.bos_id) == 1
  expected, _ = step_by_step(model, ids, 2)
  assert found == pytest.approx(expected, abs=1e-4)


def test_a_long_context_keeps_what_opens_it(model):
  tokenizer = dataclasses.replace(
    model.tokenizer, add_bos=True, chat_template=OPENING
  )
  bridge = Bridge(dataclasses.replace(model, tokenizer=tokenizer), batch_size=2)
  text = bridge.apply_chat_template([{'role': 'user', 'content': 'x' * 40}])
  ((found, _),) = bridge.loglikelihood([request(text, 'ab')])
  ids = tokenizer.encode(text + 'ab')  # 24 positions
  expected, _ = step_by_step(model, ids[:2] + ids[-23:], 2)
  assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize('chat', [True, False])
def test_the_end_of_a_turn_ends_an_answer(model, monkeypatch, chat):
  tokenizer = dataclasses.replace(
    model.tokenizer, chat_template=OPENING.replace('<eos>', '[end]')
  )
  bridge = Bridge(dataclasses.replace(model, tokenizer=tokenizer), batch_size=2)
  written = [*b'yes[end]no', 257, *b'rest']
  asked = []

  def made(model, new, ids, placement, sampling, sequences=()):
    asked.append((ids, [list(sequence) for sequence in sequences]))
    return lambda base, lora, tokens, valid, example: np.tile(
      np.array(written, np.int32), (len(tokens), 1)
    )

  monkeypatch.setattr(lm_eval_bridge, 'make_decoder', made)
  context = 'Q'
  if chat:
    context = bridge.apply_chat_template([{'role': 'user', 'content': 'Q'}])
  settings = {'until': ['zz'], 'max_gen_toks': 8}
  (found,) = bridge.generate_until([request(context, settings)])
  assert found == ('yes' if chat else 'yes[end]no')
  ((ids, sequences),) = asked
  assert ids == (257,)
  assert sequences == ([list(b'[end]')] if chat else [])


def test_the_greedy_continuation_is_called_greedy(model, bridge):
  settings = {'until': [], 'max_gen_toks': 2}
  (written,) = bridge.generate_until([request('Sky', settings)])
  assert len(model.tokenizer.encode(written)) == 2  # whole characters
  ((_, greedy), (_, other)) = bridge.loglikelihood(
    [request('Sky', written), request('Sky', 'zzz')]
  )
  assert greedy and not other


def test_a_text_beyond_the_context_is_scored_part_by_part(model, bridge):
  text = 'abcdefghij' * 6  # 60 tokens, 24 to a row
  ids = model.tokenizer.encode(text)
  (found,) = bridge.loglikelihood_rolling([request(text)])
  start = model.tokenizer.bos_id
  expected = (
    step_by_step(model, [start, *ids[:24]], 24)[0]
    + step_by_step(model, ids[23:48], 24)[0]
    # The rest is shorter: it sees more of what stands before.
    + step_by_step(model, ids[35:60], 12)[0]
  )
  assert found == pytest.approx(expected, abs=1e-3)


def test_generation_ends_at_the_first_stop_text(model, bridge):
  free = {'until': [], 'max_gen_toks': 8}
  contexts = ['one', 'a longer one', 'two']
  whole = bridge.generate_until([request(c, free) for c in contexts])
  stop = whole[0][2:4]
  cut = bridge.generate_until(
    [request(c, {'until': [stop], 'max_gen_toks': 8}) for c in contexts]
  )
  assert cut == [text.split(stop)[0] for text in whole]


@pytest.mark.filterwarnings('default')  # the harness's own are its affair
def test_the_harness_runs_a_local_task(tmp_path):
  """Live where `pip install lm-eval` was done; the bridge alone elsewhere."""
  model = random_model(num_layers=1, max_length=64, remat='none')
  if importlib.util.find_spec('lm_eval') is None:
    with pytest.raises(ModuleNotFoundError, match='lm_eval'):
      harness_model(model)
    return
  run_live(model, tmp_path)


def run_live(model, folder):
  import lm_eval
  from lm_eval.tasks import TaskManager

  rows = [
    '{"question": "Sky?", "choices": ["blue", "red"], "answer": 0}',
    '{"question": "Grass?", "choices": ["pink", "green"], "answer": 1}',
  ]
  (folder / 'rows.jsonl').write_text('\n'.join(rows) + '\n')
  (folder / 'colours.yaml').write_text(f"""
task: colours
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
""")
  results = lm_eval.simple_evaluate(
    harness_model(model),
    tasks=['colours'],
    task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    bootstrap_iters=0,
  )
  found = results['results']['colours']
  assert found['acc,none'] in (0.0, 0.5, 1.0)
  samples = results['samples']['colours']
  for sample, row in zip(samples, ('blue red', 'pink green'), strict=True):
    context = sample['arguments'][0][0]
    for (likelihood, _), choice in zip(
      sample['filtered_resps'], row.split(), strict=True
    ):
      ids = model.tokenizer.encode(f'{context} {choice}')
      expected = step_by_step(model, ids, len(choice) + 1)[0]
      assert likelihood == pytest.approx(expected, abs=1e-4)
