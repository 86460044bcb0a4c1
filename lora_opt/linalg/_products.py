"""Functions of symmetric matrices by matrix products alone.

All are polynomials, built up step by step. A step maps the eigenvalues that
matter, which lie within known bounds, closer to their targets. The coefficients
of the steps depend on the bounds alone and are computed beforehand. Nothing
branches and nothing depends on the values: all matrices of a batch take the
same steps.

Matrices are (batch, r, r), positive semi-definite up to rounding.
"""

import functools

import jax
import jax.numpy as jnp

from lora_opt.linalg._packed import matmul, symmetrize

Array = jax.Array

# Polynomials treat lower bounds below this fraction of the largest eigenvalue
# as if they were this fraction: with a lower one, the largest eigenvalues would
# be sent to where the smallest are, and back.
_CUSHION = 0.1
# From this distance to one on, a step squares the distance.
_NEAR = 1e-4


def lowest(x: Array, cut: float) -> float:
  """The smallest eigenvalue to compute with: below `cut`, but above rounding.

  Eigenvalues that are negative by rounding grow from step to step, like small
  positive ones. They must stay small until the last step.
  """
  return max(cut / 2, 64 * float(jnp.finfo(x.dtype).eps))


def _last(x: Array) -> tuple[float, ...]:
  """The scales of the steps from `_NEAR` to the rounding accuracy of x."""
  return (1.0,) if jnp.finfo(x.dtype).bits <= 32 else (1.0, 1.0)


def identity(x: Array) -> Array:
  """The identity, (1, r, r), in the dtype of x."""
  return jnp.eye(x.shape[-1], dtype=x.dtype)[None]


def column(values: Array) -> Array:
  """Reshapes (batch,) to (batch, 1, 1)."""
  return values[:, None, None]


def largest_eigenvalue(x: Array) -> Array:
  """The largest eigenvalue (batch,), at most r^(1/64) times too large.

  It is the 64th root of the trace of x^64, and 1 for a matrix of zeros.
  """

  trace = jnp.trace(x, axis1=1, axis2=2)
  trace = jnp.where(trace == 0, 1, trace)
  power = x / column(trace)
  logs = jnp.log(trace)
  # Between two divisions by the trace, its smallest possible value is r^-3, for
  # equal eigenvalues.
  for weight in (4, 16, 64):
    power = matmul(power, power)
    power = matmul(power, power)
    trace = jnp.trace(power, axis1=1, axis2=2)
    trace = jnp.where(trace == 0, 1, trace)
    power = power / column(trace)
    logs = logs + jnp.log(trace) / weight
  return jnp.exp(logs)


def root_pair(x: Array, low: float) -> tuple[Array, Array]:
  """x^(1/2) and x^(-1/2), for eigenvalues between `low` and 1.

  This is Newton-Schulz in the coupled form, the only stable one, with the cubic
  polynomials that improve the bounds of each step most. Eigenvalues below `low`
  come out too large in x^(1/2) and too small in x^(-1/2), but in range: at most
  as large as for an eigenvalue `low`.

  Args:
    x: matrices with eigenvalues of at most 1.
    low: the smallest eigenvalue that matters.

  References:
    Higham, Functions of Matrices, 2008, equation 6.35. Chen and Chow, A stable
    scaling of Newton-Schulz for improving the sign function computation of a
    Hermitian matrix, 2014.
  """
  eye = identity(x)

  def step(scale, pair):
    root, inverse = pair
    turn = 0.5 * scale * (3 * eye - scale**2 * matmul(inverse, root))
    # This order of the factors keeps rounding errors from growing.
    return matmul(root, turn), matmul(turn, inverse)

  start = x, jnp.broadcast_to(eye, x.shape)
  root, inverse = _repeated(step, root_scales(low) + _last(x), start)
  return symmetrize(root), symmetrize(inverse)


def _repeated(step, scales, x):
  """Takes the steps in order, with the equal ones, which come first, in a loop.

  A loop over different scales would look up each of them, which takes as long
  as a product.
  """
  equal = scales.count(scales[0])
  x = jax.lax.fori_loop(0, equal, lambda _, x: step(scales[0], x), x)
  for scale in scales[equal:]:
    x = step(scale, x)
  return x


