"""A tiny decoder with random weights, for smoke runs and tests."""

import jax

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.causal_lm import CausalLM, abstract_base, init_base
from lora_opt.models.config import DecoderConfig
from lora_opt.models.frozen import with_base
from lora_opt.models.lora import LoraConfig, check_dtype
from lora_opt.models.pretrained.families.llama import LLAMA


def random_model(
  lora: LoraConfig | None = None,
  *,
  seed: int = 0,
  dtype: str = 'float32',
  param_dtype: str | None = None,
  remat: str = 'projections',
  unroll: int = 1,
  quantize: str | None = None,
  **config,
) -> CausalLM:
  """A decoder of any size with random weights and a byte-level tokenizer.

  Args:
    lora: Adapter settings, None for none.
    seed: Seed of the weights.
    dtype: Type of the computation.
    param_dtype: Type of the stored weights, by default `dtype`.
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan over layers.
    quantize: Bits to keep the kernels of projections in, see `from_folder`.
    **config: Fields of `DecoderConfig` that differ from the tiny default.

  Returns:
    The model.

  Raises:
    ValueError: If the settings contradict each other.

  >>> model = random_model(LoraConfig(rank=2), num_layers=1)
  >>> model.tokenizer.decode(model.tokenizer.encode('abc'))
  'abc'
  """
  tokenizer = Tokenizer.byte_level()
  sizes = {
    'vocab_size': tokenizer.vocab_size,
    'embed_dim': 32,
    'num_layers': 2,
    'num_heads': 4,
    'num_kv_heads': 2,
    'head_dim': 8,
    'mlp_dim': 64,
  }
  config = DecoderConfig(**(sizes | config))
  stored = param_dtype or dtype
  check_dtype(stored)
  model = CausalLM(
    name='random',
    family=LLAMA,
    config=config,
    tokenizer=tokenizer,
    base=abstract_base(config),
    lora_config=lora,
    dtype=dtype,
    remat=remat,
    unroll=unroll,
  )
  base = init_base(config, jax.random.key(seed), stored)
  return with_base(model, base, quantize)
