"""Timed optimizer steps: of this library, of optax and of the authors' code."""

import time

import jax
import jax.numpy as jnp
import optax

from experiments.worker import Worker


class JaxRunner:
  """A compiled step with donated arguments: update and apply."""

  def __init__(self, tx: optax.GradientTransformation, params, gradients):
    self._params = jax.tree.map(jnp.copy, params)
    self._gradients = gradients
    self._state = jax.jit(tx.init)(self._params)
    self.state_bytes = sum(x.nbytes for x in jax.tree.leaves(self._state))

    def step(params, state, gradients):
      updates, state = tx.update(gradients, state, params)
      return optax.apply_updates(params, updates), state

    start = time.perf_counter()
    self._step = (
      jax.jit(step, donate_argnums=(0, 1))
      .lower(self._params, self._state, self._gradients)
      .compile()
    )
    self.compile_seconds = time.perf_counter() - start

  def __call__(self) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    self._params, self._state = self._step(
      self._params, self._state, self._gradients
    )
    jax.block_until_ready((self._params, self._state))
    return time.perf_counter() - start


class TorchRunner:
  """A step of `torch_worker.py`, in a process under another Python."""

  compile_seconds = None

  def __init__(self, command: list[str]):
    self._worker = Worker(command)
    self.state_bytes = self._worker.ask('state')

  def __call__(self) -> float:
    """Seconds of one step."""
    return self._worker.ask('step')

  def close(self) -> None:
    self._worker.close()
