"""Simulated devices that all call LAPACK on many matrices at once."""

import os
import subprocess
import sys

import jax
import pytest

from lora_opt.training import host_devices

FLAG = '--xla_force_host_platform_device_count=8'
# As many pairs as SmolLM2 has. Without room this waits for ever.
PROGRAM = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import lora_opt
from lora_opt.training import host_devices

host_devices.make_room(host_devices.simulated())
mesh = jax.make_mesh((8,), ('fsdp',), axis_types=(AxisType.Auto,))
keys = iter(jax.random.split(jax.random.key(0), 14))

def factor(shape, *axes):
  x = jax.random.normal(next(keys), shape)
  return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))

params = {
  name: {
    'lora_a': factor((30, 64, 16), None, 'fsdp'),
    'lora_b': factor((30, 16, 64), None, None, 'fsdp'),
  }
  for name in 'qkvogud'
}
tx = lora_opt.lora_rite(0.01)
state = jax.jit(tx.init)(params)
step = jax.jit(tx.update)
for _ in range(3):
  updates, state = step(params, state, params)
assert jnp.all(jnp.isfinite(updates['q']['lora_a']))
"""


def test_every_device_factors_every_pair():
  environment = {k: v for k, v in os.environ.items() if k != 'NPROC'}
  environment |= {'XLA_FLAGS': FLAG, 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  subprocess.run(
    [sys.executable, '-c', PROGRAM], env=environment, check=True, timeout=120
  )


def test_devices_are_those_of_the_flag_or_of_the_setting(monkeypatch):
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  assert host_devices.simulated() == max(jax.config.jax_num_cpu_devices, 1)
  monkeypatch.setenv('XLA_FLAGS', f'--xla_dump_to=x {FLAG}')
  assert host_devices.simulated() == 8


@pytest.mark.parametrize('given', [None, '3'])
def test_room_is_made_unless_its_size_is_given(monkeypatch, given):
  monkeypatch.setenv('NPROC', '')  # put back at the end
  monkeypatch.delenv('NPROC')
  host_devices.make_room(1)
  assert 'NPROC' not in os.environ
  if given:
    monkeypatch.setenv('NPROC', given)
  host_devices.make_room(8)
  assert os.environ['NPROC'] == given or int(os.environ['NPROC']) > 16
