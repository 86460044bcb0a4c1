"""What becomes of a model's weights once they are loaded."""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp

from lora_opt.models.quantized import quantize_base
from lora_opt.models.start import split_base
from lora_opt.models.variables import Tree

Model = TypeVar('Model')


def with_base(model: Model, base: Tree, quantize: str | None = None) -> Model:
  """The model with weights, those its adapter starts from taken out of them.

  Args:
    model: A model of any kind.
    base: Weights of a checkpoint.
    quantize: Bits to keep the kernels of projections in, see
      `quantize_kernel`; None for all. What is left after a start is rounded,
      not the checkpoint.
  """
  lora, start = model.lora_config, None
  projections = model.config.projections
  if lora is not None and lora.start is not None:
    base, start = split_base(base, lora, lora.sites(projections))
  if quantize is not None:
    base = quantize_base(base, projections, quantize)
  return dataclasses.replace(model, base=base, start=start)


def of_shapes(model: Model, dtype: str, quantize: str | None = None) -> Model:
  """The model as `with_base` would leave it, with shapes for weights.

  Args:
    model: A model whose base has shapes.
    dtype: Type the weights are stored in.
    quantize: As of `with_base`.
  """

  def stored(shape):
    return jax.ShapeDtypeStruct(shape.shape, jnp.dtype(dtype))

  base = jax.tree.map(stored, model.base)
  if quantize is not None:
    base = jax.eval_shape(
      lambda base: quantize_base(base, model.config.projections, quantize), base
    )
  return dataclasses.replace(model, base=base)


def quantized_paths(model: Model, quantize: str | None) -> dict[str, str]:
  """Which arrays can be quantized while they are read, and how.

  None for an adapter that starts from the kernels in full.
  """
  lora = model.lora_config
  if quantize is None or (lora is not None and lora.start is not None):
    return {}
  return {f'{path}/kernel': quantize for path in model.config.projections}
