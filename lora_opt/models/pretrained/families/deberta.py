"""DeBERTa-v3, and DeBERTa-v2 models without a convolution."""

from lora_opt.models.encoder_config import (
  TERMS,
  EncoderConfig,
  RelativePositions,
)
from lora_opt.models.pretrained.besides import Besides, Unused
from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.models.pretrained.families.bert import (
  ACTIVATIONS,
  BERT,
  HARMLESS,
  POSITION_IDS,
  PRETRAINING,
  TASK,
  encoder_names,
  linear_names,
  norm_names,
  sizes,
)
from lora_opt.models.pretrained.family import TensorName


def read_config(settings: ConfigFile) -> EncoderConfig:
  """Reads the config.json of model_type deberta-v2."""
  common = sizes(settings, norm_eps=1e-7)
  width = common['embed_dim']
  settings.expect('conv_kernel_size', 0)
  settings.expect('embedding_size', width)
  settings.expect('pooler_hidden_size', width)
  settings.expect('attention_head_size', width // common['num_heads'])
  return EncoderConfig(
    **common,
    max_length=settings.integer('max_position_embeddings', 512),
    absolute_positions=settings.boolean('position_biased_input', True),
    token_types=settings.integer('type_vocab_size', 0, least=0),
    relative=relative_positions(settings),
    pooler=settings.choose('pooler_hidden_act', ACTIVATIONS, 'gelu'),
  )


def relative_positions(settings: ConfigFile) -> RelativePositions | None:
  """Reads the settings of disentangled attention; None without it."""
  longest = settings.integer('max_relative_positions', -1, least=-1)
  if longest < 1:
    longest = settings.integer('max_position_embeddings', 512)
  buckets = settings.integer('position_buckets', -1, least=-1)
  terms = attention_terms(settings)
  shared = settings.boolean('share_att_key', False)
  norms = {'none': False, 'layer_norm': True}
  norm = settings.choose('norm_rel_ebd', norms, 'none')
  if not settings.boolean('relative_attention', False):
    settings.expect('pos_att_type', None, [])
    return None
  return RelativePositions(
    span=buckets if buckets > 0 else longest,
    buckets=buckets > 0,
    max_distance=longest,
    terms=tuple(term for term in TERMS if term in terms),
    shared=shared,
    norm=norm,
  )


def attention_terms(settings: ConfigFile) -> list[str]:
  """Reads the attention terms with positions, a list or joined by '|'."""
  if settings.is_text('pos_att_type'):
    terms = settings.text('pos_att_type').lower().split('|')
    terms = [term.strip() for term in terms]
  else:
    terms = settings.items('pos_att_type', [], null=True)
  for term in terms:
    if term not in TERMS:
      settings.refuse('pos_att_type', term, TERMS)
  return terms


def besides(config: EncoderConfig) -> Besides:
  """Tensors that a checkpoint may hold but the model does not use."""
  found = {
    r'((lm|mask)_predictions|cls\.predictions)\..*': PRETRAINING,
    r'(pooler\.dense|classifier)\.(weight|bias)': TASK,
    r'(deberta\.)?embeddings\.position_ids': POSITION_IDS,
  }
  if not config.absolute_positions:
    found[r'(deberta\.)?embeddings\.position_embeddings\.weight'] = Unused(
      'positions, which position_biased_input=False leaves out'
    )
  if config.relative is None:
    found[r'(deberta\.)?encoder\.LayerNorm\.(weight|bias)'] = Unused(
      'norm of the distances, which relative_attention=False leaves out'
    )
  return found


ATTENTION = 'deberta.encoder.layer.{}.attention.self'

DEBERTA = BERT._replace(
  read_config=read_config,
  harmless=(*HARMLESS, 'cls_dropout', 'legacy', 'pooler_dropout'),
  names=encoder_names('deberta.', 'query_proj', 'key_proj', 'value_proj')
  | {'distances': TensorName('deberta.encoder.rel_embeddings.weight')}
  | norm_names('distances_norm', 'deberta.encoder.LayerNorm')
  | linear_names('layers/attention/position_k', f'{ATTENTION}.pos_key_proj')
  | linear_names('layers/attention/position_q', f'{ATTENTION}.pos_query_proj')
  | linear_names('head/dense', 'pooler.dense')
  | linear_names('head/out', 'classifier'),
  besides=besides,
  prefix='deberta.',
  classifier='DebertaV2ForSequenceClassification',
)
