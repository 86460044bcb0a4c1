"""Our bridge beside lm-eval's own model of transformers, on the same folder.

Needs lm-eval and torch: `launch/integrations.sh lm_eval`.
"""

import json

import lm_eval
import numpy as np
import pytest
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lora_opt.evaluation.lm_eval_bridge import harness_model
from lora_opt.models import from_folder
from tests.data import templates

# What the harness and its libraries warn of is their affair.
pytestmark = pytest.mark.filterwarnings('default')

QUESTIONS = {'Sky?': ('blue', 'red'), 'Grass, of some length?': ('x', 'green')}


@pytest.fixture(scope='module', params=['llama3', 'gemma', 'chatml'])
def both(request, tmp_path_factory):
  """The same random Llama with a chat template: (ours, theirs)."""
  folder = tmp_path_factory.mktemp('llama')
  ours = templates.tokenizer_of(request.param)
  named = {
    f'{name}_token': ours.core.id_to_token(token_id)
    for name, token_id in (('bos', ours.bos_id), ('eos', ours.eos_id))
    if token_id is not None
  }
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=ours.core,
    chat_template=ours.chat_template,
    clean_up_tokenization_spaces=False,
    **named,
  )
  tokenizer.save_pretrained(folder)
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=len(tokenizer),
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.3,
    bos_token_id=ours.bos_id,
    eos_token_id=ours.eos_id,
  )
  model = transformers.LlamaForCausalLM(config)
  model.save_pretrained(folder)
  theirs = HFLM(
    pretrained=model, tokenizer=tokenizer, batch_size=1, device='cpu'
  )
  return harness_model(from_folder(str(folder))), theirs


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tasks')
  rows = [
    {'question': question, 'choices': choices, 'answer': 0}
    for question, choices in QUESTIONS.items()
  ]
  lines = [json.dumps(row) for row in rows]
  (folder / 'rows.jsonl').write_text('\n'.join(lines) + '\n')
  head = f"""
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/rows.jsonl}}
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
"""
  (folder / 'choose.yaml').write_text(
    f'task: choose\n{head}output_type: multiple_choice\n'
    'doc_to_choice: choices\ndoc_to_target: answer\n'
    'metric_list:\n  - metric: acc\n'
  )
  (folder / 'write.yaml').write_text(
    f'task: write\n{head}output_type: generate_until\n'
    'doc_to_target: "{{choices[0]}}"\n'
    'generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 12}\n'
    'metric_list:\n  - metric: exact_match\n'
  )
  (folder / 'roll.yaml').write_text(
    f'task: roll\n{head}output_type: loglikelihood_rolling\n'
    'doc_to_target: "{{question * 40}}"\n'
    'metric_list:\n  - metric: word_perplexity\n'
  )
  return TaskManager(include_path=str(folder), include_defaults=False)


def answers(model, tasks, name, chat):
  """Prompts and what the model says of them."""
  results = lm_eval.simple_evaluate(
    model,
    tasks=[name],
    task_manager=tasks,
    bootstrap_iters=0,
    apply_chat_template=chat,
  )
  samples = results['samples'][name]
  return [(s['arguments'], s['filtered_resps']) for s in samples]


@pytest.mark.parametrize('chat', [False, True])
@pytest.mark.parametrize('name', ['choose', 'roll', 'write'])
def test_the_answers_are_those_of_transformers(both, tasks, name, chat):
  found, expected = (answers(model, tasks, name, chat) for model in both)
  for (prompt, ours), (same_prompt, theirs) in zip(
    found, expected, strict=True
  ):
    assert prompt == same_prompt
    if name == 'write':
      assert ours == theirs
      continue
    # Sums of up to a thousand float32 log-probabilities of size 5.
    scores = [np.ravel(x).astype(float) for x in (ours, theirs)]
    np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-3)
