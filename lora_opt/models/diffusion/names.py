"""The names of our arrays in diffusers' files."""

from collections.abc import Mapping

from lora_opt.models.pretrained.family import TensorName
from lora_opt.models.quantized import leaves_by_path
from lora_opt.models.variables import Tree

# Maps our leaves to the end of their names, and whether they are transposed.
_LEAVES = {
  'kernel': ('weight', True),
  'table': ('weight', False),
  'scale': ('weight', False),
  'bias': ('bias', False),
  'lora_a': ('lora_A.weight', True),
  'lora_b': ('lora_B.weight', True),
}
LAYERS = 'encoder.layers'
# Prefix of a text encoder's names in older versions of transformers.
TEXT = 'text_model.'


def tensor_names(tree: Tree) -> dict[str, TensorName]:
  """The names of a part's arrays, or of its adapter's.

  A convolution's arrays must have all their axes.

  Args:
    tree: Tree of arrays or of their shapes.

  Returns:
    The names by the paths of our arrays.

  >>> tensor_names({'conv_in': {'kernel': 0}})['conv_in/kernel'].name
  'conv_in.weight'
  """
  found = {}
  for path in leaves_by_path(tree):
    module, _, leaf = path.rpartition('/')
    end, transposed = _LEAVES[leaf]
    found[path] = TensorName(f'{module_name(module)}.{end}', transposed)
  return found


def module_name(path: str) -> str:
  """The name of a module within its part; {} stands for the layer.

  >>> module_name('encoder.layers/self_attn/q_proj')
  'encoder.layers.{}.self_attn.q_proj'
  """
  return path.replace('/', '.').replace(f'{LAYERS}.', f'{LAYERS}.{{}}.')


def with_prefix(
  names: Mapping[str, TensorName], prefix: str
) -> dict[str, TensorName]:
  """Returns the names with a prefix."""
  return {
    path: name._replace(name=prefix + name.name) for path, name in names.items()
  }
