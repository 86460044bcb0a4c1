"""Small dense linear algebra for low-rank factors.

A factor is (batch, dim, rank), tall and thin. Everything that an optimizer
needs to know about it is a function of r x r Gram matrices. So the long axis is
contracted in one place, `gram`, and the rest is r x r.

There is one policy for rank deficiency: a direction counts only if it is large
enough, relative to the largest one, to stand out from rounding errors.
Eigenvalues of a Gram or moment matrix at or below `cutoff(dtype)` times the
largest are dead. The inverse of a dead direction is zero. `orthonormal_bases`
resolves a factor better than its Gram matrix does, and so may use a lower
cut-off, `RESOLUTION * cutoff`. An all-zero matrix has only dead directions.
Nothing is ever compared with an absolute number, so the policy does not depend
on units.

The r x r work is done in one of two ways, `Method`: with LAPACK's eigenvectors
and Cholesky factors, as on CPUs, or with matrix products and rotations in
loops, as on TPUs and GPUs.

On a CPU with few cores, several independent batched LAPACK calls in one jitted
function can deadlock (jaxlib 0.10). So functions here take many matrices, join
them with `pack` and make one call. Calls that follow each other must depend on
each other's results.
"""

from lora_opt.linalg._bases import (
  ILL_CONDITIONED,
  RESOLUTION,
  Bases,
  complement,
  orthonormal_bases,
  regular_inverses,
  resolved_inverses,
)
from lora_opt.linalg._choice import Method, choose
from lora_opt.linalg._eigen import (
  alive,
  cutoff,
  eigh,
  from_eigen,
  largest,
  spectral,
)
from lora_opt.linalg._largest import damped_inverse_root, largest_eigenvalue
from lora_opt.linalg._means import (
  MAX_CHANGE,
  balancing_change,
  geometric_mean_pair,
)
from lora_opt.linalg._packed import (
  Packing,
  after,
  gram,
  matmul,
  replicated,
  root_size,
  symmetrize,
)
from lora_opt.linalg._roots import (
  inverse,
  inverse_root,
  psd_inverse_sqrt,
  solve_positive,
)

__all__ = [
  'ILL_CONDITIONED',
  'MAX_CHANGE',
  'RESOLUTION',
  'Bases',
  'Method',
  'Packing',
  'after',
  'alive',
  'balancing_change',
  'choose',
  'complement',
  'cutoff',
  'damped_inverse_root',
  'eigh',
  'from_eigen',
  'geometric_mean_pair',
  'gram',
  'inverse',
  'inverse_root',
  'largest',
  'largest_eigenvalue',
  'matmul',
  'orthonormal_bases',
  'psd_inverse_sqrt',
  'regular_inverses',
  'replicated',
  'resolved_inverses',
  'root_size',
  'solve_positive',
  'spectral',
  'symmetrize',
]
