"""The choice of the method for small matrices, made in one place."""

from collections.abc import Callable
from typing import Any, Literal

import jax

# 'lapack': eigenvectors and Cholesky factors by calls into LAPACK.
# 'products': matrix products, rotations and loops, nothing else.
# 'platform': 'lapack' where the program is for CPUs, 'products' elsewhere.
Method = Literal['platform', 'lapack', 'products']


def choose(
  method: Method,
  lapack: Callable[..., Any],
  products: Callable[..., Any],
  *args: Any,
) -> Any:
  """Calls the one of two functions that suits the platform of the program.

  LAPACK calls are the fastest method on CPUs. On other platforms each of them
  is a separate program inside the program: on TPUs one `eigh` of small matrices
  takes 20 seconds or more to compile, and on GPUs it is a library call that
  `lora_opt.planning` cannot look into.

  Args:
    method: 'platform' leaves the choice to the lowering, which knows what the
      program is compiled for, even if that is not the current machine.
    lapack: the function for CPUs.
    products: the function for all other platforms.
    *args: arguments of both functions.

  Returns:
    What the chosen function returns. Both must return the same shapes and
    dtypes.

  Raises:
    ValueError: for an unknown method.
  """
  if method == 'lapack':
    return lapack(*args)
  if method == 'products':
    return products(*args)
  if method == 'platform':
    return jax.lax.platform_dependent(*args, cpu=lapack, default=products)
  raise ValueError(
    f"method={method!r}: must be 'platform', 'lapack' or 'products'"
  )
