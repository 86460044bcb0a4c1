"""tunix's Gemma with the adapters that its examples put in."""

import dataclasses

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from tunix.models.gemma import model as gemma

from tests.integrations.layouts.check import Case


def small_gemma(num_embed=64):
  """Gemma 2B's own configuration, shrunk."""
  config = dataclasses.replace(
    gemma.ModelConfig.gemma_2b(),
    num_layers=2,
    num_embed=num_embed,
    embed_dim=32,
    hidden_dim=48,
    num_heads=4,
    head_dim=8,
    num_kv_heads=1,
  )
  model = gemma.Gemma(config, rngs=nnx.Rngs(0))
  provider = qwix.LoraProvider(
    module_path='.*(q_einsum|kv_einsum|attn_vec_einsum|'
    'gate_proj|up_proj|down_proj)',
    rank=4,
    alpha=8,
  )
  return qwix.apply_lora_to_model(
    model, provider, rngs=nnx.Rngs(1), **model.get_model_input()
  )


def make():
  graph, lora, rest = nnx.split(small_gemma(), nnx.LoRAParam, ...)
  tokens = jnp.arange(8)[None]
  mask = jnp.tril(jnp.ones((1, 8, 8), bool))

  @jax.jit
  def forward(lora, rest):
    model = nnx.merge(graph, lora, rest)
    return model(tokens, tokens, None, mask)[0]

  return Case('QWIX', 12, lora, lambda lora: forward(lora, rest))


CASES = {'tunix, Gemma': make}
