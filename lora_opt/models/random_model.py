"""Tiny models with random weights, for smoke runs and tests."""

import jax

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models import causal_lm, seq2seq_lm
from lora_opt.models.causal_lm import CausalLM
from lora_opt.models.config import DecoderConfig
from lora_opt.models.encoder_decoder_config import EncoderDecoderConfig
from lora_opt.models.frozen import with_base
from lora_opt.models.lora import LoraConfig, check_dtype
from lora_opt.models.pretrained.families.gemma import GEMMA2, GEMMA3
from lora_opt.models.pretrained.families.gpt2 import GPT2
from lora_opt.models.pretrained.families.llama import LLAMA
from lora_opt.models.pretrained.families.olmo2 import OLMO2
from lora_opt.models.pretrained.families.phi3 import PHI3
from lora_opt.models.pretrained.families.qwen import QWEN2, QWEN3
from lora_opt.models.pretrained.families.smollm3 import SMOLLM3
from lora_opt.models.pretrained.families.t5 import T5
from lora_opt.models.pretrained.family import Family
from lora_opt.models.quantized import leaves_by_path
from lora_opt.models.seq2seq_lm import Seq2SeqLM


def random_model(
  lora: LoraConfig | None = None,
  *,
  seed: int = 0,
  dtype: str = 'float32',
  param_dtype: str | None = None,
  remat: str = 'projections',
  unroll: int = 1,
  attention: str = 'auto',
  quantize: str | None = None,
  **config,
) -> CausalLM:
  """A decoder of any size with random weights and a byte-level tokenizer.

  Args:
    lora: Adapter settings, or None for no adapter.
    seed: Seed of the weights.
    dtype: Type of the computation.
    param_dtype: Type of the stored weights, by default `dtype`.
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan over layers.
    attention: How attention is computed, see `lora_opt.models.attend`.
    quantize: Kind of quantization of the kernels of projections, see
      `from_folder`.
    **config: Fields of `DecoderConfig` that differ from the tiny default.

  Returns:
    The model.

  Raises:
    ValueError: If the settings contradict each other.

  >>> model = random_model(LoraConfig(rank=2), num_layers=1)
  >>> model.tokenizer.decode(model.tokenizer.encode('abc'))
  'abc'
  """
  sizes = {
    'embed_dim': 32,
    'num_layers': 2,
    'num_heads': 4,
    'num_kv_heads': 2,
    'head_dim': 8,
    'mlp_dim': 64,
  }

  def configure(tokenizer):
    return DecoderConfig(
      **({'vocab_size': tokenizer.vocab_size} | sizes | config)
    )

  return _random(
    _decoder_family(configure(Tokenizer.byte_level())),
    configure,
    causal_lm.init_base,
    jax.random.key(seed),
    param_dtype or dtype,
    quantize,
    lora_config=lora,
    dtype=dtype,
    remat=remat,
    unroll=unroll,
    attention=attention,
  )


def _decoder_family(config: DecoderConfig) -> Family:
  """The first family with names for all arrays of such a decoder, or Llama."""
  needed = leaves_by_path(causal_lm.abstract_base(config)).keys()
  # Families that differ from Llama in more than their arrays come first.
  families = [QWEN2] if config.qkv_bias else []
  families += [SMOLLM3] if any(config.unrotated_layers) else []
  families += [LLAMA, QWEN3, OLMO2, GEMMA2, GEMMA3, PHI3, GPT2]
  return next((f for f in families if f.names.keys() >= needed), LLAMA)


def random_seq2seq(
  lora: LoraConfig | None = None,
  *,
  seed: int = 0,
  dtype: str = 'float32',
  param_dtype: str | None = None,
  remat: str = 'projections',
  unroll: int = 1,
  attention: str = 'auto',
  quantize: str | None = None,
  **config,
) -> Seq2SeqLM:
  """A T5 of any size with random weights and a byte-level tokenizer.

  Args:
    lora: Adapter settings, or None for no adapter.
    seed: Seed of the weights.
    dtype: Type of the computation.
    param_dtype: Type of the stored weights, by default `dtype`.
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scans over layers.
    attention: How attention is computed, see `lora_opt.models.attend`.
    quantize: Kind of quantization of the kernels of projections, see
      `from_folder`.
    **config: Fields of `EncoderDecoderConfig` that differ from the tiny
      default.

  Returns:
    The model.

  Raises:
    ValueError: If the settings contradict each other.

  >>> model = random_seq2seq(LoraConfig(rank=2), num_layers=1)
  >>> model.config.num_layers, model.config.num_decoder_layers
  (1, 2)
  """
  sizes = {
    'embed_dim': 32,
    'num_layers': 2,
    'num_decoder_layers': 2,
    'num_heads': 4,
    'head_dim': 8,
    'mlp_dim': 64,
  }

  def configure(tokenizer):
    own = {'vocab_size': tokenizer.vocab_size, 'start_id': tokenizer.pad_id}
    return EncoderDecoderConfig(**(own | sizes | config))

  return _random(
    T5,
    configure,
    seq2seq_lm.init_base,
    jax.random.key(seed),
    param_dtype or dtype,
    quantize,
    lora_config=lora,
    dtype=dtype,
    remat=remat,
    unroll=unroll,
    attention=attention,
  )


def _random(
  family: Family, configure, init_base, rng, stored, quantize, **settings
):
  check_dtype(stored)
  tokenizer = Tokenizer.byte_level()
  config = configure(tokenizer)
  model = family.model(
    name='random',
    family=family,
    config=config,
    tokenizer=tokenizer,
    base=family.abstract_base(config),
    **settings,
  )
  base = init_base(config, rng, stored)
  return with_base(model, base, quantize)
