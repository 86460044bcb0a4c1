"""How the r x r work of an optimizer is done, said from outside."""

import optax

from lora_opt.linalg import Method


def with_matrix_method(
  tx: optax.GradientTransformation, method: Method
) -> optax.GradientTransformationExtraArgs:
  """The same optimizer with its r x r work done by one method everywhere.

  Optimizers choose by the platform that they are compiled for, and need no
  telling. This is for comparisons of the methods.

  Args:
    tx: a recipe of lora_opt, a transformation of `lora_opt.transforms`, or what
      optax makes of them.
    method: 'lapack' or 'products' on any platform; 'platform': the choice.

  Returns:
    A transformation with the state of `tx`.
  """
  tx = optax.with_extra_args_support(tx)

  def update(updates, state, params=None, **extra_args):
    return tx.update(updates, state, params, matrix_method=method, **extra_args)

  return optax.GradientTransformationExtraArgs(tx.init, update)
