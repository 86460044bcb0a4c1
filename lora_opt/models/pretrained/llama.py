"""From the flat tensors of a checkpoint to the tree of the decoder."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lora_opt.models.causal_lm import Tree, abstract_base
from lora_opt.models.config import DecoderConfig


class TensorName(NamedTuple):
  """What one of our arrays is called elsewhere; {} stands for the layer."""

  hugging_face: str
  gguf: str


# Our path: the names elsewhere.
NAMES = {
  'embedding': TensorName('model.embed_tokens.weight', 'token_embd.weight'),
  'head': TensorName('lm_head.weight', 'output.weight'),
  'final_norm/scale': TensorName('model.norm.weight', 'output_norm.weight'),
  **{
    f'layers/{ours}': TensorName(
      f'model.layers.{{}}.{theirs}.weight', f'blk.{{}}.{gguf}.weight'
    )
    for ours, theirs, gguf in (
      ('attention_norm/scale', 'input_layernorm', 'attn_norm'),
      ('attention/q/kernel', 'self_attn.q_proj', 'attn_q'),
      ('attention/k/kernel', 'self_attn.k_proj', 'attn_k'),
      ('attention/v/kernel', 'self_attn.v_proj', 'attn_v'),
      ('attention/o/kernel', 'self_attn.o_proj', 'attn_output'),
      ('mlp_norm/scale', 'post_attention_layernorm', 'ffn_norm'),
      ('mlp/gate/kernel', 'mlp.gate_proj', 'ffn_gate'),
      ('mlp/up/kernel', 'mlp.up_proj', 'ffn_up'),
      ('mlp/down/kernel', 'mlp.down_proj', 'ffn_down'),
    )
  },
}


def assemble(
  source: str,
  config: DecoderConfig,
  dtype: str,
  style: str,
  shapes: Mapping[str, tuple[int, ...]],
  read: Callable[[str], np.ndarray],
) -> Tree:
  """Builds the base weights of the decoder from a checkpoint's tensors.

  All names and shapes are checked before the first tensor is read.

  Args:
    source: Path, for messages.
    config: Sizes of the decoder.
    dtype: Type to store the weights in.
    style: Whose names the tensors have, a field of `TensorName`.
    shapes: Shape of every tensor of the checkpoint, linear maps as
      (fan_out, fan_in).
    read: Returns a tensor by name.

  Returns:
    Nested dict of arrays, layers stacked on axis 0.

  Raises:
    ValueError: For a missing, unknown or mis-shaped tensor, by name.
  """
  leaves, structure = jax.tree.flatten_with_path(abstract_base(config))
  plan = [_plan(path, leaf, config, style) for path, leaf in leaves]
  _check(source, plan, shapes)
  arrays = []
  for names, _, stacked, transpose in plan:
    parts = [np.asarray(read(name)).astype(jnp.dtype(dtype)) for name in names]
    array = np.stack(parts) if stacked else parts[0]
    arrays.append(jnp.asarray(array.swapaxes(1, 2) if transpose else array))
  return jax.tree.unflatten(structure, arrays)


def _plan(path, leaf, config, style):
  """Returns tensor names, their shape, and how to put them together."""
  path = jax.tree_util.keystr(path, simple=True, separator='/')
  name = getattr(NAMES[path], style)
  stacked, transpose = '{}' in name, path.endswith('/kernel')
  shape = leaf.shape[1:] if stacked else leaf.shape
  if not stacked:
    return [name], shape, stacked, transpose
  names = [name.format(layer) for layer in range(config.num_layers)]
  return names, shape[::-1] if transpose else shape, stacked, transpose


def _check(source, plan, shapes):
  expected = {name: shape for names, shape, *_ in plan for name in names}
  for problem, names in (
    ('lacks', expected.keys() - shapes.keys()),
    ('has unknown', shapes.keys() - expected.keys()),
  ):
    if names:
      few = ', '.join(sorted(names)[:5])
      raise ValueError(
        f'{source} {problem} tensor(s) {few}'
        f'{f" and {len(names) - 5} more" if len(names) > 5 else ""}; a '
        'Llama-family checkpoint has exactly the tensors its config calls for'
      )
  for name, shape in expected.items():
    if tuple(shapes[name]) != tuple(shape):
      raise ValueError(
        f'{source}: tensor {name} has shape {tuple(shapes[name])}, the config '
        f'calls for {tuple(shape)}'
      )
