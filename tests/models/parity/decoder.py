"""Random small decoders that between them use every option of the families."""

import dataclasses
from typing import Any

import jax
import numpy as np

from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.huggingface import from_folder
from tests.models.batches import jitted, row_batch
from tests.models.parity import material

SIZES = {
  'vocab_size': 262,
  'hidden_size': 24,
  'intermediate_size': 40,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 10,
  'max_position_embeddings': 128,
  'eos_token_id': 257,
}
LLAMA3 = {
  'rope_type': 'llama3',
  'rope_theta': 1e3,
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32,
}


GEMMA3_LAYERS = ('sliding', 'full', 'sliding')


@dataclasses.dataclass(frozen=True)
class Case:
  """A model of transformers and an adapter of it.

  Attributes:
    model_type: As in config.json.
    settings: Arguments of its config class.
    modules: What PEFT adapts.
    target: The same as our regular expression.
    rslora: Whether the scale is the rank-stabilized one.
    apart: Whether transformers is given row by row, since it lets the longest
      of a batch say how the positions of all turn.
  """

  model_type: str
  settings: dict[str, Any]
  modules: list[str]
  target: str
  rslora: bool = False
  apart: bool = False


LINEAR = ['q_proj', 'k_proj', 'v_proj', 'o_proj']
LINEAR += ['gate_proj', 'up_proj', 'down_proj']
CASES = {
  'llama': Case('llama', SIZES, LINEAR, 'layers/.*'),
  'llama_scaled': Case(
    'llama',
    SIZES
    | {
      'rope_parameters': LLAMA3,
      'tie_word_embeddings': True,
      'attention_bias': True,
      'mlp_bias': True,
    },
    ['q_proj', 'down_proj', 'embed_tokens', 'lm_head'],
    '.*/(q|down)|embedding|head',
    rslora=True,
  ),
  'mistral': Case(
    'mistral',
    SIZES | {'sliding_window': 4, 'num_key_value_heads': 1},
    LINEAR,
    'layers/.*',
  ),
  'gemma': Case(
    'gemma',
    SIZES
    | {
      'num_key_value_heads': 1,
      'rope_parameters': {'rope_type': 'linear', 'factor': 4.0}
      | {'rope_theta': 1e3},
    },
    [*LINEAR, 'embed_tokens'],
    'layers/.*|embedding',
  ),
  'gemma2': Case(
    'gemma2',
    SIZES
    | {
      'sliding_window': 4,
      'query_pre_attn_scalar': 7,
      'attn_logit_softcapping': 1.5,
      'final_logit_softcapping': 2.5,
    },
    LINEAR,
    'layers/.*',
  ),
  'gemma3': Case(
    'gemma3_text',
    SIZES
    | {
      'num_hidden_layers': 3,
      'layer_types': [f'{kind}_attention' for kind in GEMMA3_LAYERS],
      'sliding_window': 4,
      'query_pre_attn_scalar': 7,
      'rope_parameters': {
        'full_attention': {'rope_type': 'linear', 'factor': 8.0}
        | {'rope_theta': 1e4},
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 50.0},
      },
    },
    LINEAR,
    'layers/.*',
  ),
  'qwen2': Case(
    'qwen2',
    {k: v for k, v in SIZES.items() if k != 'head_dim'}
    | {
      'hidden_size': 32,
      'use_sliding_window': True,
      'sliding_window': 4,
      'max_window_layers': 1,
      'tie_word_embeddings': True,
    },
    LINEAR,
    'layers/.*',
  ),
  'qwen3': Case('qwen3', SIZES, LINEAR, 'layers/.*'),
  'qwen3_biases': Case(
    'qwen3',
    SIZES
    | {
      'attention_bias': True,
      'use_sliding_window': True,
      'sliding_window': 4,
      'layer_types': ['sliding_attention', 'full_attention'],
    },
    ['q_proj', 'lm_head'],
    '.*/q|head',
  ),
  'olmo2': Case('olmo2', SIZES | {'attention_bias': True}, LINEAR, 'layers/.*'),
  'smollm3': Case(
    'smollm3',
    SIZES
    | {
      'pad_token_id': 0,
      'bos_token_id': 256,
      'no_rope_layers': [1, 0],
      'use_sliding_window': True,
      'sliding_window': 4,
      'mlp_bias': True,
      'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 50.0}
      | {'factor': 8.0, 'original_max_position_embeddings': 16}
      | {'beta_fast': 2.0, 'beta_slow': 0.5},
    },
    LINEAR,
    'layers/.*',
  ),
  'phi3': Case(
    'phi3',
    {k: v for k, v in SIZES.items() if k != 'head_dim'}
    | {
      'hidden_size': 40,
      'pad_token_id': 0,
      'sliding_window': 6,
      'original_max_position_embeddings': 9,
      'rope_parameters': {'rope_type': 'longrope', 'rope_theta': 50.0}
      | {'partial_rotary_factor': 0.6}
      | {'short_factor': [1.0, 1.5, 2.0], 'long_factor': [1.5, 3.0, 9.0]},
    },
    ['qkv_proj', 'o_proj', 'gate_up_proj', 'down_proj'],
    'layers/.*',
    apart=True,
  ),
  'llama_dynamic': Case(
    'llama',
    SIZES
    | {
      'max_position_embeddings': 6,
      'rope_parameters': {'rope_type': 'dynamic', 'rope_theta': 50.0}
      | {'factor': 4.0},
    },
    ['k_proj'],
    '.*/k',
    apart=True,
  ),
  'gpt2': Case(
    'gpt2',
    {
      'vocab_size': 262,
      'n_positions': 32,
      'n_embd': 24,
      'n_layer': 2,
      'n_head': 4,
      'n_inner': 40,
      'bos_token_id': 256,
      'eos_token_id': 257,
    },
    ['c_attn', 'attn.c_proj', 'mlp.c_proj', 'lm_head'],
    '.*/(qkv|o|down)|head',
  ),
}


