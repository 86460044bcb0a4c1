"""Transformations over LoRA pairs, one algorithm a file."""

from lora_opt.transforms._adam import ScaleByAdamState, scale_by_adam
from lora_opt.transforms._bases import (
  InOrthonormalBasesState,
  in_orthonormal_bases,
)
from lora_opt.transforms._lora_plus import scale_by_lora_plus
from lora_opt.transforms._lora_rite import (
  ScaleByLoraRiteState,
  StepByLoraRiteState,
  rebalance_norms,
  scale_by_lora_rite,
  step_by_lora_rite,
)
from lora_opt.transforms._nonfinite import SkipNonfiniteState, skip_nonfinite
from lora_opt.transforms._pairing import OnLoraPairsState, on_lora_pairs
from lora_opt.transforms._refactoring import (
  PreconditionByRefactoringState,
  RefactorByNormsState,
  precondition_by_refactoring,
  refactor_by_norms,
)

__all__ = [
  'InOrthonormalBasesState',
  'OnLoraPairsState',
  'PreconditionByRefactoringState',
  'RefactorByNormsState',
  'ScaleByAdamState',
  'ScaleByLoraRiteState',
  'SkipNonfiniteState',
  'StepByLoraRiteState',
  'in_orthonormal_bases',
  'on_lora_pairs',
  'precondition_by_refactoring',
  'rebalance_norms',
  'refactor_by_norms',
  'scale_by_adam',
  'scale_by_lora_plus',
  'scale_by_lora_rite',
  'skip_nonfinite',
  'step_by_lora_rite',
]
