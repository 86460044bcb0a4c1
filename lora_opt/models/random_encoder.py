"""A tiny encoder with random weights, for smoke runs and tests."""

import jax

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.encoder_config import EncoderConfig
from lora_opt.models.frozen import with_base
from lora_opt.models.lora import LoraConfig, check_dtype
from lora_opt.models.pretrained.families.bert import BERT
from lora_opt.models.pretrained.families.deberta import DEBERTA
from lora_opt.models.sequence_classifier import (
  SequenceClassifier,
  abstract_base,
  init_base,
)


def random_encoder(
  lora: LoraConfig | None = None,
  *,
  outputs: int = 2,
  seed: int = 0,
  dtype: str = 'float32',
  param_dtype: str | None = None,
  remat: str = 'projections',
  unroll: int = 1,
  attention: str = 'auto',
  quantize: str | None = None,
  dropout: float = 0.0,
  head_dropout: float = 0.0,
  **config,
) -> SequenceClassifier:
  """An encoder of any size with random weights and a byte-level tokenizer.

  Args:
    lora: Adapter settings, or None for no adapter.
    outputs: Number of labels; 1 for a regression.
    seed: Seed of the weights.
    dtype: Type of the computation.
    param_dtype: Type of the stored weights, by default `dtype`.
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan over layers.
    attention: How attention is computed, see `lora_opt.models.attend`.
    quantize: Kind of quantization of the kernels of projections, see
      `from_folder`.
    dropout: Rate on hidden states during training.
    head_dropout: Rate before the last linear map of the head during training.
    **config: Fields of `EncoderConfig` that differ from the tiny default.

  Returns:
    The model: a DeBERTa if `relative` is set, else a BERT.

  Raises:
    ValueError: If the settings contradict each other.

  >>> model = random_encoder(LoraConfig(rank=2), num_layers=1)
  >>> model.tokenizer.encode_texts('a', 'b').types
  [0, 0, 0, 1, 1]
  """
  tokenizer = Tokenizer.byte_level()
  sizes = {
    'vocab_size': tokenizer.vocab_size,
    'embed_dim': 32,
    'num_layers': 2,
    'num_heads': 4,
    'mlp_dim': 64,
    'max_length': 512,
  }
  config = EncoderConfig(**(sizes | config))
  stored = param_dtype or dtype
  check_dtype(stored)
  model = SequenceClassifier(
    name='random',
    family=BERT if config.relative is None else DEBERTA,
    config=config,
    tokenizer=tokenizer,
    base=abstract_base(config),
    lora_config=lora,
    dtype=dtype,
    remat=remat,
    unroll=unroll,
    attention=attention,
    outputs=outputs,
    dropout=dropout,
    head_dropout=head_dropout,
  )
  base = init_base(config, jax.random.key(seed), stored)
  return with_base(model, base, quantize)
