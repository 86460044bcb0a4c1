"""Sets, from outside, the method of an optimizer's r x r work."""

import optax

from lora_opt.linalg import Method


def with_matrix_method(
  tx: optax.GradientTransformation, method: Method
) -> optax.GradientTransformationExtraArgs:
  """The same optimizer, with one method for all of its r x r work.

  By default optimizers choose the method for the platform that they are
  compiled for. This function is for comparisons of the methods.

  Args:
    tx: a recipe of lora_opt, a transformation of `lora_opt.transforms`, or an
      optax combination of them.
    method: 'lapack' or 'products', on any platform; 'platform': the default,
      which depends on the platform.

  Returns:
    A transformation with the state of `tx`.
  """
  tx = optax.with_extra_args_support(tx)

  def update(updates, state, params=None, **extra_args):
    return tx.update(updates, state, params, matrix_method=method, **extra_args)

  return optax.GradientTransformationExtraArgs(tx.init, update)
