"""Transformations over LoRA pairs, one algorithm per file."""

from lora_opt.transforms._adam import ScaleByAdamState, scale_by_adam
from lora_opt.transforms._altlora import ScaleByAltLoraState, scale_by_altlora
from lora_opt.transforms._averaged import (
  AveragedState,
  average_of,
  averaged,
  keeps_average,
)
from lora_opt.transforms._balance import (
  RefactorState,
  refactor_by_balance,
  refactor_by_norms,
)
from lora_opt.transforms._decay import add_decayed_weights
from lora_opt.transforms._grams import precondition_by_grams
from lora_opt.transforms._lora_muon import (
  ScaleByLoraMuonState,
  scale_by_lora_muon,
)
from lora_opt.transforms._lora_plus import EMBEDDINGS, scale_by_lora_plus
from lora_opt.transforms._lora_pro import precondition_by_full_gradient
from lora_opt.transforms._lora_rite import (
  ScaleByLoraRiteState,
  StepByLoraRiteState,
  rebalance_norms,
  scale_by_lora_rite,
  step_by_lora_rite,
)
from lora_opt.transforms._masters import Float32MastersState, float32_masters
from lora_opt.transforms._matrix_method import with_matrix_method
from lora_opt.transforms._nonfinite import (
  MAX_CONSECUTIVE_SKIPS,
  SkipNonfiniteState,
  skip_nonfinite,
)
from lora_opt.transforms._pairing import OnLoraPairsState, on_lora_pairs
from lora_opt.transforms._per_matrix import (
  scale_by_muon_per_matrix,
  scale_by_trust_ratio_per_matrix,
)
from lora_opt.transforms._polora import ScaleByPoloraState, scale_by_polora
from lora_opt.transforms._rates import ScalarOrSchedule, scale_by_finite_rate
from lora_opt.transforms._refactoring import (
  PreconditionByRefactoringState,
  precondition_by_refactoring,
)
from lora_opt.transforms._shampoo import (
  ScaleByOneSidedShampooState,
  scale_by_one_sided_shampoo,
)

__all__ = [
  'EMBEDDINGS',
  'MAX_CONSECUTIVE_SKIPS',
  'AveragedState',
  'Float32MastersState',
  'OnLoraPairsState',
  'PreconditionByRefactoringState',
  'RefactorState',
  'ScalarOrSchedule',
  'ScaleByAdamState',
  'ScaleByAltLoraState',
  'ScaleByLoraMuonState',
  'ScaleByLoraRiteState',
  'ScaleByOneSidedShampooState',
  'ScaleByPoloraState',
  'SkipNonfiniteState',
  'StepByLoraRiteState',
  'add_decayed_weights',
  'average_of',
  'averaged',
  'float32_masters',
  'keeps_average',
  'on_lora_pairs',
  'precondition_by_full_gradient',
  'precondition_by_grams',
  'precondition_by_refactoring',
  'rebalance_norms',
  'refactor_by_balance',
  'refactor_by_norms',
  'scale_by_adam',
  'scale_by_altlora',
  'scale_by_finite_rate',
  'scale_by_lora_muon',
  'scale_by_lora_plus',
  'scale_by_lora_rite',
  'scale_by_muon_per_matrix',
  'scale_by_one_sided_shampoo',
  'scale_by_polora',
  'scale_by_trust_ratio_per_matrix',
  'skip_nonfinite',
  'step_by_lora_rite',
  'with_matrix_method',
]
