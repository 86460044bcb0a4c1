"""The real compilers of TPUs and GPUs, which need no hardware.

JAX describes a slice of TPUs or a group of GPUs from the packages of its
plugins alone, and compiles for it. Where these packages are not installed,
XLA's compiler for CPUs stands in, with as many simulated devices: what it says
is an estimate.
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

# What the compilers' packages are called: of setup.py's extras.
EXTRAS = {'tpu': 'plan-tpu', 'gpu': 'plan-gpu'}
_PACKAGES = {'tpu': 'libtpu', 'gpu': 'jax_cuda13_plugin'}


# What libtpu otherwise asks a server of the cloud for, for minutes where there
# is none; it has no say in what is compiled. Nor does it need to be alone on a
# machine, as it must where it drives TPUs: plans may be made side by side.
_WITHOUT_A_TPU = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
}


class Target(NamedTuple):
  """Devices to compile for, and what is known of who compiles.

  Attributes:
    platform: 'tpu', 'gpu', or 'cpu' for simulated devices.
    devices: All of the topology.
    compiler: What compiles, for the page.
    missing: The extra that would bring the topology's own compiler; '' where
      it is here, or there is none.
  """

  platform: str
  devices: Sequence[jax.Device]
  compiler: str
  missing: str = ''

  @property
  def real(self) -> bool:
    """Whether the topology's own compiler compiles."""
    return self.platform != 'cpu'

  @property
  def lowered_for(self) -> str:
    """What JAX calls the platform of its programs."""
    return 'cuda' if self.platform == 'gpu' else self.platform


def platform_of(topology: Topology) -> str:
  """Whose compiler a topology is planned with here: 'tpu', 'gpu' or 'cpu'."""
  platform = topology.chip.platform
  return platform if is_installed(platform) else 'cpu'


def is_installed(platform: str) -> bool:
  """Whether the compiler of TPUs or GPUs is here."""
  package = _PACKAGES.get(platform)
  return package is not None and importlib.util.find_spec(package) is not None


def find_target(topology: Topology, devices: int | None = None) -> Target:
  """The devices of a topology.

  Args:
    topology: Such as of `read_topology`.
    devices: Only so many of its chips, joined as closely as they come.

  Raises:
    ValueError: The slice has no known shape, there are fewer simulated devices
      (see `lora_opt.planning.plan.simulate`), or the compiler refuses.
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
  except Exception as error:  # of the plugin, of any type
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
  """The shape of a slice of TPUs, as even as it comes.

  Args:
    chips: A power of two.
    axes: 2 (v5e, v6e) or 3 (v4, v5p), of the network that joins them.

  Raises:
    ValueError: They do not make a slice.

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
  """Within it, JAX takes 'gpu' for CUDA without asking for a live GPU.

  JAX asks a backend which of CUDA and ROCm 'gpu' means (its issues 23971 and
  28376); without hardware there is none to answer.
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
