"""LoRA settings, and the projection that has an adapter.

The adapter is in the variable collection `lora`, separate from the frozen base
in `params`, so the trainable parameters are an argument and never a mask.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lora_opt.models.axes import gathered
from lora_opt.models.dora import column_gain
from lora_opt.models.products import product, product_by_turned
from lora_opt.models.quantized import QuantizedKernel, matmul
from lora_opt.models.unstacked import TurnedKernel
from lora_opt.reading import values

Initializer = jax.nn.initializers.Initializer

# Uniform on +-1/sqrt(fan_in); PEFT calls it Kaiming uniform with a=sqrt(5).
uniform_fan_in: Initializer = jax.nn.initializers.variance_scaling(
  1 / 3, 'fan_in', 'uniform'
)


# (kernel, rank, scale) -> (lora_a, lora_b), all NumPy.
Start = Callable[[np.ndarray, int, float], tuple[np.ndarray, np.ndarray]]

# Projections whose weights are tables with one row per token.
TABLES = ('embedding', 'head')

DTYPES = ('float32', 'bfloat16')


def check_dtype(dtype: str) -> None:
  """Raises ValueError if weights cannot have this type."""
  if dtype not in DTYPES:
    raise ValueError(f'dtype={dtype!r} must be one of {", ".join(DTYPES)}')


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Settings of adapters, which add delta_w = scale * lora_a @ lora_b.

  Attributes:
    target: Regular expression that must match the whole module path, such as
      'layers/attention/q'; '.*/(q|v)' adapts the query and value projections.
    rank: Rank of every adapter.
    alpha: scale = alpha / rank.
    rslora: Use scale = alpha / sqrt(rank), the rank-stabilized scale.
    dropout: Rate of dropout on the adapter's input during training.
    init_a: Initializer of lora_a, called with shape (fan_in, rank).
    init_b: Initializer of lora_b, called with shape (rank, fan_out). With
      zeros, training starts at the base model.
    start: Function from a kernel (fan_in, fan_out), the rank and the scale to
      the initial factors, instead of init_a and init_b. Their product times the
      scale is subtracted from the frozen base, see `pissa` and `olora`. None to
      leave the base unchanged.
    dora: Train the length of each column of the weights separately from its
      direction (arXiv 2402.09353). The lengths are leaves `magnitude` outside
      the pairs of factors: a recipe trains them only by its argument `other`.
    dtype: Type the adapter is stored and trained in.

  Raises:
    ValueError: If the rank is below 1, the dropout rate is outside [0, 1),
      alpha is not a number above 0, the target is not a regular expression, or
      a setting has the wrong type.

  >>> LoraConfig(rank=16, alpha=32).scale
  2.0
  >>> LoraConfig(rank=16, alpha=32, rslora=True).scale
  8.0
  """

  target: str = '.*layers/.*'
  rank: int = 16
  alpha: float = 32.0
  rslora: bool = False
  dropout: float = 0.0
  init_a: Initializer = uniform_fan_in
  init_b: Initializer = jax.nn.initializers.zeros
  start: Start | None = None
  dora: bool = False
  dtype: str = 'float32'

  def __post_init__(self):
    check_dtype(self.dtype)
    values.integer(self.rank, 'LoRA rank', 1, 2**20)
    values.number(self.alpha, 'LoRA alpha', above=0)
    values.number(self.dropout, 'LoRA dropout')
    for name in ('rslora', 'dora'):
      values.boolean(getattr(self, name), f'LoRA {name}')
    if not 0 <= self.dropout < 1:
      raise ValueError(f'LoRA dropout={self.dropout} must be in [0, 1)')
    try:
      re.compile(values.text(self.target, 'LoRA target'))
    except re.error as error:
      raise ValueError(
        f'LoRA target={self.target!r} is not a regular expression: {error}'
      ) from error

  @property
  def scale(self) -> float:
    """The factor in front of lora_a @ lora_b."""
    return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

  def adapts(self, path: str) -> bool:
    """Whether the projection at this module path has an adapter."""
    return re.fullmatch(self.target, path) is not None

  def sites(
    self, projections: Mapping[str, tuple[int, int]]
  ) -> dict[str, tuple[int, int]]:
    """The projections that are adapted.

    Args:
      projections: Module path: (fan_in, fan_out) of every projection.

    Returns:
      The same for the adapted projections only; never empty.

    Raises:
      ValueError: If `target` matches no projection, the rank is larger than a
        dimension of a matched projection, or `start` or `dora` is set and
        `target` matches an embedding or head.
    """
    sites = {path: s for path, s in projections.items() if self.adapts(path)}
    if not sites:
      raise ValueError(
        f'LoRA target={self.target!r} matches no projection (the whole path '
        f'must match); the projections are {", ".join(projections)}'
      )
    for path, (fan_in, fan_out) in sites.items():
      if self.rank > min(fan_in, fan_out):
        name = 'fan_in' if fan_in <= fan_out else 'fan_out'
        raise ValueError(
          f'LoRA rank={self.rank} is larger than {name}='
          f'{min(fan_in, fan_out)} of {path}; lower the rank or leave this '
          'projection out of target'
        )
      if path.rpartition('/')[2] in TABLES and (self.dora or self.start):
        raise ValueError(
          f'{path} takes a plain adapter only: leave it out of LoRA target='
          f'{self.target!r}, or dora and start unset'
        )
    return sites


