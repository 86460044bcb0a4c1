"""DoRA, PiSSA and OLoRA against peft; collected where torch is installed."""

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.huggingface import from_folder
from lora_opt.models.start import olora, pissa
from tests.models.batches import gradients, paths, random_adapter, row_batch

pytestmark = [
  pytest.mark.usefixtures('fast_compile'),
  pytest.mark.filterwarnings('ignore'),  # of peft and transformers
]

IDS = np.random.default_rng(0).integers(0, 256, (2, 12))
BATCH = row_batch(*IDS)
TARGET, MODULES = '.*/(q|v|down)', ['q_proj', 'v_proj', 'down_proj']
STARTS = {'pissa': pissa, 'olora': olora}


@pytest.fixture(scope='module', name='folder')
def _folder(tmp_path_factory):
  """A small random Llama, saved by transformers."""
  folder = tmp_path_factory.mktemp('llama')
  tokenizer = Tokenizer.byte_level()
  config = transformers.LlamaConfig(
    vocab_size=tokenizer.vocab_size,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.3,
  )
  torch.manual_seed(0)
  transformers.LlamaForCausalLM(config).save_pretrained(folder)
  tokenizer.core.save(str(folder / 'tokenizer.json'))
  return folder


def in_torch(folder):
  return transformers.LlamaForCausalLM.from_pretrained(folder).eval()


def adapted_by_peft(folder, **settings):
  config = peft.LoraConfig(
    r=4, lora_alpha=8, target_modules=MODULES, task_type='CAUSAL_LM', **settings
  )
  torch.manual_seed(0)
  return peft.get_peft_model(in_torch(folder), config).eval()


def logits_of(model):
  with torch.no_grad():
    return model(torch.tensor(IDS)).logits.numpy()


def our_logits(model, lora):
  return np.asarray(jax.jit(model.logits)(model.base, lora, BATCH))


def site(layer, name):
  part = 'mlp' if name == 'down' else 'self_attn'
  return f'base_model.model.model.layers.{layer}.{part}.{name}_proj'


@pytest.mark.parametrize(
  'settings',
  [
    {'dora': True},
    {'dora': True, 'rslora': True},
    {'start': pissa},
    {'start': olora, 'rslora': True},
    {'start': pissa, 'dora': True},
  ],
  ids=['dora', 'dora-rslora', 'pissa', 'olora-rslora', 'pissa-dora'],
)
def test_peft_computes_the_same_with_an_exported_adapter(
  folder, tmp_path, settings
):
  lora = LoraConfig(TARGET, rank=4, alpha=8, **settings)
  model = from_folder(folder, lora=lora)
  start = model.init(jax.random.key(0))
  noise = random_adapter(model)
  moved = jax.tree.map(lambda x, d: x + d, start, noise)
  model.export(tmp_path, moved)
  theirs = peft.PeftModel.from_pretrained(in_torch(folder), tmp_path).eval()
  expected = logits_of(theirs)
  np.testing.assert_allclose(our_logits(model, moved), expected, atol=1e-4)
  assert abs(expected - logits_of(in_torch(folder))).max() > 0.1
  for ours, back in zip(
    *map(jax.tree.leaves, (moved, model.load_adapter(tmp_path))), strict=True
  ):
    np.testing.assert_array_equal(ours, back)


def test_dora_gradients(folder, tmp_path):
  model = from_folder(folder, lora=LoraConfig(TARGET, 4, 8, dora=True))
  start = model.init(jax.random.key(0))
  lora = jax.tree.map(lambda x, d: x + d, start, random_adapter(model))
  model.export(tmp_path, lora)
  losses, _, ours = gradients(model)(model.base, lora, BATCH)
  theirs = peft.PeftModel.from_pretrained(
    in_torch(folder), tmp_path, is_trainable=True
  ).eval()
  logits = theirs(torch.tensor(IDS)).logits
  targets = torch.tensor(BATCH['targets'], dtype=torch.long)
  loss = torch.nn.functional.cross_entropy(
    logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction='sum'
  )
  loss.backward()
  np.testing.assert_allclose(losses.sum(), loss.item(), rtol=1e-5)
  found = dict(theirs.named_parameters())
  for path, gradient in paths(ours):
    *_, name, factor = path.split('/')
    for layer, matrix in enumerate(np.asarray(gradient)):
      kind = {
        'lora_a': 'lora_A',
        'lora_b': 'lora_B',
        'magnitude': 'lora_magnitude_vector',
      }[factor]
      theirs_ = found[f'{site(layer, name)}.{kind}.default.weight'].grad
      np.testing.assert_allclose(
        matrix.T, theirs_.numpy(), atol=1e-3, rtol=1e-3, err_msg=path
      )


def test_dora_starts_as_in_peft(folder):
  model = from_folder(folder, lora=LoraConfig(TARGET, 4, 8, dora=True))
  lora = model.init(jax.random.key(0))
  theirs = dict(adapted_by_peft(folder, use_dora=True).named_parameters())
  for name in ('q', 'v', 'down'):
    part = 'mlp' if name == 'down' else 'attention'
    for layer, ours in enumerate(lora['layers'][part][name]['magnitude']):
      key = f'{site(layer, name)}.lora_magnitude_vector.default.weight'
      np.testing.assert_allclose(ours, theirs[key].detach(), rtol=1e-5)


@pytest.mark.parametrize('rslora', [False, True])
@pytest.mark.parametrize('name', STARTS)
def test_starts_as_in_peft(folder, name, rslora):
  settings = LoraConfig(TARGET, 4, 8, rslora=rslora, start=STARTS[name])
  model = from_folder(folder, lora=settings)
  lora = model.init(jax.random.key(0))
  theirs = adapted_by_peft(folder, init_lora_weights=name, use_rslora=rslora)
  tensors = {k: v.detach().numpy() for k, v in theirs.named_parameters()}
  for layer in range(2):
    for module, part in (('q', 'attention'), ('down', 'mlp')):
      key = site(layer, module)
      residual = model.base['layers'][part][module]['kernel'][layer].T
      expected = tensors[f'{key}.base_layer.weight']
      np.testing.assert_allclose(residual, expected, atol=1e-5)
      factors = lora['layers'][part][module]
      ours = factors['lora_a'][layer] @ factors['lora_b'][layer]
      a, b = (tensors[f'{key}.lora_{x}.default.weight'] for x in 'AB')
      np.testing.assert_allclose(ours.T, b @ a, atol=1e-5)
  expected = logits_of(in_torch(folder))
  np.testing.assert_allclose(our_logits(model, lora), expected, atol=1e-4)
  np.testing.assert_allclose(our_logits(model, None), expected, atol=1e-4)
