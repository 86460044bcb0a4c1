"""Chips with their published figures, and topologies made of them.

Figures are for one chip, which JAX shows as one device. They are peaks, which
no program reaches. GB are 10^9 bytes and GiB 2^30, as used by the vendor.
"""

import dataclasses
import os
import re
from collections.abc import Mapping

GB = 10**9
GiB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """The figures of a chip, as published by its vendor.

  Attributes:
    name: Name of the chip.
    memory: Size of its memory in bytes.
    flops: Dense bfloat16 operations per second; if None, no time is estimated.
    bandwidth: Bytes per second between the chip and its memory.
    network: Bytes per second that it can receive from the other chips of its
      island, over all of its links.
    island: Number of chips that this network joins.
    outside: Bytes per second that it can receive from other islands.
    cores_in_name: Number that a chip counts for in the name of a slice:
      v5p-128 has 128 cores, which are 64 chips.
    platform: Platform of the chip's own compiler: 'tpu', 'gpu', or '' if that
      compiler is not available.
    axes: Number of axes of the network within a slice of TPUs: 2 or 3.
    source: Where the figures are from.

  Raises:
    ValueError: A figure is not positive, or only some of flops, bandwidth and
      network are given.
  """

  name: str
  memory: float
  flops: float | None = None
  bandwidth: float | None = None
  network: float | None = None
  island: int = 1
  outside: float | None = None
  cores_in_name: int = 1
  platform: str = ''
  axes: int = 2
  source: str = ''

  def __post_init__(self):
    for field in ('memory', 'flops', 'bandwidth', 'network', 'outside'):
      value = getattr(self, field)
      if value is not None and not value > 0:
        raise ValueError(f'chip {self.name}: {field}={value} must be above 0')
    for field in ('island', 'cores_in_name'):
      if getattr(self, field) < 1:
        raise ValueError(
          f'chip {self.name}: {field}={getattr(self, field)} must be at least 1'
        )
    speeds = (self.flops, self.bandwidth, self.network)
    if len({speed is None for speed in speeds}) > 1:
      raise ValueError(
        f'chip {self.name}: give flops, bandwidth and network, or none of them'
      )


