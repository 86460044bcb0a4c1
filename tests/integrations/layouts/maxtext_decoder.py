"""MaxText's default decoder and Mixtral's with its LoRA.

Layers are scanned on axis 1. Experts get adapters where they are dense
products of matrices; its own products of groups of tokens qwix does not see.
"""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import maxtext
from flax import nnx
from maxtext.configs import pyconfig
from maxtext.utils import lora_utils, maxtext_utils, model_creation_utils

from tests.integrations.layouts.check import Case

BASE = pathlib.Path(maxtext.__file__).parent / 'configs' / 'base.yml'
SIZES = {
  'base_emb_dim': 32,
  'base_num_query_heads': 4,
  'base_num_kv_heads': 2,
  'head_dim': 8,
  'base_mlp_dim': 48,
  'base_num_decoder_layers': 3,
  'vocab_size': 64,
  'max_target_length': 8,
  'per_device_batch_size': 1,
  'dtype': 'float32',
  'matmul_precision': 'highest',
  'lora.enable_lora': True,
  'lora.lora_rank': 4,
  'lora.lora_alpha': 8,
  'enable_checkpointing': False,
  'skip_jax_distributed_system': True,
  'run_name': 'layout',
}


# Of the experts too; with all that qwix finds it would adapt norms.
EXPERTS = {
  'decoder_block': 'mixtral',
  'num_experts': 5,
  'num_experts_per_tok': 2,
  'base_moe_mlp_dim': 48,
  'megablox': False,
  'sparse_matmul': False,
  'lora.lora_module_path': '.*(self_attention/.*|MoeBlock_0|MoeBlock_0/gate)',
}


def make(scan, **more):
  settings = {
    **SIZES,
    **more,
    'scan_layers': scan,
    'base_output_directory': tempfile.mkdtemp(),
  }
  config = pyconfig.initialize(
    ['', str(BASE), *(f'{name}={value}' for name, value in settings.items())]
  )
  devices = maxtext_utils.create_device_mesh(config)
  mesh = jax.sharding.Mesh(devices, config.mesh_axes)
  make_model = model_creation_utils.get_nnx_create_model_fn(
    config, rng_key=jax.random.key(0)
  )
  with mesh:
    model = lora_utils.apply_lora_to_model(make_model(), mesh, config)
  graph, lora, rest = nnx.split(model, nnx.LoRAParam, ...)
  tokens = jnp.arange(8)[None]

  @jax.jit
  def forward(lora, rest):
    model = nnx.merge(graph, lora, rest)
    return model(tokens, tokens, enable_dropout=False)

  def run(lora):
    with mesh:
      return forward(lora, rest)

  return lora, run


CASES = {
  'MaxText, scanned': lambda: Case('QWIX_SCANNED_1', 7, *make(True)),
  'MaxText, not scanned': lambda: Case('QWIX', 21, *make(False)),
  'MaxText, experts, scanned': lambda: Case(
    'QWIX_SCANNED_1', 8, *make(True, **EXPERTS)
  ),
  'MaxText, experts, not scanned': lambda: Case(
    'QWIX', 24, *make(False, **EXPERTS)
  ),
  'MaxText, experts of bounded capacity, scanned': lambda: Case(
    'QWIX_SCANNED_1', 8, *make(True, **EXPERTS, capacity_factor=2.0)
  ),
}
