"""Which way of working on small matrices: chosen in one place."""

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
  """Calls the one of two functions that suits what the program runs on.

  LAPACK's calls are the fastest on CPUs. Elsewhere each is a program of its
  own inside the program: on TPUs one `eigh` of small matrices takes 20 seconds
  and more to compile, on GPUs it is a call into a library that a plan cannot
  look into.

  Args:
    method: 'platform' leaves the choice to the lowering, which knows what the
      program is compiled for, also where that is not here.
    lapack: the one for CPUs.
    products: the one for all others.
    *args: of both.

  Returns:
    What the chosen function does; both must give the same shapes and dtypes.

  Raises:
    ValueError: another method.
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