def rows() -> list[list[int]]:
  """Rows of ids longer than the windows, of several lengths."""
  # Not id 0: transformers gives Gemma's padding token no gradient.
  random = np.random.default_rng(0)
  return [random.integers(1, 256, n).tolist() for n in (13, 9, 4)]


def packed_batch() -> dict[str, np.ndarray]:
  """The same rows one after the other in a single one."""
  parts = [row_batch(row) for row in rows()]
  packed = {
    key: np.concatenate([part[key] for part in parts], axis=1)
    for key in parts[0]
  }
  lengths = [len(row) for row in rows()]
  segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)
  ends = np.cumsum(lengths) - 1
  weights = np.ones(segments.size, np.float32)
  weights[ends] = 0  # the last token of a row predicts nothing
  return packed | {
    'segment_ids': segments[None].astype(np.int32),
    'weights': weights[None],
  }


def reference(case: Case):
  """Logits and gradients of transformers and peft; needs torch.

  Returns:
    The adapted torch model; arrays by name; and the text of config.json.
  """
  import torch
  import transformers

  from tests.models.parity import reference as torch_side

  config = transformers.AutoConfig.for_model(case.model_type, **case.settings)
  model = transformers.AutoModelForCausalLM.from_config(
    config, attn_implementation='eager'
  )
  torch_side.fill(model)
  adapted = torch_side.adapt(
    model, case.modules, 'CAUSAL_LM', use_rslora=case.rslora
  )
  logits, valid = torch_logits(case, adapted)
  batch = row_batch(*rows())
  losses = torch.nn.functional.cross_entropy(
    logits.flatten(0, 1),
    torch.tensor(batch['targets']).long().flatten(),
    reduction='none',
  ).reshape(valid.shape)
  # The last token of a row predicts nothing.
  (losses[:, :-1] * valid[:, 1:]).sum().backward()
  arrays = torch_side.gradients(adapted)
  arrays['logits'] = logits.detach().numpy()[valid.numpy()]
  return adapted, arrays, config.to_json_string()


def torch_logits(case: Case | None, model, ids=None):
  """Logits of a torch model on rows, and which positions are no padding."""
  import torch

  ids = ids or rows()
  batch = row_batch(*ids)
  valid = torch.tensor(batch['segment_ids'] > 0)
  if case is not None and case.apart:
    # The shortest first: dynamic scaling remembers the longest so far.
    found = {
      i: model(input_ids=torch.tensor([ids[i]])).logits[0]
      for i in sorted(range(len(ids)), key=lambda i: len(ids[i]))
    }
    logits = [found[i] for i in range(len(ids))]
    return torch.nn.utils.rnn.pad_sequence(logits, batch_first=True), valid
  output = model(
    input_ids=torch.tensor(batch['tokens']).long(),
    attention_mask=valid.long(),
  )
  return output.logits, valid


def thinned(logits: np.ndarray) -> np.ndarray:
  """The logits that are compared: all."""
  return logits


def our_model(case: Case, folder, config: str):
  """Our model of a case, from a checkpoint that is written to a folder."""
  material.write_folder(folder, config)
  lora = LoraConfig(
    case.target, material.RANK, material.ALPHA, rslora=case.rslora
  )
  return from_folder(folder, lora=lora)


def our_arrays(case: Case, model) -> dict[str, np.ndarray]:
  """What `reference` returns, and the logits of the packed rows."""
  del case
  lora, packed = material.adapter(model), packed_batch()
  batch = row_batch(*rows())
  logits = jitted(model, 'logits')(model.base, lora, batch)

  def total(lora):
    # One compilation for both: packed logits and the gradient of the loss.
    losses = model.token_losses(model.base, lora, packed)
    return losses.sum(), model.logits(model.base, lora, packed)

  gradient, together = jax.jit(jax.grad(total, has_aux=True))(lora)
  named = material.by_peft_name(gradient, model)
  return {
    'logits': np.asarray(logits)[batch['segment_ids'] > 0],
    'packed logits': np.asarray(together)[0],
    **{f'gradient/{name}': array for name, array in named.items()},
  }