@functools.cache
def root_scales(low: float) -> tuple[float, ...]:
  """The scales by which each step of `root_pair` stretches singular values.

  x -> s x (3 - s^2 x^2) / 2 maps [l, 1] to [l', 1] with
  s^2 = 3 / (1 + l + l^2), which makes l' largest.

  >>> len(root_scales(1e-6)), root_scales(1e-6)[0] < 3**0.5
  (10, True)
  """
  scales, bound = [], low**0.5
  while bound < 1 - _NEAR:
    lower = max(bound, _CUSHION)
    scale = (3 / (1 + lower + lower**2)) ** 0.5
    scales.append(scale)
    bound = scale * bound * (3 - (scale * bound) ** 2) / 2
  return tuple(scales)


def inverse(x: Array, low: float) -> Array:
  """x^-1, for eigenvalues between `low` and 1.

  This is Newton-Schulz with the quadratic polynomials that improve the bounds
  most. A last step starts from x itself and removes the rounding errors of the
  others. For eigenvalues below `low` the inverse comes out too small, at most
  1 / `low`.

  References:
    Pan and Schreiber, An improved Newton iteration for the generalized inverse
    of a matrix, 1991.
  """
  eye = identity(x)

  def step(scale, pair):
    found, product = pair
    turn = scale * (2 * eye - scale * product)
    return matmul(turn, found), matmul(turn, product)

  start = jnp.broadcast_to(eye, x.shape), x
  found, _ = _repeated(step, _inverse_scales(low), start)
  for _ in _last(x):
    found = matmul(found, 2 * eye - matmul(x, found))
  return symmetrize(found)


@functools.cache
def _inverse_scales(low: float) -> tuple[float, ...]:
  """Scales s = 2 / (1 + l): x -> s x (2 - s x) maps [l, 1] to [l', 1]."""
  scales, bound = [], low
  while bound < 1 - _NEAR:
    scale = 2 / (1 + max(bound, _CUSHION))
    scales.append(scale)
    bound = scale * bound * (2 - scale * bound)
  return tuple(scales)


def projector(x: Array, cut: float) -> Array:
  """The projector on the eigenvectors of eigenvalues above `cut`.

  First come polynomials that grow steeply from zero and take `cut` to one half,
  then 3 x^2 - 2 x^3, which draws values below one half to zero and values above
  it to one. How well eigenvalues near the cut are separated is limited by
  rounding, as it is for computed eigenvalues. Rounding also makes eigenvalues
  negative. These would grow as steeply and end anywhere, so all eigenvalues are
  first raised by twice the cut, and the cut with them.

  Args:
    x: matrices with eigenvalues of at most 1, and none below -2 `cut`.
    cut: at most one twentieth.
  """
  eye = identity(x)
  raised = (x + 2 * cut * eye) / (1 + 2 * cut)

  def grow(scale, x):
    y = scale * x
    return matmul(y, 2 * eye - y)

  def sharpen(_, x):
    square = matmul(x, x)
    return matmul(square, 3 * eye - 2 * x)

  x = _repeated(grow, _filter_scales(3 * cut / (1 + 2 * cut)), raised)
  x = jax.lax.fori_loop(0, 9, sharpen, x)
  return symmetrize(x)


def filled(x: Array, live: Array) -> Array:
  """x with eigenvalue one where the projector `live` is zero.

  The inverse of a small eigenvalue there would drown the live ones in its
  rounding errors. (x itself is not projected: rounding errors of the projector
  would make eigenvalues negative.)
  """
  return x + identity(x) - live


@functools.cache
def _filter_scales(cut: float) -> tuple[float, ...]:
  """Scales s of x -> s x (2 - s x) that take `cut` to one half.

  All scales are equal except for the last two, which are one. The equal ones
  may take the largest eigenvalues down to a third, and the last two take these
  up again, to 0.8.
  """
  steepest = 2 / (1 + _CUSHION)

  def after(scale, steps):
    x = cut
    for s in (*[scale] * steps, 1, 1):
      x = s * x * (2 - s * x)
    return x

  steps = 0
  while after(steepest, steps) < 0.5:
    steps += 1
  low, high = 0.0, steepest
  for _ in range(60):
    middle = (low + high) / 2
    inside = after(middle, steps) > 0.5
    low, high = (low, middle) if inside else (middle, high)
  return (*[high] * steps, 1.0, 1.0)
