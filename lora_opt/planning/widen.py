"""Makes all types of a program twice as wide, so that a CPU need not convert.

CPUs have no bfloat16 arithmetic. XLA converts weights and activations to
float32 for each product, so the memory that it reserves says little about a
chip that multiplies bfloat16. Therefore the program is compiled with bfloat16
as float32, float32 as float64, and so on: a CPU computes in all of these
directly. Every array then takes exactly twice its bytes (arrays of one-bit
values stay as they are), and the compiler allocates them as the chip's would.

The result is for measuring only. Never run it: its numbers are meaningless.
"""

import numpy as np
from jax.extend.mlir import ir

# MLIR type -> the type that replaces it.
_WIDER = {
  'bf16': 'f32',
  'f16': 'f32',
  'f32': 'f64',
  **{
    f'{sign}{bits}': f'{sign}{2 * bits}'
    for sign in ('i', 'ui', 'si')
    for bits in (2, 4, 8, 16, 32)
  },
}


def widen(module: ir.Module) -> None:
  """Doubles the types of a lowered program in place, before it is compiled.

  JAX caches lowered programs by function and shapes, so nothing else may
  compile the same jitted function.

  Args:
    module: `lowered.compiler_ir('stablehlo')`.
  """
  with module.context, ir.Location.unknown():
    module.operation.walk(_split_mixed_product)
    module.operation.walk(_widen)


def _split_mixed_product(operation: ir.Operation) -> ir.WalkResult:
  """Splits bfloat16 x bfloat16 -> float32 into a product and a conversion.

  A CPU would convert the operands instead, including the table of the
  vocabulary. Chips support such a mixed product.
  """
  operation = operation.operation
  if operation.name == 'stablehlo.dot_general':
    result = operation.results[0]
    product, operand = (
      ir.RankedTensorType(value.type)
      for value in (result, operation.operands[0])
    )
    if product.element_type != operand.element_type:
      with ir.InsertionPoint.after(operation):
        convert = ir.Operation.create(
          'stablehlo.convert', results=[product], operands=[result]
        )
      result.replace_all_uses_except(convert.result, convert)
      result.set_type(
        ir.RankedTensorType.get(
          product.shape, operand.element_type, product.encoding
        )
      )
  return ir.WalkResult.ADVANCE


def _widen(operation: ir.Operation) -> ir.WalkResult:
  operation = operation.operation
  for result in operation.results:
    result.set_type(_wider(result.type))
  for region in operation.regions:
    for block in region:
      for argument in block.arguments:
        argument.set_type(_wider(argument.type))
  attributes = operation.attributes
  if operation.name == 'func.func':
    signature = ir.FunctionType(ir.TypeAttr(attributes['function_type']).value)
    attributes['function_type'] = ir.TypeAttr.get(
      ir.FunctionType.get(
        [_wider(t) for t in signature.inputs],
        [_wider(t) for t in signature.results],
      )
    )
  elif operation.name == 'stablehlo.constant':
    attributes['value'] = _wider_constant(attributes['value'])
  elif operation.name == 'stablehlo.case':  # its index must have 32 bits
    index = ir.RankedTensorType.get([], ir.IntegerType.get_signless(32))
    with ir.InsertionPoint(operation):
      narrow = ir.Operation.create(
        'stablehlo.convert', results=[index], operands=[operation.operands[0]]
      )
    operation.operands[0] = narrow.result
  elif 'algorithm' in attributes:  # of a product, for its narrow types
    del attributes['algorithm']
  return ir.WalkResult.ADVANCE


def _wider(t: ir.Type) -> ir.Type:
  if not isinstance(t, ir.RankedTensorType):
    return t
  element = _WIDER.get(str(t.element_type))
  if element is None:
    return t
  return ir.RankedTensorType.get(t.shape, ir.Type.parse(element), t.encoding)


def _wider_constant(value: ir.DenseElementsAttr) -> ir.Attribute:
  wider = _wider(value.type)
  if wider == value.type:
    return value
  if value.is_splat:
    number = value.get_splat_value().value
    kind = ir.FloatAttr if isinstance(number, float) else ir.IntegerAttr
    return ir.DenseElementsAttr.get_splat(
      wider, kind.get(wider.element_type, number)
    )
  return ir.DenseElementsAttr.get(
    np.array(value, np.float64 if _is_float(wider) else np.int64), type=wider
  )


def _is_float(t: ir.RankedTensorType) -> bool:
  return str(t.element_type).startswith('f')
