"""Functions of symmetric matrices by matrix products alone.

All are polynomials, built up step by step: a step maps the eigenvalues that
matter, within known bounds, closer to where they belong. The numbers of the
steps depend on the bounds alone and are found beforehand. Nothing branches,
nothing depends on the values, all matrices of a batch take the same steps.

Matrices are (batch, r, r), positive semi-definite up to rounding.
"""

import functools

import jax
import jax.numpy as jnp

from lora_opt.linalg._packed import matmul, symmetrize

Array = jax.Array

# Polynomials treat what is below this part of the largest as if it were there:
# a lower bound would send the largest to where the smallest are, and back.
_CUSHION = 0.1
# From here on a step squares what is missing to one.
_NEAR = 1e-4


def lowest(x: Array, cut: float) -> float:
  """The smallest eigenvalue to compute with: below `cut`, but above rounding.

  What is negative by rounding grows from step to step as what is small. It
  must not arrive.
  """
  return max(cut / 2, 64 * float(jnp.finfo(x.dtype).eps))


def _last(x: Array) -> tuple[float, ...]:
  """The steps that are left from `_NEAR` to the rounding of x."""
  return (1.0,) if jnp.finfo(x.dtype).bits <= 32 else (1.0, 1.0)


def identity(x: Array) -> Array:
  """(1, r, r) of the type of x."""
  return jnp.eye(x.shape[-1], dtype=x.dtype)[None]


def column(values: Array) -> Array:
  """(batch,) as (batch, 1, 1)."""
  return values[:, None, None]


def largest_eigenvalue(x: Array) -> Array:
  """(batch,), at most r^(1/64) too large: the trace of x^64, and its root.

  1 for a matrix of zeros.
  """

  trace = jnp.trace(x, axis1=1, axis2=2)
  trace = jnp.where(trace == 0, 1, trace)
  power = x / column(trace)
  logs = jnp.log(trace)
  # Between two divisions by the trace the smallest that it can be, of equal
  # eigenvalues, is r^-3.
  for weight in (4, 16, 64):
    power = matmul(power, power)
    power = matmul(power, power)
    trace = jnp.trace(power, axis1=1, axis2=2)
    trace = jnp.where(trace == 0, 1, trace)
    power = power / column(trace)
    logs = logs + jnp.log(trace) / weight
  return jnp.exp(logs)


def root_pair(x: Array, low: float) -> tuple[Array, Array]:
  """x^(1/2) and x^(-1/2) of eigenvalues between `low` and 1.

  Newton-Schulz in the coupled form, which alone is stable, with the cubic
  polynomials that do most for the bounds of each step. Smaller eigenvalues
  come out too large in x^(1/2), too small in x^(-1/2), and in range: at most
  as an eigenvalue `low` would.

  Args:
    x: eigenvalues at most 1.
    low: the smallest that matters.

  References:
    Higham, Functions of Matrices, 2008, equation 6.35. Chen and Chow, A stable
    scaling of Newton-Schulz for improving the sign function computation of a
    Hermitian matrix, 2014.
  """
  eye = identity(x)

  def step(scale, pair):
    root, inverse = pair
    turn = 0.5 * scale * (3 * eye - scale**2 * matmul(inverse, root))
    # The order of the factors is what keeps rounding from growing.
    return matmul(root, turn), matmul(turn, inverse)

  start = x, jnp.broadcast_to(eye, x.shape)
  root, inverse = _repeated(step, root_scales(low) + _last(x), start)
  return symmetrize(root), symmetrize(inverse)


def _repeated(step, scales, x):
  """The steps one after the other; equal ones, which are first, in a loop.

  A loop over different numbers would look up each of them, which takes as long
  as a product.
  """
  equal = scales.count(scales[0])
  x = jax.lax.fori_loop(0, equal, lambda _, x: step(scales[0], x), x)
  for scale in scales[equal:]:
    x = step(scale, x)
  return x


@functools.cache
def root_scales(low: float) -> tuple[float, ...]:
  """By what each step of `root_pair` stretches singular values first.

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
  """x^-1 of eigenvalues between `low` and 1.

  Newton-Schulz with the quadratic polynomials that do most for the bounds, and
  a last step that starts from x itself and takes out the rounding of the
  others. Smaller eigenvalues come out too small, at most as 1 / `low`.

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
  """x -> s x (2 - s x) maps [l, 1] to [l', 1] with s = 2 / (1 + l)."""
  scales, bound = [], low
  while bound < 1 - _NEAR:
    scale = 2 / (1 + max(bound, _CUSHION))
    scales.append(scale)
    bound = scale * bound * (2 - scale * bound)
  return tuple(scales)


def projector(x: Array, cut: float) -> Array:
  """The projector on the eigenvectors of eigenvalues above `cut`.

  First polynomials that grow steeply from zero and take `cut` to one half,
  then 3 x^2 - 2 x^3, which draws what is below to zero and above to one. How
  near to the cut it tells apart is a matter of rounding, as for eigenvalues.
  Rounding also makes eigenvalues negative, which would grow as steeply and end
  anywhere: all are raised by twice the cut before, and the cut with them.

  Args:
    x: eigenvalues at most 1, and none below -2 `cut`.
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

  The inverse of something small there would drown what is alive in its
  rounding. (x itself is not projected: what rounding there is in the projector
  would make eigenvalues negative.)
  """
  return x + identity(x) - live


@functools.cache
def _filter_scales(cut: float) -> tuple[float, ...]:
  """Scales s of x -> s x (2 - s x) that take `cut` to one half.

  All are equal but for two of one at the end: those before may take the
  largest eigenvalues down to a third, these take them up again, to 0.8.
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
