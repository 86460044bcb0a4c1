"""DPO beside torch: transformers and peft, whose adapter is switched off.

With trl installed, its DPOTrainer computes the same loss and gradients.
"""

import importlib.util

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

from lora_opt.data.preference_batching import EncodedPreference
from lora_opt.models import LoraConfig, random_model
from lora_opt.training.objective import DPO
from tests.models.parity.material import by_peft_name
from tests.training.objective_test import TASK, batches, trained

pytestmark = [
  pytest.mark.usefixtures('fast_compile'),
  pytest.mark.filterwarnings('ignore'),  # of transformers
]
BETA = 0.5


@pytest.fixture(scope='module')
def model():
  return random_model(LoraConfig(rank=2), num_layers=2, remat='none')


@pytest.fixture(scope='module')
def theirs(model, tmp_path_factory):
  folder = tmp_path_factory.mktemp('model')
  model.merge(folder / 'base', None)
  model.export(folder / 'adapter', trained(model))
  base = transformers.AutoModelForCausalLM.from_pretrained(folder / 'base')
  return peft.PeftModel.from_pretrained(
    base, folder / 'adapter', is_trainable=True
  )


@pytest.fixture(scope='module')
def ours(model):
  """Mean loss and its gradient by PEFT's names."""

  def loss(lora):
    total, _ = DPO(BETA)(
      model, lora, model.base, batches(model, 256, 1), jax.random.key(0)
    )
    return total / 4

  value, gradient = jax.jit(jax.value_and_grad(loss))(trained(model))
  return float(value), by_peft_name(gradient, model)


def likelihood(model, segment):
  ids = torch.tensor(segment.ids, dtype=torch.long)[None]
  logits = model(input_ids=ids).logits[0, :-1]
  found = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0]
  return (found * torch.tensor(segment.learned[1:])).sum()


def assert_same(ours, loss, model):
  value, gradient = ours
  assert value == pytest.approx(float(loss), abs=1e-5)
  named = {
    name.replace('.default', ''): parameter.grad.numpy()
    for name, parameter in model.named_parameters()
    if '.lora_' in name
  }
  assert named.keys() == gradient.keys()
  for name, theirs in named.items():
    assert np.abs(theirs).max() > 1e-4
    np.testing.assert_allclose(gradient[name], theirs, rtol=0, atol=1e-5)


def test_loss_and_gradients_are_those_of_peft(model, ours, theirs):
  theirs.zero_grad()
  losses = []
  for example in TASK.examples('train'):
    encoded = EncodedPreference.of(TASK, example, model.tokenizer)
    both = encoded.segments()
    adapted = [likelihood(theirs, segment) for segment in both]
    with torch.no_grad(), theirs.disable_adapter():
      base = [likelihood(theirs, segment) for segment in both]
    margin = (adapted[0] - base[0]) - (adapted[1] - base[1])
    losses.append(-torch.nn.functional.logsigmoid(BETA * margin))
  loss = torch.stack(losses).mean()
  loss.backward()
  assert_same(ours, loss.detach(), theirs)


@pytest.mark.skipif(
  importlib.util.find_spec('trl') is None, reason='trl is not installed'
)
def test_loss_and_gradients_are_those_of_trl(model, ours, theirs, tmp_path):
  import datasets
  import trl

  model.tokenizer.save(tmp_path)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  rows = [
    {
      'prompt': [{'role': 'user', 'content': row['prompt']}],
      'chosen': [{'role': 'assistant', 'content': row['chosen']}],
      'rejected': [{'role': 'assistant', 'content': row['rejected']}],
    }
    for row in TASK.train
  ]
  # Given a model with an adapter, TRL takes that adapter for the reference.
  base = transformers.AutoModelForCausalLM.from_pretrained(
    theirs.base_model.model.name_or_path
  )
  trainer = trl.DPOTrainer(
    base,
    peft_config=theirs.peft_config['default'],
    args=trl.DPOConfig(
      str(tmp_path / 'out'),
      beta=BETA,
      per_device_train_batch_size=4,
      use_cpu=True,
      report_to='none',
      disable_dropout=True,
      bf16=False,
      gradient_checkpointing=False,
      max_length=256,
    ),
    train_dataset=datasets.Dataset.from_list(rows),
    processing_class=tokenizer,
  )
  peft.set_peft_model_state_dict(
    trainer.model, peft.get_peft_model_state_dict(theirs)
  )
  (inputs,) = trainer.get_train_dataloader()
  loss = trainer.compute_loss(trainer.model, inputs)
  loss.backward()
  assert_same(ours, loss.detach(), trainer.model)
