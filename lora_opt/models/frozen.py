"""Prepares loaded weights as the frozen base of a model."""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp

from lora_opt.models.quantized import quantize_base
from lora_opt.models.start import split_base
from lora_opt.models.variables import Tree

Model = TypeVar('Model')


def with_base(model: Model, base: Tree, quantize: str | None = None) -> Model:
  """Returns the model with weights, minus the factors its adapter starts from.

  Args:
    model: A model of any kind.
    base: Weights of a checkpoint.
    quantize: Kind of quantization of the kernels of projections, see
      `quantize_kernel`; None for no quantization. If the adapter has a `start`,
      the residual is quantized, not the checkpoint.
  """
  lora, start = model.lora_config, None
  projections = model.config.projections
  if lora is not None and lora.start is not None:
    base, start = split_base(base, lora, lora.sites(projections))
  if quantize is not None:
    base = quantize_base(base, projections, quantize)
  return dataclasses.replace(model, base=base, start=start)


def of_shapes(model: Model, dtype: str, quantize: str | None = None) -> Model:
  """Returns the model that `with_base` would, with shapes for weights.

  Args:
    model: A model whose base has shapes.
    dtype: Type the weights are stored in.
    quantize: As for `with_base`.
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
  """Paths of the arrays that can be quantized while they are read, and how.

  Empty if the adapter has a `start`, which needs the unquantized kernels.
  """
  lora = model.lora_config
  if quantize is None or (lora is not None and lora.start is not None):
    return {}
  return {f'{path}/kernel': quantize for path in model.config.projections}
