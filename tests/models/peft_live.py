"""Compares our models and adapters with torch, transformers and peft.

Not part of the test suite, since torch is no dependency of this project. In an
environment that has the project with its `train` extra and also
`pip install torch transformers peft`, run from the root of the project

    python -m tests.models.peft_live

It prints the largest difference of the logits for each case and exits non-zero
if one is above 1e-3.
"""

import pathlib
import sys
import tempfile

import jax
import numpy as np
import peft
import torch
import transformers

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.huggingface import from_folder
from lora_opt.models.pretrained.peft import import_adapter
from lora_opt.models.pretrained.smollm2 import smollm2_135m
from tests.models.batches import hugging_face_tensors, random_adapter, row_batch

LLAMA3 = {
  'rope_type': 'llama3',
  'rope_theta': 5e5,
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 64,
}
TOLERANCE = 1e-3


def random_llama(folder, **settings):
  """A small random Llama of transformers, saved with a tokenizer."""
  torch.manual_seed(0)
  tokenizer = Tokenizer.byte_level()
  config = transformers.LlamaConfig(
    vocab_size=tokenizer.vocab_size,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    initializer_range=0.3,
    max_position_embeddings=512,
    **settings,
  )
  theirs = transformers.LlamaForCausalLM(config).eval()
  theirs.save_pretrained(folder, max_shard_size='50KB')
  tokenizer.core.save(str(pathlib.Path(folder) / 'tokenizer.json'))
  return theirs


def smollm2_in_torch(model):
  """Our dequantized weights in the model class of transformers."""
  c = model.config
  config = transformers.LlamaConfig(
    vocab_size=c.vocab_size,
    hidden_size=c.embed_dim,
    intermediate_size=c.mlp_dim,
    num_hidden_layers=c.num_layers,
    num_attention_heads=c.num_heads,
    num_key_value_heads=c.num_kv_heads,
    rms_norm_eps=c.norm_eps,
    rope_parameters={'rope_type': 'default', 'rope_theta': c.rope_theta},
    tie_word_embeddings=True,
    max_position_embeddings=c.max_length,
  )
  theirs = transformers.LlamaForCausalLM(config).eval()
  tensors = hugging_face_tensors(model)
  state = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
  missing = theirs.load_state_dict(state, strict=False)
  assert not missing.unexpected_keys
  assert missing.missing_keys in ([], ['lm_head.weight'])
  theirs.tie_weights()
  return theirs


def compare(what, model, lora, theirs, ids):
  """Prints and returns the largest difference of the logits."""
  batch = row_batch(*ids)
  ours = jax.jit(model.logits)(model.base, lora, batch)
  with torch.no_grad():
    logits = theirs(torch.tensor(batch['tokens'], dtype=torch.long)).logits
  error = np.abs(np.asarray(ours) - logits.numpy()).max()
  largest = np.abs(logits.numpy()).max()
  print(f'{what}: largest difference {error:.1e}, largest logit {largest:.1f}')
  return error


def check(what, model, theirs, ids):
  """Base, then adapter exported by us and loaded by peft, and back."""
  errors = [compare(f'{what}, base', model, None, theirs, ids)]
  lora = random_adapter(model, spread=0.02)
  with tempfile.TemporaryDirectory() as folder:
    model.export(folder, lora)
    adapted = peft.PeftModel.from_pretrained(theirs, folder)
    label = f'{what}, adapter {model.lora_config.target}'
    errors.append(compare(label, model, lora, adapted.eval(), ids))
    adapted.save_pretrained(f'{folder}/back')
    back = import_adapter(f'{folder}/back', model)
  for ours, returned in zip(*map(jax.tree.leaves, (lora, back)), strict=True):
    np.testing.assert_array_equal(ours, returned)
  return max(errors)


def main():
  """Runs every case; exits non-zero above the tolerance."""
  errors = []
  random = np.random.default_rng(0)
  for what, settings, lora in (
    ('random, untied', {'tie_word_embeddings': False}, LoraConfig(rank=4)),
    (
      'random, tied, Llama 3 positions',
      {'tie_word_embeddings': True, 'rope_parameters': LLAMA3},
      LoraConfig('.*/(q|v|down)', rank=4, rslora=True, alpha=7.5),
    ),
  ):
    with tempfile.TemporaryDirectory() as folder:
      theirs = random_llama(folder, **settings)
      model = from_folder(folder, lora=lora)
    ids = random.integers(0, model.config.vocab_size, (2, 200))
    errors.append(check(what, model, theirs, ids))
  model = smollm2_135m(LoraConfig(rank=8, alpha=16))
  ids = random.integers(0, model.config.vocab_size, (2, 64))
  errors.append(check('SmolLM2', model, smollm2_in_torch(model), ids))
  sys.exit(int(max(errors) > TOLERANCE))


if __name__ == '__main__':
  main()
