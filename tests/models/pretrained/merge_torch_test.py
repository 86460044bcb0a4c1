"""transformers reads merged folders, and PEFT adapters, of every family.

Collected where torch is installed.
"""

import jax
import numpy as np
import peft
import pytest
import transformers

from tests.models.batches import jitted, pair_batch, row_batch
from tests.models.parity import decoder, encoder_decoder, material

pytestmark = [
  pytest.mark.usefixtures('fast_compile'),
  pytest.mark.filterwarnings('ignore'),  # of transformers
]


@pytest.mark.parametrize('name', decoder.CASES)
def test_transformers_computes_the_same(tmp_path, name):
  _, config = material.read_golden(f'decoder_{name}')
  source = tmp_path / 'source'
  source.mkdir()
  model = decoder.our_model(decoder.CASES[name], source, config)
  lora, batch = material.adapter(model), row_batch(*decoder.rows())
  ours = np.asarray(jax.jit(model.logits)(model.base, lora, batch))
  model.merge(tmp_path / 'merged', lora, source=source)
  model.export(tmp_path / 'adapter', lora)
  read = transformers.AutoModelForCausalLM.from_pretrained
  adapted = peft.PeftModel.from_pretrained(read(source), tmp_path / 'adapter')
  for theirs in (read(tmp_path / 'merged'), adapted):
    logits, valid = decoder.torch_logits(decoder.CASES[name], theirs.eval())
    logits, valid = logits.detach().numpy(), valid.numpy()
    material.assert_close(ours[valid], logits[valid], name)
  assert abs(logits).max() > 0.1
  # And back, from our file and from theirs.
  adapted.save_pretrained(tmp_path / 'saved')
  for folder in ('adapter', 'saved'):
    back = model.load_adapter(tmp_path / folder)
    jax.tree.map(np.testing.assert_array_equal, back, lora)


def test_a_model_from_elsewhere(tmp_path, tiny):
  """config.json and tokenizer written anew, as for a GGUF file."""
  tiny.merge(tmp_path / 'merged', None)
  transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'merged')
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'merged')
  text = 'Hello<eos>'
  ids = tokenizer.encode(text, add_special_tokens=False)
  assert ids == tiny.tokenizer.encode(text)
  np.testing.assert_array_equal(tokenizer.eos_token_id, tiny.tokenizer.eos_id)


def test_an_encoder_decoder(tmp_path):
  case = encoder_decoder.CASES['t5_gated']
  source = tmp_path / 'source'
  source.mkdir()
  _, config = material.read_golden('encoder_decoder_t5_gated')
  model = encoder_decoder.our_model(case, source, config)
  lora = material.adapter(model)
  batch = pair_batch(encoder_decoder.START, *case.pairs())
  ours = np.asarray(jitted(model, 'logits')(model.base, lora, batch))
  model.merge(tmp_path / 'merged', lora, source=source)
  theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(
    tmp_path / 'merged'
  ).eval()
  logits, valid = encoder_decoder.torch_logits(case, theirs)
  logits, valid = logits.detach().numpy(), valid.numpy()
  material.assert_close(ours[valid], logits[valid], 't5_gated')
  base = np.asarray(jitted(model, 'logits')(model.base, None, batch))
  assert abs(ours - base)[valid].max() > 0.1
