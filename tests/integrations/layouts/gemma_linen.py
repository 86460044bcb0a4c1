"""Google DeepMind's gemma library with its own LoRA wrapper."""

import jax
import jax.numpy as jnp
from gemma import gm
from gemma.gm.nn import _config as gemma_config

from tests.integrations.layouts.check import Case


def small_gemma(num_embed=64):
  """A Gemma of two layers inside the library's LoRA wrapper."""
  config = gemma_config.TransformerConfig(
    num_embed=num_embed,
    embed_dim=32,
    hidden_dim=48,
    num_heads=4,
    head_dim=8,
    num_kv_heads=1,
    final_logit_softcap=None,
    attention_types=(gm.nn.AttentionType.GLOBAL,) * 2,
    use_post_attn_norm=False,
    use_post_ffw_norm=False,
  )
  return gm.nn.LoRA(
    rank=4,
    model=gm.nn.Transformer(config=config, dtype=jnp.float32),
    dtype=jnp.float32,
  )


def make():
  model = small_gemma()
  tokens = jnp.arange(1, 9)[None]
  params = model.init(jax.random.key(0), tokens=tokens)

  @jax.jit
  def forward(params):
    return model.apply(params, tokens=tokens).logits

  return Case('GEMMA', 10, params, forward)


CASES = {'gemma, linen': make}
