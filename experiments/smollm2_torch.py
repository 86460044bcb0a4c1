"""SmolLM2, dequantised by lora_opt, in the Llama class of transformers."""

import torch
import transformers

from tests.models.batches import hugging_face_tensors


def smollm2_in_torch(model) -> transformers.LlamaForCausalLM:
  """Makes a torch model with the same weights.

  Args:
    model: from `lora_opt.models.smollm2_135m`.
  """
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
  result = theirs.load_state_dict(state, strict=False)
  assert not result.unexpected_keys
  assert result.missing_keys in ([], ['lm_head.weight'])
  theirs.tie_weights()
  return theirs
