"""Host memory while a large checkpoint is loaded onto several devices.

    JAX_NUM_CPU_DEVICES=8 python -m tests.models.pretrained.load_memory FOLDER

loads FOLDER onto a mesh of all devices and prints, in bytes, the size of its
weights, the resident memory before, and the highest while loading (Linux).
Pages of the mapped files count like any others, and so do the buffers of
simulated devices. `write_checkpoint` makes a folder to load.
"""

import json
import pathlib
import re
import sys

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.devices.partitioning import Partitioner
from lora_opt.models.pretrained.huggingface import from_folder


def write_checkpoint(folder, layers, width):
  """Random bfloat16 weights in Llama's proportions, a file per layer.

  Returns:
    Number of parameters.
  """
  tokenizer = Tokenizer.byte_level()
  tokenizer.core.save(str(folder / 'tokenizer.json'))
  vocab, kv = tokenizer.vocab_size, width // 4
  settings = {
    'model_type': 'llama',
    'hidden_act': 'silu',
    'vocab_size': vocab,
    'hidden_size': width,
    'num_hidden_layers': layers,
    'num_attention_heads': width // 64,
    'num_key_value_heads': kv // 64,
    'intermediate_size': 4 * width,
    'rms_norm_eps': 1e-5,
    'tie_word_embeddings': True,
  }
  (folder / 'config.json').write_text(json.dumps(settings), encoding='utf-8')
  shapes = {
    'self_attn.q_proj': (width, width),
    'self_attn.k_proj': (kv, width),
    'self_attn.v_proj': (kv, width),
    'self_attn.o_proj': (width, width),
    'mlp.gate_proj': (4 * width, width),
    'mlp.up_proj': (4 * width, width),
    'mlp.down_proj': (width, 4 * width),
    'input_layernorm': (width,),
    'post_attention_layernorm': (width,),
  }
  files = [
    {f'model.layers.{layer}.{name}.weight': s for name, s in shapes.items()}
    for layer in range(layers)
  ]
  files.append(
    {'model.embed_tokens.weight': (vocab, width), 'model.norm.weight': (width,)}
  )
  random, index, count = np.random.default_rng(0), {}, 0
  for number, tensors in enumerate(files):
    file = f'model-{number:05}.safetensors'
    values = {
      name: random.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
      for name, shape in tensors.items()
    }
    save_file(values, folder / file)
    index |= dict.fromkeys(values, file)
    count += sum(value.size for value in values.values())
  (folder / 'model.safetensors.index.json').write_text(
    json.dumps({'weight_map': index}), encoding='utf-8'
  )
  return count


def memory(key):
  """A line of /proc/self/status in bytes: VmRSS now, VmHWM at most so far."""
  status = pathlib.Path('/proc/self/status').read_text(encoding='utf-8')
  return 1024 * int(re.search(rf'^{key}:\s+(\d+) kB', status, re.M)[1])


def main(folder):
  """Loads the folder and prints what it took."""
  devices = jax.devices()
  partitioner = Partitioner(tensor=len(devices))
  pathlib.Path('/proc/self/clear_refs').write_text(
    '5', encoding='utf-8'
  )  # forgets the maximum
  before = memory('VmRSS')
  model = from_folder(folder, dtype='bfloat16', partitioner=partitioner)
  peak = memory('VmHWM')
  leaves = jax.tree.leaves(model.base)
  report = {
    'devices': len(devices),
    'parameters': sum(leaf.size for leaf in leaves),
    'bytes': sum(leaf.nbytes for leaf in leaves),
    'before': before,
    'peak': peak,
    'largest_share': max(
      shard.data.nbytes / leaf.nbytes
      for leaf in leaves
      if leaf.ndim == 3
      for shard in leaf.addressable_shards
    ),
  }
  print(json.dumps(report))


if __name__ == '__main__':
  main(sys.argv[1])
