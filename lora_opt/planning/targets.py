"""The real compilers of TPUs and GPUs, which need no hardware.

JAX needs only its plugins' packages to describe a slice of TPUs or a group of
GPUs and to compile for it. If these packages are not installed, XLA's compiler
for CPUs stands in, with as many simulated devices. Its results are estimates.
"""

import contextlib
import importlib.metadata
import importlib.util
import math
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from lora_opt.planning.chips import Chip, Topology
from lora_opt.planning.gpus import GPUS

# The extras in setup.py that install the compilers, and the compilers' modules.
EXTRAS = {'tpu': 'plan-tpu', 'gpu': 'plan-gpu'}
_PACKAGES = {'tpu': 'libtpu', 'gpu': 'jax_cuda13_plugin'}


# Otherwise libtpu requests these settings from a cloud server, and keeps trying
# for minutes if there is none. They do not affect what is compiled. Multiple
# loads are allowed, so that several plans can be made at the same time: only a
# process that drives TPUs must have its machine to itself.
_WITHOUT_A_TPU = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
}


class Target(NamedTuple):
  """Devices to compile for, and their compiler.

  Attributes:
    platform: 'tpu', 'gpu', or 'cpu' for simulated devices.
    devices: The devices.
    compiler: Name and version of the compiler, for the report.
    missing: The extra that would install the topology's own compiler; '' if it
      is installed or there is none.
  """

  platform: str
  devices: Sequence[jax.Device]
  compiler: str
  missing: str = ''

  @property
  def real(self) -> bool:
    """Whether the topology's own compiler is used."""
    return self.platform != 'cpu'

  @property
  def lowered_for(self) -> str:
    """JAX's name for the platform that programs are lowered for."""
    return 'cuda' if self.platform == 'gpu' else self.platform


def platform_of(topology: Topology) -> str:
  """The platform whose compiler is used here: 'tpu', 'gpu' or 'cpu'."""
  platform = topology.chip.platform
  return platform if is_installed(platform) else 'cpu'


def is_installed(platform: str) -> bool:
  """Whether the compiler of 'tpu' or 'gpu' is installed."""
  package = _PACKAGES.get(platform)
  return package is not None and importlib.util.find_spec(package) is not None


def find_target(topology: Topology, devices: int | None = None) -> Target:
  """The devices of a topology, and their compiler.

  Args:
    topology: Such as from `read_topology`.
    devices: Use only this many of its chips, as close together as possible.

  Raises:
    ValueError: The slice has no known shape, there are too few simulated
      devices (see `lora_opt.planning.plan.simulate`), or the compiler refuses.
  """
  count = topology.devices if devices is None else devices
  platform = platform_of(topology)
  if platform == 'tpu':
    return Target('tpu', _tpus(topology, count), _named('libtpu'))
  if platform == 'gpu':
    return Target('gpu', _gpus(topology, count), _named('jax-cuda13-plugin'))
  there = jax.devices()
  if len(there) < count:
    raise ValueError(
      f'{count} devices are to be planned with and {len(there)} are '
      'simulated: lora_opt.planning.plan.simulate makes them before JAX is used'
    )
  extra = EXTRAS.get(topology.chip.platform, '')
  return Target('cpu', there[:count], f'XLA for CPUs, JAX {_jax()}', extra)


def _named(package: str) -> str:
  version = importlib.metadata.version(package)
  return f'{package} {version}, JAX {_jax()}'


def _jax() -> str:
  return importlib.metadata.version('jax')


def _tpus(topology: Topology, count: int) -> Sequence[jax.Device]:
  for name, value in _WITHOUT_A_TPU.items():
    os.environ.setdefault(name, value)
  slices = topology.slices if count == topology.devices else 1
  shape = slice_shape(count // slices, topology.chip.axes)
  settings = {}
  if topology.chip.name == 'v4':  # both cores of a chip as one device
    settings['chip_config_name'] = 'megacore'
  if count // slices < 4:  # part of a host
    settings['chips_per_host_bounds'] = [*shape, 1, 1][:3]
  if slices > 1:
    settings['num_slices'] = slices
  name = f'{topology.chip.name}:{"x".join(map(str, shape))}'
  return _described(
    topology.chip, topology_name=name, platform='tpu', **settings
  )


def _gpus(topology: Topology, count: int) -> Sequence[jax.Device]:
  chip = topology.chip
  hosts = math.ceil(count / chip.island)
  if count % hosts:
    raise ValueError(
      f'{count} of {chip.name} are no whole number of machines of {chip.island}'
    )
  return _described(
    chip,
    platform='cuda',
    target_config=GPUS[chip.name],
    topology=f'1x{hosts}x{count // hosts}',
  )


def _described(chip: Chip, **settings) -> Sequence[jax.Device]:
  try:
    return topologies.get_topology_desc(**settings).devices
  except Exception as error:  # plugins raise errors of any type
    package = _PACKAGES[chip.platform]
    reason = str(error).strip().splitlines()[0]
    raise ValueError(
      f'the compiler of {chip.name} ({package} '
      f'{importlib.metadata.version(package)}) does not go with jax {_jax()} '
      f'or does not know this topology: {reason}. The two belong together: '
      f'pip install "lora_opt[{EXTRAS[chip.platform]}]" -c '
      'constraints.txt'
    ) from error


def slice_shape(chips: int, axes: int) -> tuple[int, ...]:
  """The shape of a slice of TPUs, as even as possible.

  Args:
    chips: Number of chips, a power of two.
    axes: Number of axes of their network: 2 (v5e, v6e) or 3 (v4, v5p).

  Raises:
    ValueError: The number of chips is not a power of two.

  >>> slice_shape(8, 2), slice_shape(16, 3)
  ((2, 4), (2, 2, 4))
  """
  if chips & (chips - 1):
    raise ValueError(
      f'a slice of {chips} chips cannot be planned: their number must be a '
      'power of two'
    )
  doublings = chips.bit_length() - 1
  if axes == 3 and chips <= 4:  # within one host, which is flat
    shape = [1 << (doublings // 2), 1 << ((doublings + 1) // 2), 1]
    return tuple(shape)
  low, more = divmod(doublings, axes)
  return tuple(1 << (low + (i >= axes - more)) for i in range(axes))


@contextlib.contextmanager
def compiling_for(target: Target) -> Iterator[None]:
  """Makes JAX interpret 'gpu' as CUDA without asking a live GPU.

  JAX asks a backend whether 'gpu' means CUDA or ROCm (JAX issues 23971 and
  28376). Without hardware there is no backend to ask.
  """
  if target.platform != 'gpu':
    yield
    return
  from jax._src import xla_bridge

  asked = xla_bridge.canonicalize_platform

  def answer(platform: str) -> str:
    return 'cuda' if platform == 'gpu' else asked(platform)

  xla_bridge.canonicalize_platform = answer
  try:
    yield
  finally:
    xla_bridge.canonicalize_platform = asked
