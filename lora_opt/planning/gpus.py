"""Descriptions of GPUs for XLA's compiler, from their published figures."""

from typing import Any

# Figures that both GPUs have in common. For compute capabilities 8.0 and 9.0,
# see NVIDIA's CUDA C++ programming guide.
_COMMON = {
  'threads_per_block_limit': 1024,
  'threads_per_warp': 32,
  'shared_memory_per_block': 48 * 1024,
  'threads_per_core_limit': 2048,
  'block_dim_limit_x': 2**31 - 1,
  'block_dim_limit_y': 65535,
  'block_dim_limit_z': 65535,
  'registers_per_core_limit': 65536,
  'registers_per_block_limit': 65536,
  'device_vendor': 'NVIDIA Corporation',
  'driver_version': '13.0.0',
  'runtime_version': '13.0.0',
  'compile_time_toolkit_version': '13.0.0',
  'dnn_version': '9.10.0',
}


def _described(name: str, **figures: Any) -> str:
  """The text of a `GpuTargetConfigProto`."""
  lines = [_line(key, value) for key, value in (_COMMON | figures).items()]
  lines.append(_line('name', name))
  return '\n'.join(
    [
      'gpu_device_info {',
      *(f'  {line}' for line in lines),
      '}',
      'platform_name: "CUDA"',
      'dnn_version_info { major: 9 minor: 10 }',
      _line('device_description_str', name),
    ]
  )


def _line(key: str, value: Any) -> str:
  if isinstance(value, dict):
    inner = ' '.join(f'{k}: {v}' for k, v in value.items())
    return f'{key} {{ {inner} }}'
  return f'{key}: "{value}"' if isinstance(value, str) else f'{key}: {value}'


GPUS = {
  'a100': _described(
    'NVIDIA A100-SXM4-80GB',
    core_count=108,
    fpus_per_core=64,
    shared_memory_per_core=164 * 1024,
    shared_memory_per_block_optin=163 * 1024,
    l2_cache_size=40 * 2**20,
    memory_bandwidth=2_039_000_000_000,
    clock_rate_ghz=1.41,
    device_memory_size=80 * 10**9,
    cuda_compute_capability={'major': 8},
  ),
  'h100': _described(
    'NVIDIA H100 80GB HBM3',
    core_count=132,
    fpus_per_core=128,
    shared_memory_per_core=228 * 1024,
    shared_memory_per_block_optin=227 * 1024,
    l2_cache_size=50 * 2**20,
    memory_bandwidth=3_352_320_000_000,
    clock_rate_ghz=1.98,
    device_memory_size=80 * 10**9,
    cuda_compute_capability={'major': 9},
  ),
}
