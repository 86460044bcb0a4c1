"""The changes of basis between two Gram matrices."""

import jax
import jax.numpy as jnp

from lora_opt.linalg._choice import Method
from lora_opt.linalg._eigen import alive, cutoff, eigh, from_eigen, largest
from lora_opt.linalg._packed import matmul, root_size, symmetrize

Array = jax.Array

# How much a factor may shrink at once. If an optimizer shrinks a factor more by
# adding an update to it, less than four digits of it are left in float32.
MAX_CHANGE = 1024.0


def geometric_mean_pair(
  x: Array, y: Array, method: Method = 'platform'
) -> tuple[Array, Array]:
  """S = x^-1 # y, the symmetric solution of S x S = y, and its inverse.

  S = x^(-1/2) (x^(1/2) y x^(1/2))^(1/2) x^(-1/2). With x = A^T A and
  y = B^T B the middle matrix holds the squared singular values of A B^T. A
  dead direction of it gets its largest value: a zero factor can then grow there
  at full speed, and its partner, whose gradient vanishes there, is not
  amplified. In dead directions of x itself, S is the mean of its live part. If
  nothing is alive, S = I.

  Args:
    x: (batch, r, r), symmetric positive semi-definite.
    y: the same.
    method: method of computing eigenvectors.

  Returns:
    S and S^-1, each (batch, r, r) and positive definite.

  >>> x, y = jnp.array([[[4.0]]]), jnp.array([[[9.0]]])
  >>> s, s_inverse = geometric_mean_pair(x, y)
  >>> print(f'{s.item():.3f} {s_inverse.item():.3f}')
  1.500 0.667
  """
  size_x, size_y = root_size(x), root_size(y)
  x, y = x / size_x / size_x, y / size_y / size_y
  values, vectors = eigh(x, method)
  live = alive(values)
  root = jnp.where(live, jnp.sqrt(jnp.where(live, values, 1)), 0)
  inverse_root = jnp.where(live, 1 / jnp.where(live, root, 1), 0)
  # From here on in the eigenbasis of x: this saves one product, and dead
  # directions of x are rows and columns of zeros.
  turned = matmul(matmul(vectors.mT, y), vectors)
  middle = symmetrize(root[:, :, None] * turned * root[:, None, :])
  squares, directions = eigh(middle, method)
  strongest = jnp.sqrt(largest(squares))
  product_live = alive(squares)
  sigma = jnp.where(
    product_live, jnp.sqrt(jnp.where(product_live, squares, 1)), strongest
  )
  some = strongest > 0
  sigma = jnp.where(some, sigma, 1)

  left = inverse_root[:, :, None] * directions
  s = matmul(left * sigma[:, None, :], left.mT)
  left = root[:, :, None] * directions
  s_inverse = matmul(left / sigma[:, None, :], left.mT)

  count = jnp.sum(live, axis=1, keepdims=True).astype(values.dtype)
  mean = jnp.trace(s, axis1=1, axis2=2)[:, None] / jnp.maximum(count, 1)
  mean = jnp.where(some, mean, 1)
  eye = jnp.eye(x.shape[-1], dtype=x.dtype)[None]
  dead = jnp.where(live, 0, 1).astype(values.dtype)
  s = s + eye * (dead * mean)[:, None, :]
  s_inverse = s_inverse + eye * (dead / mean)[:, None, :]

  s, s_inverse = (
    symmetrize(matmul(matmul(vectors, m), vectors.mT)) for m in (s, s_inverse)
  )
  some = some[:, :, None]
  s, s_inverse = s * (size_y / size_x), s_inverse * (size_x / size_y)
  return jnp.where(some, s, eye), jnp.where(some, s_inverse, eye)


def balancing_change(
  x: Array, y: Array, method: Method = 'platform'
) -> tuple[Array, Array]:
  """Symmetric P and P^-1 with P x P = P^-1 y P^-1, that is P^2 = x^-1 # y.

  With x = A^T A and y = B^T B this makes (A P, B P^-1) balanced. Eigenvalues
  of x and of y below the square root of `cutoff`, relative to the largest,
  are raised to it, since smaller ones cannot be resolved in their product. So P
  depends continuously on both factors, and a change that is carried out at
  every step converges. (`geometric_mean_pair` treats such directions as dead
  and gives them the largest value, which is right for a preconditioner.) P = I
  if x or y is zero. P and P^-1 are at most `MAX_CHANGE`: factors that are
  further out of balance need several changes.

  Args:
    x: (batch, r, r), symmetric positive semi-definite.
    y: the same.
    method: method of computing eigenvectors.

  Returns:
    P and P^-1, each (batch, r, r) and positive definite.

  >>> x, y = jnp.array([[[16.0]]]), jnp.array([[[1.0]]])
  >>> p, p_inverse = balancing_change(x, y)
  >>> print(f'{p.item():.3f} {p_inverse.item():.3f}')
  0.500 2.000
  """
  size_x, size_y = root_size(x), root_size(y)
  x, y = x / size_x / size_x, y / size_y / size_y
  values, vectors = eigh(jnp.concatenate([x, y]), method)
  strongest = largest(values)
  some = jnp.all((strongest > 0).reshape(2, -1, 1), axis=0)
  values = jnp.maximum(values, cutoff(x.dtype) ** 0.5 * strongest)
  (values, other), (vectors, turned) = (
    jnp.split(m, 2) for m in (values, vectors)
  )
  y = from_eigen(turned, other)
  root = jnp.sqrt(jnp.where(some, values, 1))
  turned = matmul(matmul(vectors.mT, y), vectors)
  middle = symmetrize(root[:, :, None] * turned * root[:, None, :])
  squares, directions = eigh(middle, method)
  # Positive up to rounding errors, which are relative to the largest
  # eigenvalue.
  squares = jnp.maximum(squares, cutoff(x.dtype) * largest(squares))
  sigma = jnp.sqrt(jnp.where(some, squares, 1))
  left = directions / root[:, :, None]
  s = matmul(left * sigma[:, None, :], left.mT)
  values, turned = eigh(symmetrize(s), method)
  eps = float(jnp.finfo(x.dtype).eps)
  values = jnp.maximum(values, eps * largest(values))
  values = jnp.sqrt(jnp.where(some, values * (size_y / size_x)[:, 0], 1))
  values = jnp.clip(values, 1 / MAX_CHANGE, MAX_CHANGE)
  vectors = matmul(vectors, turned)
  eye = jnp.eye(x.shape[-1], dtype=x.dtype)[None]
  return tuple(
    jnp.where(some[:, :, None], from_eigen(vectors, v), eye)
    for v in (values, 1 / values)
  )
