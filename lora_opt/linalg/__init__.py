"""Small dense linear algebra for low-rank factors.

A factor is (batch, dim, rank), tall and thin. Everything about it that an
optimizer asks for is a function of r x r Gram matrices, so the long axis is
contracted in one place, `gram`, and the rest is r x r.

Rank deficiency, one policy: a direction counts only if it is large enough,
relative to the largest one, to stand out from rounding. Eigenvalues of a Gram
or moment matrix at or below `cutoff(dtype)` times the largest are dead; a
dead direction has inverse zero. `orthonormal_bases` resolves a factor itself
beyond its Gram matrix and so may cut lower, at `RESOLUTION * cutoff`. An
all-zero matrix has only dead directions. Nothing is ever compared with an
absolute number, so the policy does not depend on units.

The r x r work is done in one of two ways, `Method`: by LAPACK's eigenvectors
and Cholesky factors, as on CPUs, or by matrix products and rotations, in loops,
as on TPUs and GPUs.

On CPU with few cores several independent batched LAPACK calls in one jitted
function can wait for each other for ever (jaxlib 0.10). Functions here take
many matrices and make one call; `pack` is how they do it, and calls that
follow each other must depend on each other's results.
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
