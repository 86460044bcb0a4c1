"""What both sides of a comparison with transformers are made of.

Weights, adapters and ids follow from names and shapes alone, so the numbers of
the reference can be computed where torch is, and compared where it is not.
"""

import json
import pathlib
import zlib

import jax
import numpy as np
from safetensors.numpy import save_file

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.pretrained.assemble import assemble, disassemble
from lora_opt.models.pretrained.family import slots
from lora_opt.models.pretrained.huggingface import read_config
from lora_opt.models.pretrained.peft_names import peft_names
from tests.models.pretrained.checkpoint_files import in_memory

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden' / 'parity'
RANK, ALPHA = 3, 5.0


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """The value of a tensor, from its name in transformers and its shape."""
  random = np.random.default_rng(zlib.crc32(name.encode()))
  noise = 0.2 * random.standard_normal(shape)
  # Norms around one keep the activations in range.
  is_norm = 'norm' in name.lower() or '.ln_' in name
  return (noise + (is_norm and name.endswith('weight'))).astype(np.float32)


def write_folder(folder: pathlib.Path, config: str, outputs: int = 0) -> None:
  """Writes a checkpoint with the weights of `weight`.

  Args:
    folder: Where to.
    config: The text of config.json.
    outputs: Of the trained head, if the family has one.
  """
  (folder / 'config.json').write_text(config, encoding='utf-8')
  family, sizes = read_config(folder / 'config.json')
  tree = family.abstract_base(sizes)
  if family.abstract_head is not None:
    tree = tree | {'head': family.abstract_head(sizes, outputs)}
  tensors = {
    name: weight(name, slot.shape)
    for name, slot in slots(tree, family.names).items()
  }
  save_file(tensors, folder / 'model.safetensors')
  Tokenizer.byte_level().core.save(str(folder / 'tokenizer.json'))
  special = {'eos_token': '<eos>', 'pad_token': '<pad>'}
  (folder / 'tokenizer_config.json').write_text(
    json.dumps(special), encoding='utf-8'
  )


def adapter(model):
  """An adapter with the weights of `weight`, under PEFT's names."""
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  names = peft_names(abstract, model)
  tensors = {
    name: weight(name, slot.shape)
    for name, slot in slots(abstract, names).items()
  }
  return assemble('adapter', abstract, names, in_memory(tensors), 'float32')


def by_peft_name(tree, model) -> dict[str, np.ndarray]:
  """An adapter or its gradient as the tensors of PEFT."""
  return disassemble(tree, peft_names(tree, model))


def read_golden(name: str) -> tuple[dict[str, np.ndarray], str]:
  """Returns the arrays of a case, and its config.json."""
  with np.load(GOLDEN / f'{name}.npz') as file:
    arrays = dict(file)
  return arrays, str(arrays.pop('config.json'))


def write_golden(name: str, arrays: dict[str, np.ndarray], config: str) -> int:
  """Writes the arrays of a case; returns the bytes of the file."""
  GOLDEN.mkdir(parents=True, exist_ok=True)
  file = GOLDEN / f'{name}.npz'
  np.savez_compressed(file, **arrays, **{'config.json': np.array(config)})
  return file.stat().st_size


def assert_close(actual, expected, what: str, relative: float = 1e-4) -> None:
  """Equal to 1e-4 of the largest number, or of 1 if that is smaller."""
  bound = relative * max(1.0, abs(expected).max())
  np.testing.assert_allclose(actual, expected, rtol=0, atol=bound, err_msg=what)
