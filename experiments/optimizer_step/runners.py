"""What is timed: one optimizer step of ours, of optax, of the authors."""

import subprocess
import time

import jax
import jax.numpy as jnp
import optax


class JaxRunner:
  """A compiled, donated step: update and apply."""

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
  """A worker process under another Python; it answers one line per step."""

  compile_seconds = None

  def __init__(self, command: list[str]):
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      bufsize=1,
    )
    self.state_bytes = None
    self.state_bytes = int(self._answer())

  def __call__(self) -> float:
    self._process.stdin.write('step\n')
    return float(self._answer())

  def _answer(self) -> str:
    while line := self._process.stdout.readline():
      # The authors' constructors print, too.
      if line.startswith('answer '):
        return line.split()[1]
    raise RuntimeError(
      f'{self._process.args} ended with code {self._process.wait()}; its own '
      'message stands above'
    )

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()
