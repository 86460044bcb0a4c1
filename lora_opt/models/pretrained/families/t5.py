"""T5, T5 v1.1, Flan-T5 and mT5."""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

from lora_opt.models.encoder_decoder_config import EncoderDecoderConfig
from lora_opt.models.pretrained.besides import Besides, Copy, Unused
from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.models.pretrained.family import Family, TensorName, linear
from lora_opt.models.pretrained.formats import HUGGING_FACE
from lora_opt.models.seq2seq_lm import Seq2SeqLM, abstract_base

# Maps feed_forward_proj to the activation, and whether the MLP is gated.
FEED_FORWARD = {
  'relu': ('relu', False),
  'gelu': ('gelu', False),
  'gelu_new': ('gelu_tanh', False),
  'silu': ('silu', False),
  'gated-relu': ('relu', True),
  'gated-gelu': ('gelu_tanh', True),  # named before there was an exact one
  'gated-gelu_new': ('gelu_tanh', True),
  'gated-silu': ('silu', True),
}


def _stack(ours: str, mlp: int) -> dict[str, TensorName]:
  """The names of one stack; `mlp` is the index of the MLP in a layer."""
  part = f'{ours}.block.{{}}.layer.'

  def attention(number, name, module):
    norm = TensorName(f'{part}{number}.layer_norm.weight')
    kernels = {
      f'layers/{name}/{p}/kernel': linear(f'{part}{number}.{module}.{p}.weight')
      for p in 'qkvo'
    }
    return {f'layers/{name}_norm/scale': norm} | kernels

  wide = {'mlp/gate': 'wi_0', 'mlp/up': 'wi_1', 'mlp/down': 'wo'}
  wide |= {'plain_mlp/up': 'wi', 'plain_mlp/down': 'wo'}
  names = {
    'embedding/table': TensorName(f'{ours}.embed_tokens.weight'),
    'relative_bias/table': TensorName(
      f'{ours}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
    ),
    'final_norm/scale': TensorName(f'{ours}.final_layer_norm.weight'),
    **attention(0, 'attention', 'SelfAttention'),
    **attention(1, 'cross_attention', 'EncDecAttention'),
    'layers/mlp_norm/scale': TensorName(f'{part}{mlp}.layer_norm.weight'),
    **{
      f'layers/{path}/kernel': linear(
        f'{part}{mlp}.DenseReluDense.{module}.weight'
      )
      for path, module in wide.items()
    },
  }
  return {f'{ours}/{path}': name for path, name in names.items()}


NAMES = {
  'embedding': TensorName('shared.weight'),
  'head/table': TensorName('lm_head.weight'),
  **_stack('encoder', 1),
  **_stack('decoder', 2),
}


def read_t5(settings: ConfigFile) -> EncoderDecoderConfig:
  """Reads the config.json of model_type t5.

  The first T5 shares one table between embedding and head, and scales the
  output. Since transformers 5, config.json says so in `scale_decoder_outputs`,
  while `tie_word_embeddings` is true for every T5.
  """
  tied = settings.boolean('tie_word_embeddings', True)
  return _read(settings, settings.boolean('scale_decoder_outputs', tied))


def read_mt5(settings: ConfigFile) -> EncoderDecoderConfig:
  """Reads the config.json of model_type mt5, which never scales the output."""
  settings.boolean('tie_word_embeddings', False)
  return _read(settings, False)


def _read(settings: ConfigFile, scaled: bool) -> EncoderDecoderConfig:
  integer = settings.integer
  settings.expect('tie_encoder_decoder', False)
  layers = integer('num_layers')
  activation, gated_mlp = settings.choose(
    'feed_forward_proj', FEED_FORWARD, default='relu'
  )
  return EncoderDecoderConfig(
    vocab_size=integer('vocab_size'),
    embed_dim=integer('d_model'),
    num_layers=layers,
    num_decoder_layers=integer('num_decoder_layers', layers, null=True),
    num_heads=integer('num_heads'),
    head_dim=integer('d_kv'),
    mlp_dim=integer('d_ff'),
    num_buckets=integer('relative_attention_num_buckets', 32),
    max_distance=integer('relative_attention_max_distance', 128),
    activation=activation,
    gated_mlp=gated_mlp,
    norm_eps=settings.number('layer_norm_epsilon', 1e-6),
    tie_embeddings=scaled,
    scale_output=scaled,
    start_id=integer('decoder_start_token_id', 0, least=0),
  )


def write_config(
  config: EncoderDecoderConfig, model_type: str = 't5'
) -> dict[str, Any]:
  """The content of config.json; the inverse of `read_t5` and `read_mt5`."""
  c, kind = config, {'t5': 'T5', 'mt5': 'MT5'}[model_type]
  names = {ours: theirs for theirs, ours in reversed(FEED_FORWARD.items())}
  settings = {
    'architectures': [f'{kind}ForConditionalGeneration'],
    'model_type': model_type,
    'is_encoder_decoder': True,
    'vocab_size': c.vocab_size,
    'd_model': c.embed_dim,
    'd_kv': c.head_dim,
    'd_ff': c.mlp_dim,
    'num_layers': c.num_layers,
    'num_decoder_layers': c.num_decoder_layers,
    'num_heads': c.num_heads,
    'relative_attention_num_buckets': c.num_buckets,
    'relative_attention_max_distance': c.max_distance,
    'feed_forward_proj': names[c.activation, c.gated_mlp],
    'layer_norm_epsilon': c.norm_eps,
    'tie_word_embeddings': c.tie_embeddings,
    'decoder_start_token_id': c.start_id,
    'pad_token_id': c.start_id,
  }
  if model_type == 't5':
    settings['scale_decoder_outputs'] = c.scale_output
  return settings


def besides(config: EncoderDecoderConfig) -> Besides:
  """Copies of the embedding, and an unused bias in old files."""
  copy = Copy('shared.weight')
  found = {
    r'(encoder|decoder)\.embed_tokens\.weight': copy,
    r'decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias'
    r'\.weight': Unused('distances of cross-attention, which has none'),
  }
  if config.tie_embeddings:
    found[r'lm_head\.weight'] = copy
  return found


def settle(
  config: EncoderDecoderConfig, names: Collection[str]
) -> EncoderDecoderConfig:
  """Ties head and embedding for the first T5, or if no head is stored."""
  tied = config.scale_output or 'lm_head.weight' not in names
  return dataclasses.replace(config, tie_embeddings=tied)


T5 = Family(
  read_config=read_t5,
  harmless=(
    # Dropout and initialisation.
    'dropout_rate',
    'classifier_dropout',
    'initializer_factor',
    # Settings that follow from feed_forward_proj and from the architecture.
    'dense_act_fn',
    'is_gated_act',
    'is_decoder',
    'is_encoder_decoder',
    'n_positions',  # length of the pretraining texts: distances have no limit
  ),
  names=NAMES,
  abstract_base=abstract_base,
  model=Seq2SeqLM,
  files=HUGGING_FACE,
  besides=besides,
  settle=settle,
  write_config=write_config,
)
MT5 = T5._replace(
  read_config=read_mt5,
  write_config=functools.partial(write_config, model_type='mt5'),
)
