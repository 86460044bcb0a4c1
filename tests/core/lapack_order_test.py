"""Every LAPACK call of a step waits for the one before it.

Independent batched calls in one jitted function can wait for each other for
ever on CPU (see `lora_opt.linalg`), once in hundreds of steps. That none are
independent can be seen in the jaxpr: of any two, one must depend on the other.
"""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import pytest

import lora_opt
from lora_opt import diagnostics
from tests.core import problems

LAPACK = {
  'cholesky', 'eigh', 'qr', 'geqrf', 'householder_product', 'lu', 'svd',
  'triangular_solve',
}  # fmt: skip

INLINED = {'jit', 'pjit', 'closed_call', 'custom_jvp_call', 'custom_vjp_call'}

RECIPES = problems.RECIPES | {
  'lora_rite, all options': lambda rate: lora_opt.lora_rite(
    rate, escaped_mass='eigenvalues', cap_rms=1.0, rebalance=True
  ),
  'lora_rite, as the authors': lambda rate: lora_opt.lora_rite(
    rate, escaped_mass=None, skip_rms=1.0, max_relative_step=None
  ),
  'reflora real, now and then': functools.partial(
    lora_opt.reflora, refactoring='real', every=3, warmup_steps=2
  ),
}


class Calls:
  """The LAPACK calls of a jaxpr, and which of them wait for which others.

  A branch or loop that holds calls counts as one: it waits for all that goes
  in. Within it they are looked at apart.
  """

  def __init__(self, jaxpr):
    self.names, self.unordered = [], []
    self._read(jaxpr, [frozenset()] * len(jaxpr.invars))

  def _read(self, jaxpr, inputs):
    """What every output waits for, given what every input waits for."""
    waits, same = dict(zip(jaxpr.invars, inputs, strict=True)), {}

    def of(atoms):
      return [
        frozenset() if isinstance(a, jax.extend.core.Literal)
        else waits.get(a, frozenset())
        for a in atoms
      ]  # fmt: skip

    for equation in jaxpr.eqns:
      inner = list(jax.extend.core.jaxprs_in_params(equation.params))
      name, sources = equation.primitive.name, of(equation.invars)
      if name == 'stop_gradient':
        same |= {equation.outvars[0]: equation.invars[0]}
      cases = equation.invars[1:]
      if name == 'select_n' and len({same.get(v, v) for v in cases}) == 1:
        sources = sources[1:]  # vmap writes so, and XLA sees through it
      if name in INLINED:
        outputs = self._read(inner[0], sources)
      else:
        met = frozenset().union(*sources)
        parts = [Calls(jaxpr) for jaxpr in inner]
        if name in LAPACK or any(part.names for part in parts):
          met = self._note(name, met, parts)
        outputs = [met] * len(equation.outvars)
      waits |= dict(zip(equation.outvars, outputs, strict=True))
    return of(jaxpr.outvars)

  def _note(self, name, met, parts):
    self.unordered += [
      (other, name) for i, other in enumerate(self.names) if i not in met
    ]
    self.unordered += [pair for part in parts for pair in part.unordered]
    self.names.append(name)
    return met | {len(self.names) - 1}


@pytest.mark.parametrize('name', RECIPES)
def test_calls_of_a_step_are_in_order(name):
  tx = RECIPES[name](problems.RATES.get(name, 0.05))
  params = problems.mixed_tree()
  step = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
  assert Calls(step.jaxpr).unordered == []


@pytest.mark.parametrize('name', RECIPES)
def test_calls_of_many_steps_at_once_are_in_order(name):
  """Under vmap both sides of a branch are computed, whatever its condition."""
  tx = RECIPES[name](problems.RATES.get(name, 0.05))
  params = jax.tree.map(lambda x: jnp.stack([x, x]), problems.mixed_tree())
  state = jax.vmap(tx.init)(params)
  steps = jax.make_jaxpr(jax.vmap(tx.update))(params, state, params)
  assert Calls(steps.jaxpr).unordered == []


def test_calls_of_a_diagnosis_are_in_order():
  params = problems.mixed_tree()
  diagnose = jax.make_jaxpr(diagnostics.diagnose)(params, params)
  assert Calls(diagnose.jaxpr).unordered == []


def test_independent_calls_are_found():
  def two(x, y):
    return jnp.linalg.cholesky(x), jnp.linalg.eigh(y)

  def one_after_the_other(x, y):
    return jnp.linalg.eigh(jnp.linalg.cholesky(x) + y)

  x = jnp.eye(3)
  calls = Calls(jax.make_jaxpr(two)(x, x).jaxpr)
  assert calls.unordered == [('cholesky', 'eigh')]
  calls = Calls(jax.make_jaxpr(one_after_the_other)(x, x).jaxpr)
  assert calls.names == ['cholesky', 'eigh'] and not calls.unordered
