"""GPT-2, whose linear maps are stored as (fan_in, fan_out)."""

from typing import Any

from lora_opt.models.causal_lm import CausalLM, abstract_base
from lora_opt.models.config import DecoderConfig
from lora_opt.models.pretrained.besides import (
  Besides,
  Buffer,
  Copy,
  is_causal_mask,
  is_very_negative,
)
from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.models.pretrained.family import Family, TensorName
from lora_opt.models.pretrained.formats import HUGGING_FACE

ACTIVATIONS = {
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu': 'gelu',
  'relu': 'relu',
  'silu': 'silu',
}

NAMES = {
  'embedding/table': TensorName('transformer.wte.weight'),
  'positions': TensorName('transformer.wpe.weight'),
  'head/table': TensorName('lm_head.weight'),
  'final_norm/scale': TensorName('transformer.ln_f.weight'),
  'final_norm/bias': TensorName('transformer.ln_f.bias'),
  **{
    f'layers/{ours}/{leaf}': TensorName(f'transformer.h.{{}}.{theirs}.{kind}')
    for ours, theirs, weight in (
      ('attention_norm', 'ln_1', 'scale'),
      ('attention/qkv', 'attn.c_attn', 'kernel'),
      ('attention/o', 'attn.c_proj', 'kernel'),
      ('mlp_norm', 'ln_2', 'scale'),
      ('mlp/up', 'mlp.c_fc', 'kernel'),
      ('mlp/down', 'mlp.c_proj', 'kernel'),
    )
    for leaf, kind in ((weight, 'weight'), ('bias', 'bias'))
  },
}


def read_config(settings: ConfigFile) -> DecoderConfig:
  """Reads the config.json of model_type gpt2."""
  settings.expect('scale_attn_weights', True)
  settings.expect('scale_attn_by_inverse_layer_idx', False)
  settings.expect('add_cross_attention', False)
  embed, heads = settings.integer('n_embd'), settings.integer('n_head')
  activation = settings.choose('activation_function', ACTIVATIONS, 'gelu_new')
  return DecoderConfig(
    vocab_size=settings.integer('vocab_size'),
    embed_dim=embed,
    num_layers=settings.integer('n_layer'),
    num_heads=heads,
    num_kv_heads=heads,
    head_dim=settings.quotient('n_embd', 'n_head'),
    mlp_dim=settings.integer('n_inner', 4 * embed, null=True),
    norm_eps=settings.number('layer_norm_epsilon', 1e-5),
    tie_embeddings=settings.boolean('tie_word_embeddings', True),
    max_length=settings.integer('n_positions', 1024),
    norm='layer',
    activation=activation,
    gated_mlp=False,
    attention_bias=True,
    mlp_bias=True,
    fused_qkv=True,
    learned_positions=True,
  )


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The content of config.json; the inverse of `read_config`."""
  c = config
  names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
  return {
    'architectures': ['GPT2LMHeadModel'],
    'model_type': 'gpt2',
    'vocab_size': c.vocab_size,
    'n_embd': c.embed_dim,
    'n_layer': c.num_layers,
    'n_head': c.num_heads,
    'n_inner': c.mlp_dim,
    'n_positions': c.max_length,
    'activation_function': names[c.activation],
    'layer_norm_epsilon': c.norm_eps,
    'tie_word_embeddings': c.tie_embeddings,
  }


def _besides(config: DecoderConfig) -> Besides:
  """Causal masks in old files, and the copy of a tied embedding."""
  attention = r'(transformer\.)?h\.\d+\.attn\.'
  found = {
    rf'{attention}bias': Buffer(is_causal_mask, 'a causal mask'),
    rf'{attention}masked_bias': Buffer(
      is_very_negative, 'the very negative number that masks'
    ),
  }
  if config.tie_embeddings:
    found[r'lm_head\.weight'] = Copy('transformer.wte.weight')
  return found


GPT2 = Family(
  read_config=read_config,
  # Dropout rates (the adapter has its own), the head of another task, and the
  # order of operations in half precision.
  harmless=(
    *('attn_pdrop', 'embd_pdrop', 'resid_pdrop', 'n_ctx', 'n_special'),
    *('predict_special_tokens', 'reorder_and_upcast_attn'),
    *('summary_activation', 'summary_first_dropout', 'summary_type'),
    *('summary_proj_to_labels', 'summary_use_proj'),
  ),
  names=NAMES,
  abstract_base=abstract_base,
  model=CausalLM,
  files=HUGGING_FACE,
  besides=_besides,
  prefix='transformer.',
  write_config=write_config,
)