def lora_scale(lora: LoraConfig) -> float:
  """The factor in front of A B^T, which optimizers take as `lora_scale`.

  >>> lora_scale(LoraConfig(rank=16, alpha=32))
  2.0
  """
  return lora.scale


class Projection(nn.Module):
  """x @ kernel + bias + scale * dropout(x) @ lora_a @ lora_b.

  With DoRA, everything but the bias is multiplied by `column_gain`. (With
  dropout, the code of DoRA's authors also drops the input of the kernel's part
  of the change, which costs a second product with the kernel; the expectation
  is the same.)

  Attributes:
    features: fan_out.
    axes: Logical axis names of the kernel (fan_in, fan_out).
    lora: Adapter settings, or None for the base alone.
    dtype: Type of the computation.
    param_dtype: Type the kernel is stored in.
    use_bias: Whether there is a bias.
  """

  features: int
  axes: tuple[str, str]
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (..., fan_in) to (..., fan_out)."""
    fan_in = x.shape[-1]
    kernel = self._kernel(fan_in)
    if isinstance(kernel, QuantizedKernel):
      parts = jax.tree.map(lambda part: gathered(part, *self.axes), kernel)
      y = matmul(x.reshape(-1, fan_in), parts)
      y = y.reshape(*x.shape[:-1], self.features)
    elif isinstance(kernel, TurnedKernel):
      turned = gathered(kernel.turned.astype(self.dtype), *self.axes[::-1])
      y = product_by_turned(x, turned).astype(self.dtype)
      kernel = kernel.turned.T
    else:
      y = product(x, gathered(kernel.astype(self.dtype), *self.axes))
    if self.lora is not None and self.lora.adapts('/'.join(self.path)):
      a, b = lora_factors(self, (fan_in, self.features), self.axes)
      y += adapter(self, x, a, b)
      if self.lora.dora:
        gain = column_gain(self, kernel, a, b, self.axes[1])
        gain = jnp.broadcast_to(gain, y.shape)
        y = (y.astype(jnp.float32) * gain).astype(self.dtype)
    if self.use_bias:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
      bias = self.param('bias', zeros, (self.features,), self.param_dtype)
      y += jnp.broadcast_to(bias.astype(self.dtype), y.shape)
    return y

  def _kernel(self, fan_in: int) -> jax.Array | QuantizedKernel | TurnedKernel:
    stored = self.get_variable('params', 'kernel')
    if isinstance(stored, QuantizedKernel | TurnedKernel):
      return stored
    return self.param(
      'kernel',
      nn.with_logical_partitioning(nn.initializers.lecun_normal(), self.axes),
      (fan_in, self.features),
      self.param_dtype,
    )


def lora_factors(
  module: nn.Module, shape: tuple[int, int], axes: tuple[str, str]
) -> tuple[jax.Array, jax.Array]:
  """The factors of a module's adapter, created at initialisation.

  Args:
    module: Has fields lora and dtype; the factors are stored in its collection
      `lora`.
    shape: (fan_in, fan_out).
    axes: Logical names of fan_in and fan_out.

  Returns:
    lora_a (fan_in, rank) and lora_b (rank, fan_out), in the module's dtype.
  """
  lora, (down, up) = module.lora, axes

  def factor(name, init, shape, axes):
    def rounded(key):
      # Drawn in float32, since not every initializer supports narrower types.
      return init(key, shape, jnp.float32).astype(lora.dtype)

    def make():
      boxed = nn.with_logical_partitioning(rounded, axes)
      return boxed(module.make_rng('lora'))

    value = module.variable('lora', name, make).value
    return gathered(value.astype(module.dtype), *axes)

  return (
    factor('lora_a', lora.init_a, (shape[0], lora.rank), (down, 'lora_rank')),
    factor('lora_b', lora.init_b, (lora.rank, shape[1]), ('lora_rank', up)),
  )


def adapter(
  module: nn.Module, rows: jax.Array, a: jax.Array, b: jax.Array
) -> jax.Array:
  """scale * dropout(rows) @ a @ b, for rows (..., fan_in)."""
  return product(adapter_code(module, rows, a), b)


def adapter_code(module: nn.Module, rows: jax.Array, a: jax.Array) -> jax.Array:
  """scale * dropout(rows) @ a, the input of an adapter's up factor b."""
  # The scale is applied where it is cheapest: to the narrow product with a.
  return product(drop_input(module, rows), a) * module.lora.scale


def drop_input(module: nn.Module, x: jax.Array) -> jax.Array:
  """Dropout of an adapter's input, if the module has a key for it."""
  lora = module.lora
  if lora.dropout and module.has_rng('dropout'):
    keep = 1.0 - lora.dropout
    mask = jax.random.bernoulli(module.make_rng('dropout'), keep, x.shape)
    x = jnp.where(mask, x / keep, 0.0)
  return x
