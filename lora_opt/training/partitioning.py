"""How arrays are split over devices in a training run.

The public module for `lora_opt.devices.partitioning`.
"""

from lora_opt.devices.partitioning import (
  DATA_PARALLEL,
  DEFAULT_RULES,
  MESH_AXES,
  Partitioner,
  Placement,
  Rules,
  put,
)

__all__ = [
  'DATA_PARALLEL',
  'DEFAULT_RULES',
  'MESH_AXES',
  'Partitioner',
  'Placement',
  'Rules',
  'put',
]
