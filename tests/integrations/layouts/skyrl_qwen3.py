"""SkyRL's Qwen3, dense and with experts, with three adapters of two ranks."""

# ruff: noqa: E402
import sys
import types

# SkyRL writes adapters with peft, which would bring torch; nothing is written.
sys.modules.setdefault('peft', types.SimpleNamespace(LoraConfig=None))

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType
from skyrl.tinker.types import LoraConfig
from skyrl.tx.layers import lora
from skyrl.tx.models.configs import Qwen3Config
from skyrl.tx.models.qwen3 import Qwen3ForCausalLM
from transformers import PretrainedConfig

from tests.integrations.layouts.check import Case

SIZES = {
  'vocab_size': 64,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'max_position_embeddings': 32,
  'rms_norm_eps': 1e-6,
  'rope_theta': 10000.0,
  'rope_parameters': {'rope_type': 'default', 'rope_theta': 10000.0},
  'tie_word_embeddings': False,
  'attention_bias': False,
}
EXPERTS = {
  'num_experts': 4,
  'num_experts_per_tok': 2,
  'moe_intermediate_size': 24,
  'norm_topk_prob': True,
}
ADAPTERS, RANK = 3, 6


def make(sites, **more):
  config = Qwen3Config(
    PretrainedConfig(**SIZES, **more),
    max_lora_adapters=ADAPTERS,
    max_lora_rank=RANK,
    shard_attention_heads=True,
  )
  mesh = jax.make_mesh(
    (1, 1, 1), ('fsdp', 'ep', 'tp'), axis_types=(AxisType.Auto,) * 3
  )
  tokens = jnp.arange(3 * 16).reshape(3, 16) % 64
  with jax.set_mesh(mesh):
    model = Qwen3ForCausalLM(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    for adapter in range(ADAPTERS):
      lora.init_lora_adapter(
        model,
        adapter,
        LoraConfig(
          rank=(6, 4, 6)[adapter], alpha=8, seed=adapter, train_unembed=True
        ),
      )
    graph, tree, rest = nnx.split(model, model.is_lora_param, ...)

  @jax.jit
  def logits(tree, rest):
    model = nnx.merge(graph, tree, rest)
    out = model(
      tokens,
      attention_mask=jnp.ones_like(tokens),
      adapter_indices=jnp.arange(ADAPTERS),
    )
    return model.compute_logits(out.last_hidden_state, jnp.arange(ADAPTERS))

  def forward(tree):
    with jax.set_mesh(mesh):
      return logits(tree, rest)

  # The MLP adds little to what it is added to, and the forward pass rounds by
  # 2e-7 of its largest value.
  return Case('SKYRL', sites, tree, forward, rtol=1e-5)


CASES = {
  'SkyRL, Qwen3': lambda: make(6),
  'SkyRL, Qwen3 with experts': lambda: make(7, **EXPERTS),
}
