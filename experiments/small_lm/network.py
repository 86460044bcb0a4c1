"""The network, and its loss on windows of token ids."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from safetensors import flax as safetensors

from experiments.small_lm.corpus import LENGTH, VOCABULARY, digest
from lora_opt import writing
from lora_opt.models import causal_lm
from lora_opt.models.causal_lm import CausalLM
from lora_opt.models.config import DecoderConfig
from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.families.llama import LLAMA
from lora_opt.models.variables import Tree

# The weights behind the committed results are here.
FOLDER = pathlib.Path(__file__).parent
LAYERS, HEAD_DIM, MLP_RATIO = 4, 32, 3
# Windows that are evaluated at a time.
EVALUATED = 32


def config(width: int) -> DecoderConfig:
  """Llama of four layers: 1.1M parameters at width 128."""
  return DecoderConfig(
    vocab_size=VOCABULARY,
    embed_dim=width,
    num_layers=LAYERS,
    num_heads=width // HEAD_DIM,
    num_kv_heads=width // HEAD_DIM,
    head_dim=HEAD_DIM,
    mlp_dim=MLP_RATIO * width,
    max_length=LENGTH,
  )


def network(width: int, rank: int = 0, alpha: float = 0.0) -> CausalLM:
  """The model; it has adapters on every layer unless the rank is 0."""
  lora = LoraConfig(rank=rank, alpha=alpha) if rank else None
  sizes = config(width)
  return CausalLM(
    name='small_lm',
    family=LLAMA,
    config=sizes,
    tokenizer=None,
    base=causal_lm.abstract_base(sizes),
    lora_config=lora,
    remat='none',
    unroll=LAYERS,
    # The implementation whose results do not depend on a block size.
    attention='plain',
  )


def loss(
  model: CausalLM, base: Tree, lora: Tree | None, windows: jax.Array
) -> jax.Array:
  """Mean cross-entropy in nats a token; () float32.

  Differentiable in both trees.

  Args:
    model: From `network`.
    base: Weights.
    lora: Adapter, or None.
    windows: (batch, LENGTH + 1) ids.
  """
  tokens = windows.astype(jnp.int32)
  inputs, targets = tokens[:, :-1], tokens[:, 1:]
  places = jnp.arange(inputs.shape[1], dtype=jnp.int32)
  batch = {
    'tokens': inputs,
    'positions': jnp.broadcast_to(places, inputs.shape),
    'segment_ids': jnp.ones_like(inputs),
  }
  logits = model.logits(base, lora, batch)
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def mean_loss(
  model: CausalLM, base: Tree, lora: Tree | None, windows: jax.Array
) -> jax.Array:
  """`loss` of many windows, EVALUATED at a time; a rest is left out."""
  size = min(EVALUATED, len(windows))
  count = len(windows) // size
  parts = windows[: count * size].reshape(count, size, -1)
  return jnp.mean(jax.lax.map(lambda w: loss(model, base, lora, w), parts))


def weights_file(folder: pathlib.Path, width: int) -> pathlib.Path:
  return folder / f'base_{width}.safetensors'


def write_base(file: pathlib.Path, base: Tree) -> None:
  """Writes the weights, rounded to bfloat16: 2 MB at width 128."""
  flat = traverse_util.flatten_dict(base, sep='/')
  rounded = {path: x.astype(jnp.bfloat16) for path, x in flat.items()}
  with writing.draft(file) as part:
    safetensors.save_file(rounded, part)


def load_base(work: pathlib.Path, width: int) -> Tree:
  """Reads pretrained weights as float32: those in `work`, else the committed.

  Raises:
    FileNotFoundError: there are neither.
  """
  places = [weights_file(folder, width) for folder in (work, FOLDER)]
  file = next(filter(pathlib.Path.exists, places), None)
  if file is None:
    raise FileNotFoundError(
      f'{places[0]}: first python -m experiments.small_lm.pretrain --width '
      f'{width} {work}'
    )
  flat = {
    path: x.astype(jnp.float32)
    for path, x in safetensors.load_file(file).items()
  }
  return traverse_util.unflatten_dict(flat, sep='/')


def weights_digest(base: Tree) -> str:
  """A digest of the weights, the same wherever they are stored."""
  flat = traverse_util.flatten_dict(base, sep='/')
  return digest(np.asarray(flat[path]) for path in sorted(flat))
