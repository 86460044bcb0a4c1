"""transformers reads a merged folder; collected where torch is installed.

That it computes the same is in tests/models/parity_test.py, for every family.
"""

import numpy as np
import pytest
import transformers

pytestmark = pytest.mark.filterwarnings('ignore')  # of transformers


def test_a_model_from_elsewhere(tmp_path, tiny):
  """config.json and tokenizer written anew, as for a GGUF file."""
  tiny.merge(tmp_path / 'merged', None)
  transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'merged')
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'merged')
  text = 'Hello<eos>'
  ids = tokenizer.encode(text, add_special_tokens=False)
  assert ids == tiny.tokenizer.encode(text)
  np.testing.assert_array_equal(tokenizer.eos_token_id, tiny.tokenizer.eos_id)
