"""BERT (MiniLM is one) and RoBERTa."""

from typing import Any

from lora_opt.models.encoder_config import EncoderConfig
from lora_opt.models.pretrained.besides import Buffer, Unused, is_range
from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.models.pretrained.family import Family, TensorName, linear
from lora_opt.models.pretrained.formats import HUGGING_FACE
from lora_opt.models.sequence_classifier import (
  SequenceClassifier,
  abstract_base,
  abstract_head,
)
from lora_opt.reading import values
from lora_opt.reading.json_text import read_json

# Maps transformers' names of activations to ours.
ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'relu': 'relu',
  'silu': 'silu',
  'swish': 'silu',
  'tanh': 'tanh',
}

# Dropout rates are settings of our model; only language models use the rest.
HARMLESS = (
  'attention_probs_dropout_prob',
  'classifier_dropout',
  'directionality',
  'hidden_dropout_prob',
  'pooler_fc_size',
  'pooler_num_attention_heads',
  'pooler_num_fc_layers',
  'pooler_size_per_head',
  'pooler_type',
  'tie_word_embeddings',
)

# The first checkpoints have older names for the arrays of a norm.
RENAMED = {
  'LayerNorm.gamma': 'LayerNorm.weight',
  'LayerNorm.beta': 'LayerNorm.bias',
}

POSITION_IDS = Buffer(is_range, 'the numbers of the positions')
# The heads of tasks are read separately.
PRETRAINING, TASK = Unused('head of pretraining'), Unused('head of a task')
BESIDES = {
  r'cls\.(predictions|seq_relationship)\..*': PRETRAINING,
  r'lm_head\.(bias|(decoder|dense|layer_norm)\.(weight|bias))': PRETRAINING,
  r'classifier\.((dense|out_proj)\.)?(weight|bias)': TASK,
  r'(bert\.|roberta\.)?pooler\.dense\.(weight|bias)': TASK,
  r'(bert\.|roberta\.)?embeddings\.position_ids': POSITION_IDS,
}


def read_bert(settings: ConfigFile) -> EncoderConfig:
  """Reads the config.json of model_type bert."""
  return EncoderConfig(**sizes(settings), **absolute(settings))


def read_roberta(settings: ConfigFile) -> EncoderConfig:
  """Reads the config.json of model_type roberta."""
  # Positions are counted from the padding id, whose own row is not used.
  offset = settings.integer('pad_token_id', 1, least=0) + 1
  return EncoderConfig(**sizes(settings), **absolute(settings, offset))


def absolute(settings: ConfigFile, offset: int = 0) -> dict[str, Any]:
  """Reads the settings of positions and head in BERT and RoBERTa."""
  settings.expect('position_embedding_type', 'absolute')
  settings.expect('is_decoder', False)
  settings.expect('add_cross_attention', False)
  pooling = pooling_of_sentences(settings)
  return {
    'max_length': settings.integer('max_position_embeddings', 512) - offset,
    'position_offset': offset,
    'token_types': settings.integer('type_vocab_size', 2),
    'pooling': pooling or 'first',
    'pooler': None if pooling else 'tanh',
  }


def sizes(settings: ConfigFile, norm_eps: float = 1e-12) -> dict[str, Any]:
  """Reads the settings that all encoders of the BERT family share.

  Args:
    settings: The file.
    norm_eps: Used if layer_norm_eps is absent.
  """
  settings.expect('pruned_heads', {}, None)
  return {
    'vocab_size': settings.integer('vocab_size'),
    'embed_dim': settings.integer('hidden_size'),
    'num_layers': settings.integer('num_hidden_layers'),
    'num_heads': settings.integer('num_attention_heads'),
    'mlp_dim': settings.integer('intermediate_size'),
    'activation': settings.choose('hidden_act', ACTIVATIONS, 'gelu'),
    'norm_eps': settings.number('layer_norm_eps', norm_eps),
  }


def pooling_of_sentences(settings: ConfigFile) -> str | None:
  """Reads the pooling of a sentence-transformers folder; None for others."""
  file = settings.folder / '1_Pooling' / 'config.json'
  if not file.is_file():
    return None
  modes = [
    key
    for key, on in read_json(file).items()
    if key.startswith('pooling_mode') and values.boolean(on, f'{file}: {key}')
  ]
  known = {
    'pooling_mode_mean_tokens': 'mean',
    'pooling_mode_cls_token': 'first',
  }
  if len(modes) != 1 or modes[0] not in known:
    raise ValueError(
      f'{file}: pooling by {", ".join(modes) or "nothing"} is not supported; '
      f'one of {", ".join(known)} is'
    )
  return known[modes[0]]


def encoder_names(prefix: str, q: str, k: str, v: str) -> dict[str, TensorName]:
  """The names that BERT and its successors have in common.

  Args:
    prefix: Start of every name, such as 'bert.'.
    q: Name of the query projection.
    k: Name of the key projection.
    v: Name of the value projection.
  """
  layer = f'{prefix}encoder.layer.{{}}'
  maps = {
    'attention/q': f'attention.self.{q}',
    'attention/k': f'attention.self.{k}',
    'attention/v': f'attention.self.{v}',
    'attention/o': 'attention.output.dense',
    'mlp/up': 'intermediate.dense',
    'mlp/down': 'output.dense',
  }
  norms = {
    'attention_norm': 'attention.output.LayerNorm',
    'mlp_norm': 'output.LayerNorm',
  }
  embeddings = f'{prefix}embeddings'
  names = {
    'embedding/table': TensorName(f'{embeddings}.word_embeddings.weight'),
    'positions': TensorName(f'{embeddings}.position_embeddings.weight'),
    'token_types': TensorName(f'{embeddings}.token_type_embeddings.weight'),
  }
  names |= norm_names('embedding_norm', f'{embeddings}.LayerNorm')
  for ours, theirs in maps.items():
    names |= linear_names(f'layers/{ours}', f'{layer}.{theirs}')
  for ours, theirs in norms.items():
    names |= norm_names(f'layers/{ours}', f'{layer}.{theirs}')
  return names


def linear_names(ours: str, theirs: str) -> dict[str, TensorName]:
  """The names of kernel and bias of a linear map."""
  return {
    f'{ours}/kernel': linear(f'{theirs}.weight'),
    f'{ours}/bias': TensorName(f'{theirs}.bias'),
  }


def norm_names(ours: str, theirs: str) -> dict[str, TensorName]:
  """The names of scale and bias of a LayerNorm."""
  return {
    f'{ours}/scale': TensorName(f'{theirs}.weight'),
    f'{ours}/bias': TensorName(f'{theirs}.bias'),
  }


BERT = Family(
  read_config=read_bert,
  harmless=HARMLESS,
  names=encoder_names('bert.', 'query', 'key', 'value')
  | linear_names('head/dense', 'bert.pooler.dense')
  | linear_names('head/out', 'classifier'),
  abstract_base=abstract_base,
  model=SequenceClassifier,
  files=HUGGING_FACE,
  besides=lambda config: BESIDES,
  prefix='bert.',
  renamed=RENAMED,
  abstract_head=abstract_head,
  classifier='BertForSequenceClassification',
)

ROBERTA = BERT._replace(
  read_config=read_roberta,
  names=encoder_names('roberta.', 'query', 'key', 'value')
  | linear_names('head/dense', 'classifier.dense')
  | linear_names('head/out', 'classifier.out_proj'),
  prefix='roberta.',
  classifier='RobertaForSequenceClassification',
)
