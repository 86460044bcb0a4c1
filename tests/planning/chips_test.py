"""Chips and topologies by name, and what is said of a wrong one."""

import pytest

from lora_opt.planning.chips import CHIPS, GB, Chip, Topology, read_topology
from lora_opt.planning.costs import Collective, Costs
from lora_opt.planning.timing import ASSUMED, Utilisation, step_time


@pytest.mark.parametrize(
  ('name', 'chip', 'devices'),
  [
    ('v5e-64', 'v5e', 64),
    ('v5litepod-16', 'v5e', 16),
    ('v5p-128', 'v5p', 64),
    ('64xv5p', 'v5p', 64),
    ('v4-8', 'v4', 4),
    ('v6e-1', 'v6e', 1),
    ('8xH100', 'h100', 8),
    (' a100-8 ', 'a100', 8),
    ('h100', 'h100', 1),
    ('4xcpu', 'cpu', 4),
  ],
)
def test_names(name, chip, devices):
  topology = read_topology(name)
  assert (topology.chip.name, topology.devices) == (chip, devices)


def test_simulated_devices_share_the_memory_of_this_machine():
  one, four = read_topology('cpu').chip, read_topology('4xcpu').chip
  assert four.memory == one.memory / 4
  assert one.flops is None


@pytest.mark.parametrize('name', ['', 'v5e_64', 'x8', '8xb200', 'v9-4', '8x'])
def test_an_unknown_name_lists_the_known(name):
  with pytest.raises(ValueError, match='8xh100, v5e-64 or .*v5p, v6e'):
    read_topology(name)


def test_cores_that_are_no_whole_chips():
  with pytest.raises(ValueError, match='counts cores, 2 to a chip; 7'):
    read_topology('v5p-7')


def test_no_devices():
  with pytest.raises(ValueError, match='devices=0'):
    read_topology('0xh100')


@pytest.mark.parametrize('chip', CHIPS.values(), ids=lambda chip: chip.name)
def test_figures_are_of_the_right_size(chip):
  assert 10 * GB < chip.memory < 300 * GB
  assert 1e14 < chip.flops < 1e16
  # From the memory a chip reads faster than from others, and those of its
  # island faster than what is beyond.
  assert 0.5e12 < chip.bandwidth < 1e13
  assert 100 * GB < chip.network < chip.bandwidth
  assert chip.outside is None or chip.outside < chip.network
  assert chip.source


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'memory': 0}, 'memory=0 must be above 0'),
    ({'memory': 1, 'flops': 1}, 'flops, bandwidth and network, or none'),
    ({'memory': 1, 'island': 0}, 'island=0'),
  ],
)
def test_a_chip_that_cannot_be(settings, message):
  with pytest.raises(ValueError, match=message):
    Chip('mine', **settings)


def test_a_utilisation_that_cannot_be():
  with pytest.raises(ValueError, match=r'network=1.5'):
    Utilisation(network=1.5)


def costs(*groups):
  """1e12 operations, 1e10 bytes, a sum of 1e9 bytes within each of groups."""
  sums = (Collective('all-reduce', 10**9, 1, 1, g, 'x') for g in groups)
  return Costs(1e12, 1e10, 0, tuple(sums))


def test_the_slowest_part_is_the_step():
  chip = Chip('mine', 1e9, flops=1e13, bandwidth=1e12, network=1e11, island=2)
  everything = Utilisation(1.0, 1.0, 1.0)
  time = step_time(costs([[0, 1], [2, 3]]), chip, everything)
  # A ring of two sends each half of the array twice.
  assert (time.compute, time.memory, time.network) == (0.1, 0.01, 0.01)
  assert time.hidden == 0.1 and time.exposed == pytest.approx(0.11)
  assert time.bound == 'compute'
  half = step_time(costs([[0, 1]]), chip, Utilisation(0.5, 1.0, 1.0))
  assert half.compute == 0.2


def test_what_leaves_an_island_is_slower():
  settings = {'flops': 1e13, 'bandwidth': 1e12, 'network': 1e11, 'island': 2}
  chip = Chip('mine', 1e9, outside=1e10, **settings)
  inside = step_time(costs([[0, 1], [2, 3]]), chip, ASSUMED).network
  across = step_time(costs([[0, 2], [1, 3]]), chip, ASSUMED).network
  assert across == pytest.approx(10 * inside)
  with pytest.raises(ValueError, match='give the speed of that as `outside`'):
    step_time(costs([[0, 2]]), Chip('mine', 1e9, **settings), ASSUMED)


def test_a_topology_of_ones_own_chip():
  topology = Topology(Chip('mine', 8 * GB), devices=3)
  assert topology.name == '3xmine'
