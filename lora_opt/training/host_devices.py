"""Enlarges the thread pool that simulated CPU devices share.

Each device takes a thread of the pool, and a LAPACK call on a batch of matrices
waits in it for further threads to do its parts. With as many threads as devices
they deadlock (jaxlib 0.10, seen with a debugger). So the pool is made larger.
"""

import os
import re

import jax


def simulated() -> int:
  """The number of CPU devices that this process is configured to have.

  It is set by --xla_force_host_platform_device_count in XLA_FLAGS, or by JAX's
  option jax_num_cpu_devices.
  """
  flag = re.findall(
    r'--xla_force_host_platform_device_count=(\d+)',
    os.environ.get('XLA_FLAGS', ''),
  )
  return int(flag[-1]) if flag else max(jax.config.jax_num_cpu_devices, 1)


def make_room(devices: int) -> None:
  """Makes the pool large enough; call it before JAX creates a device.

  A device can be in a LAPACK call and in a collective at the same time. XLA
  takes the size of the pool from NPROC, which is not changed if it is set.

  Args:
    devices: the number of devices of this process; for one nothing is done.
  """
  if devices > 1:
    threads = (os.cpu_count() or 1) + 2 * devices
    os.environ.setdefault('NPROC', str(threads))
