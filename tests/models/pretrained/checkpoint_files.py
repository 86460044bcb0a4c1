"""Writes models as the files other programs would have written."""

import json
import struct

import gguf
import numpy as np
from safetensors.numpy import save_file

from lora_opt.models.pretrained.assemble import disassemble
from lora_opt.models.pretrained.families.llama import write_config
from lora_opt.models.pretrained.files import StoredTensor
from lora_opt.models.pretrained.gguf import NAMES
from tests.models.batches import hugging_face_tensors


def write_folder(folder, model, shards=1, dtype=np.float32):
  """Writes a model as Hugging Face does."""
  settings = write_config(model.config)
  (folder / 'config.json').write_text(json.dumps(settings), encoding='utf-8')
  model.tokenizer.core.save(str(folder / 'tokenizer.json'))
  tensors = hugging_face_tensors(model)
  tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
  if shards == 1:
    save_file(tensors, folder / 'model.safetensors')
    return
  index = {}
  for shard in range(shards):
    file = f'model-{shard + 1:05}-of-{shards:05}.safetensors'
    names = sorted(tensors)[shard::shards]
    index |= dict.fromkeys(names, file)
    save_file({name: tensors[name] for name in names}, folder / file)
  (folder / 'model.safetensors.index.json').write_text(
    json.dumps({'weight_map': index}), encoding='utf-8'
  )


def gguf_tensors(model):
  """The base weights under the names and in the row order of GGUF."""
  c = model.config
  tensors = disassemble(model.base, NAMES)
  if c.norm == 'rms_plus_one':  # Gemma: the one is in the file, no reordering
    return {
      name: tensor + 1 if name.endswith('norm.weight') else tensor
      for name, tensor in tensors.items()
    }
  for name, tensor in tensors.items():
    for kind, heads in (('q', c.num_heads), ('k', c.num_kv_heads)):
      if f'attn_{kind}.' in name:
        # Halves of a head become its even and odd rows.
        halves = tensor.reshape(heads, 2, c.head_dim // 2, -1)
        tensors[name] = np.ascontiguousarray(
          halves.swapaxes(1, 2).reshape(tensor.shape)
        )
  return tensors


def write_gguf(path, model, tensors=None, kind='F32', merges=(), **settings):
  """Writes a model as llama.cpp does; None in settings leaves a key out."""
  c = model.config
  keys = {
    'embedding_length': c.embed_dim,
    'block_count': c.num_layers,
    'attention.head_count': c.num_heads,
    'attention.head_count_kv': c.num_kv_heads,
    'attention.key_length': c.head_dim,
    'attention.layer_norm_rms_epsilon': c.norm_eps,
    'feed_forward_length': c.mlp_dim,
    'rope.freq_base': c.rope_theta,
    'context_length': c.max_length,
  }
  kind_of_model = settings.pop('architecture', 'llama')
  keys = {f'{kind_of_model}.{k}': v for k, v in keys.items()} | settings
  writer = gguf.GGUFWriter(path, kind_of_model)
  for key, value in keys.items():
    if isinstance(value, str):
      writer.add_string(key, value)
    elif isinstance(value, float):
      writer.add_float32(key, value)
    elif value is not None:
      writer.add_uint32(key, value)
  vocabulary = model.tokenizer.core.get_vocab()
  tokens = sorted(vocabulary, key=vocabulary.get)
  special = [token.startswith('<') and len(token) > 1 for token in tokens]
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('gpt-2')
  writer.add_token_list(tokens)
  writer.add_token_types([3 if s else 1 for s in special])
  if merges:
    writer.add_token_merges(merges)
  writer.add_eos_token_id(257)
  for name, tensor in (tensors or gguf_tensors(model)).items():
    matrix = tensor.ndim == 2
    quantization = gguf.GGMLQuantizationType[kind if matrix else 'F32']
    data = gguf.quants.quantize(tensor, quantization)
    writer.add_tensor(name, data, raw_dtype=quantization)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def in_memory(tensors):
  """Arrays as the tensors of a checkpoint."""
  return {
    name: StoredTensor('memory', name, x.shape, x.dtype, lambda x=x: x)
    for name, x in tensors.items()
  }


def rewrite_header(file, change):
  """Changes the header of a safetensors file and keeps the data."""
  data = file.read_bytes()
  end = 8 + struct.unpack('<Q', data[:8])[0]
  header = json.loads(data[8:end])
  change(header)
  text = json.dumps(header).encode()
  file.write_bytes(struct.pack('<Q', len(text)) + text + data[end:])
