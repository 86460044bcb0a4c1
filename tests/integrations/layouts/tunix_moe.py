"""tunix's models with experts: Qwen3 30B-A3B and Gemma 4 26B-A4B, shrunk."""

import dataclasses

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from tunix.models.gemma4 import model as gemma4
from tunix.models.qwen3 import model as qwen3

from tests.integrations.layouts.check import Case


def case(model, sites, module_path):
  # Eagerly qwix does not see that a slice of the experts' weights is one; in
  # the compiled step it does, and misses the adapters.
  @nnx.jit
  def adapted(model):
    provider = qwix.LoraProvider(module_path=module_path, rank=2, alpha=8)
    return qwix.apply_lora_to_model(
      model, provider, rngs=nnx.Rngs(1), **model.get_model_input()
    )

  model = adapted(model)
  graph, lora, rest = nnx.split(model, nnx.LoRAParam, ...)
  tokens = jnp.arange(8)[None]
  mask = jnp.tril(jnp.ones((1, 8, 8), bool))

  @jax.jit
  def forward(lora, rest):
    return nnx.merge(graph, lora, rest)(tokens, tokens, None, mask)[0]

  return Case('QWIX', sites, lora, lambda lora: forward(lora, rest))


def qwen():
  config = dataclasses.replace(
    qwen3.ModelConfig.qwen3_30b_a3b(),
    num_layers=2,
    vocab_size=64,
    embed_dim=32,
    hidden_dim=48,
    num_heads=4,
    head_dim=8,
    num_kv_heads=2,
    num_experts=3,
    num_experts_per_tok=2,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
  )
  return case(qwen3.Qwen3(config, rngs=nnx.Rngs(0)), 17, '.*')


def gemma():
  config = dataclasses.replace(
    gemma4.ModelConfig.gemma4_26b_a4b(),
    num_layers=2,
    num_embed=64,
    embed_dim=32,
    hidden_dim=48,
    num_heads=4,
    head_dim=8,
    num_kv_heads=2,
    num_global_kv_heads=1,
    global_key_size=16,
    num_experts=3,
    num_experts_per_tok=2,
    expert_dim=24,
    moe_dense_hidden_dim=40,
  )
  return case(gemma4.Gemma4(config, rngs=nnx.Rngs(0)), 13, r'(?!.*moe).*')


CASES = {
  'tunix, Qwen3 with experts': qwen,
  'tunix, Gemma 4 with experts': gemma,
}
