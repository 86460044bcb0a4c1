"""Checks weights of the base in an adapter; PEFT saves those of embeddings.

An adapter is trained for one base. If it contains weights of that base, they
must equal those of the base that it is loaded onto.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lora_opt.models.causal_lm import CausalLM
from lora_opt.models.pretrained.adapter_tensors import PREFIX
from lora_opt.models.pretrained.besides import Copy, rule_of
from lora_opt.models.pretrained.family import Slot, slots
from lora_opt.models.pretrained.files import StoredTensor
from lora_opt.models.pretrained.peft_names import FEATURES, unspelled
from lora_opt.models.quantized import leaves_by_path

_INNER = '.base_layer.'
# Values that are compared at a time.
_CHUNK = 2**22


def without_base(
  tensors: Mapping[str, StoredTensor], model: CausalLM
) -> dict[str, StoredTensor]:
  """Returns the adapter's own tensors, after checking those of the base.

  Args:
    tensors: The tensors by the names that PEFT saves them under.
    model: The model that the adapter is loaded onto.

  Raises:
    ValueError: If a tensor of the base differs from the model's.
  """
  family, base = model.family, model.base
  known, leaves = slots(base, family.names), leaves_by_path(base)
  besides, rest = family.besides(model.config), {}
  for name, tensor in tensors.items():
    full = name.removeprefix(PREFIX).replace(_INNER, '.')
    full = unspelled(family, full)
    if model.task_type == FEATURES:
      full = f'{family.prefix}{full}'
    if isinstance(copy := rule_of(besides, full), Copy):
      full = copy.of  # a tied table is saved under both names
    if full in known:
      _check(tensor, leaves[known[full].path], known[full])
    elif _INNER in name:
      raise ValueError(
        f'{tensor.where} is called a weight of the base, which the model does '
        'not have'
      )
    else:
      rest[name] = tensor
  return rest


def _check(tensor: StoredTensor, leaf: jax.Array, slot: Slot) -> None:
  wrong = (
    f'{tensor.where} is that of the base which the adapter was trained for, '
    'but not that of this model; take that base, or merge the adapter into it '
    'first'
  )
  if tensor.shape != slot.shape:
    raise ValueError(f'{wrong}: {tensor.shape} and {slot.shape}')
  tensor.check(slot.shape)  # checks the type
  if not isinstance(leaf, jax.Array):
    raise ValueError(
      f'{tensor.where} cannot be compared with the quantized weight of the '
      'base; save the adapter without it'
    )
  array = leaf if slot.layer is None else leaf[slot.layer]
  stored = tensor.open()
  stored = (stored.T if slot.transposed else stored).reshape(array.shape)
  for shard in array.addressable_shards:
    ours, theirs = np.asarray(shard.data), stored[shard.index]
    rows = max(1, _CHUNK // max(1, ours[:1].size))
    for start in range(0, len(ours), rows):
      part = slice(start, start + rows)
      if not _equal(ours[part], theirs[part]):
        raise ValueError(wrong)


def _equal(ours: np.ndarray, theirs: np.ndarray) -> bool:
  """Whether both are equal in the narrower of their two types."""
  narrow = min(
    ours.dtype, theirs.dtype, key=lambda dtype: jnp.finfo(dtype).bits
  )
  with np.errstate(over='ignore'):
    return bool((ours.astype(narrow) == theirs.astype(narrow)).all())
