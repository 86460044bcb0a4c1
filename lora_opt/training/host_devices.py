"""Devices that are simulated on a CPU share one pool of threads.

Each device takes a thread of it, and a LAPACK call on a batch of matrices
waits there for threads that do its parts: with as many threads as devices, all
wait for ever (jaxlib 0.10, seen with a debugger). So the pool is made larger.
"""

import os
import re

import jax


def simulated() -> int:
  """How many CPU devices this process was told to have.

  By --xla_force_host_platform_device_count in XLA_FLAGS, or by JAX's setting
  jax_num_cpu_devices.
  """
  flag = re.findall(
    r'--xla_force_host_platform_device_count=(\d+)',
    os.environ.get('XLA_FLAGS', ''),
  )
  return int(flag[-1]) if flag else max(jax.config.jax_num_cpu_devices, 1)


def make_room(devices: int) -> None:
  """Gives the pool threads enough, before JAX makes its first device.

  A device can be in a LAPACK call and in a collective at once. NPROC, from
  which XLA takes the size of the pool, is left as it is if it is set.

  Args:
    devices: of this process; nothing is done for one.
  """
  if devices > 1:
    threads = (os.cpu_count() or 1) + 2 * devices
    os.environ.setdefault('NPROC', str(threads))