_DOCS = 'https://docs.cloud.google.com/tpu/docs'
# For TPUs, network is half of the bidirectional figure for their links.
CHIPS: Mapping[str, Chip] = {
  chip.name: chip
  for chip in (
    Chip(
      'v4',
      memory=32 * GiB,
      flops=275e12,
      bandwidth=1200 * GB,
      network=300 * GB,
      island=4096,
      cores_in_name=2,
      platform='tpu',
      axes=3,
      source=f'{_DOCS}/v4; links: arXiv 2304.01433, 6 of 50 GB/s',
    ),
    Chip(
      'v5e',
      memory=16 * GB,
      flops=197e12,
      bandwidth=819 * GB,
      network=200 * GB,
      island=256,
      outside=6400 / 8 / 256 * GB,
      platform='tpu',
      source=f'{_DOCS}/v5e',
    ),
    Chip(
      'v5p',
      memory=95 * GiB,
      flops=459e12,
      bandwidth=2765 * GB,
      network=600 * GB,
      island=8960,
      outside=50 / 8 * GB,
      cores_in_name=2,
      platform='tpu',
      axes=3,
      source=f'{_DOCS}/v5p',
    ),
    Chip(
      'v6e',
      memory=32 * GB,
      flops=918e12,
      bandwidth=1638 * GB,
      network=400 * GB,
      island=256,
      platform='tpu',
      source=f'{_DOCS}/v6e',
    ),
    # NVLink joins eight GPUs; outside is one network port of the DGX per GPU.
    Chip(
      'a100',
      memory=80 * GB,
      flops=312e12,
      bandwidth=2039 * GB,
      network=300 * GB,
      island=8,
      outside=200 / 8 * GB,
      platform='gpu',
      source='NVIDIA A100 80GB SXM and DGX A100 datasheets',
    ),
    Chip(
      'h100',
      memory=80 * GB,
      flops=989e12,
      bandwidth=3350 * GB,
      network=450 * GB,
      island=8,
      outside=400 / 8 * GB,
      platform='gpu',
      source='NVIDIA H100 SXM and DGX H100 datasheets, without sparsity',
    ),
  )
}
# Other names of chips.
_ALIASES = {'v5litepod': 'v5e', 'v5lite': 'v5e'}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A number of chips of one kind; `read_topology` makes one from its name.

  Attributes:
    chip: The kind of chip.
    devices: Total number of chips.
    slices: Number of TPU slices of equal size that the chips form; the network
      of the data centre joins them.

  Raises:
    ValueError: There are no chips, or they do not form equal slices.
  """

  chip: Chip
  devices: int
  slices: int = 1

  def __post_init__(self):
    if self.devices < 1:
      raise ValueError(f'devices={self.devices} must be at least 1')
    if self.slices < 1 or self.devices % self.slices:
      raise ValueError(
        f'{self.devices} devices do not make slices={self.slices} alike'
      )

  @property
  def name(self) -> str:
    """The number of slices if several, the chips in each, and their name."""
    slices = f'{self.slices}x' if self.slices > 1 else ''
    return f'{slices}{self.devices // self.slices}x{self.chip.name}'


def read_topology(name: str | Topology) -> Topology:
  """Reads the name of a topology; a `Topology` is returned unchanged.

  Args:
    name: '8xh100' for eight chips, or 'v5e-64' as the cloud names its slices.
      Names of v4 and v5p slices count cores, two per chip. '2xv5e-64' is two
      slices, '2x8xh100' two machines. 'cpu' is the memory of this machine,
      '8xcpu' an equal share of it for each of eight simulated devices.

  Raises:
    ValueError: The name or the chip is unknown, or a number of cores is not
      that of whole chips.

  >>> read_topology('8xH100').devices, read_topology('v5p-128').devices
  (8, 64)
  >>> read_topology('2xv5e-64').name
  '2x64xv5e'
  """
  if isinstance(name, Topology):
    return name
  text = name.strip().lower()
  for pattern in (
    r'(?:(?P<groups>\d{1,6})x)?(?P<count>\d{1,6})x(?P<chip>[a-z]\w*)',
    r'(?:(?P<groups>\d{1,6})x)?(?P<chip>[a-z]\w*)-(?P<cores>\d{1,6})',
    r'(?P<chip>[a-z]\w*)',
  ):
    if match := re.fullmatch(pattern, text):
      break
  else:
    raise ValueError(_unknown(name))
  found = match.groupdict()
  groups = int(found.get('groups') or 1)
  devices = int(found.get('count') or found.get('cores') or 1)
  chip = found['chip']
  if chip == 'cpu' and groups == 1:
    return Topology(_this_machine(max(devices, 1)), devices)
  chip = CHIPS.get(_ALIASES.get(chip, chip))
  if chip is None:
    raise ValueError(_unknown(name))
  if 'cores' in found:
    if devices % chip.cores_in_name:
      raise ValueError(
        f'topology {name!r}: its number counts cores, {chip.cores_in_name} to '
        f'a chip; {devices} of them are no whole number of chips'
      )
    devices //= chip.cores_in_name
  slices = groups if chip.platform == 'tpu' else 1
  return Topology(chip, groups * devices, slices)


def _unknown(name: str) -> str:
  return (
    f'topology {name!r}: write it as 8xh100, v5e-64 or 2xv5e-64, with one of '
    f'the chips {", ".join(CHIPS)} and cpu; another chip is a binding of its '
    'own, as docs/plan.md shows'
  )


def _this_machine(devices: int) -> Chip:
  memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return Chip('cpu', memory / devices, source='the memory of this machine')
