"""Makes the processes of a run listen only at the address that was given.

The communication of JAX's processes is neither encrypted nor authenticated:
whoever can reach these ports can end the run, and worse. See docs/scale.md.
"""

import contextlib
import functools
import ipaddress
import os
import socket


def bind_address(coordinator_address: str | None) -> str | None:
  """The address at which the first process listens; None leaves it to JAX.

  JAX's default is every address of the machine.

  Args:
    coordinator_address: host:port at which the others connect to it.

  Raises:
    ValueError: `coordinator_address` is not host:port.

  >>> bind_address('localhost:1234')
  'localhost:1234'
  """
  if not coordinator_address or 'JAX_COORDINATOR_BIND_ADDRESS' in os.environ:
    return None
  host, _ = _split(coordinator_address)
  if _is_of_this_machine(host):
    return coordinator_address
  # Such as the name of a service, where the machine has another address.
  return None


def is_loopback(coordinator_address: str | None) -> bool:
  """Whether only this machine can reach the address.

  >>> is_loopback('localhost:1234'), is_loopback('[::1]:1'), is_loopback(None)
  (True, True, False)
  """
  if not coordinator_address:
    return False
  host, _ = _split(coordinator_address)
  return bool(found := _addresses(host)) and all(
    ipaddress.ip_address(address).is_loopback for address in found
  )


def keep_collectives_local() -> bool:
  """Makes the collectives of CPUs listen only at the loopback address.

  Otherwise they listen at the address that the machine's hostname resolves to,
  which others may be able to reach. Call this before JAX looks for devices.

  Returns:
    Whether this version of JAX supports it.
  """
  try:
    # JAX has no public option for this.
    from jax._src import distributed, xla_bridge
    from jax._src.lib import _jax

    make_client = xla_bridge.make_cpu_client
    make_collectives = _jax.make_gloo_tcp_collectives
  except (ImportError, AttributeError):
    return False
  if os.environ.get('JAX_CPU_COLLECTIVES_IMPLEMENTATION', 'gloo') != 'gloo':
    return False
  collectives = make_collectives(
    distributed_client=distributed.global_state.client, hostname='localhost'
  )
  xla_bridge.register_backend_factory(
    'cpu',
    functools.partial(make_client, collectives=collectives),
    priority=0,
    fail_quietly=False,
  )
  return True


def _split(address: str) -> tuple[str, int]:
  host, _, port = address.rpartition(':')
  if not host or not port.isascii() or not port.isdecimal():
    raise ValueError(
      f'--coordinator_address={address!r} is not host:port, such as '
      'localhost:1234'
    )
  number = int(port) if len(port) < 6 else 0
  if not 0 < number < 2**16:
    raise ValueError(f'--coordinator_address={address!r}: a port is 1 to 65535')
  return host.strip('[]'), number


def _addresses(host: str) -> set[str]:
  try:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
  except OSError:
    return set()
  return {address[0].partition('%')[0] for *_, address in found}


def _is_of_this_machine(host: str) -> bool:
  """Whether a socket can be bound to every address of the host."""
  found = _addresses(host)
  for address in found:
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as server:
      try:
        server.bind((address, 0))
      except OSError:
        return False
  return bool(found)
