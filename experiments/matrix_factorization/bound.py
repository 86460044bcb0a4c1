"""One gradient step from (A S^(1/2), B S^(-1/2)): the loss and its bound.

All S give the same A B^T, but a step of size eta ends elsewhere for each. For a
loss of smoothness L with gradient G at A B^T, and D the change of A B^T,

  loss(A B^T + D) <= loss(A B^T) + <G, D> + L |D|^2 / 2

is the bound. RefLoRA takes the S that brings |A S^(1/2)|^2 + |B S^(-1/2)|^2
closest to 1 / (L eta). This is the balanced S if the sum cannot get that small,
and a multiple of it otherwise.

The loss is the sum of log cosh of the elements of A B^T - Y, with L = 1.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lora_opt import linalg

FAN_IN, FAN_OUT, RANK = 12, 10, 3
SIZES = np.linspace(0.0, 0.8, 201)  # eta; 0 itself is left out
# Powers of the optimal S at a fixed eta: 0 is LoRA, 1 the refactored pair.
POWERS = np.linspace(-1.0, 3.0, 81)
FIXED_SIZES = (0.02, 0.05, 0.1)


def make_problem(seed):
  """An unbalanced pair with a large A, and its target Y."""
  keys = jax.random.split(jax.random.key(seed), 3)
  a = jax.random.normal(keys[0], (FAN_IN, RANK))
  b = 0.3 * jax.random.normal(keys[1], (FAN_OUT, RANK))
  return a, b, a @ b.T + 0.2 * jax.random.normal(keys[2], (FAN_IN, FAN_OUT))


def loss_fn(w, y):
  # log cosh x without overflow.
  x = jnp.abs(w - y)
  return jnp.sum(x + jnp.log1p(jnp.exp(-2 * x)) - jnp.log(2.0))


def after_step(a, b, y, s, eta):
  """(loss, bound) after one step of SGD on the pair refactored by S."""
  gradient = jax.grad(loss_fn)(a @ b.T, y)
  # S takes the place of P P^T, and cancels in the second-order term.
  left = a @ s @ a.T @ gradient
  right = gradient @ b @ jnp.linalg.solve(s, b.T)
  change = -eta * (left + right) + eta**2 * gradient @ b @ a.T @ gradient
  bound = loss_fn(a @ b.T, y) + jnp.sum(gradient * change)
  bound += jnp.sum(jnp.square(change)) / 2
  return loss_fn(a @ b.T + change, y), bound


def balanced(a, b):
  """The S of the balanced pair, and the nuclear norm of A B^T."""
  s, _ = linalg.geometric_mean_pair((a.T @ a)[None], (b.T @ b)[None])
  return s[0], jnp.trace(a @ s[0] @ a.T)


def reflora(a, b, eta):
  """RefLoRA's S for this step size."""
  s, nuclear = balanced(a, b)
  # c + 1 / c = 1 / (eta * nuclear), if that is at least two; c >= 1 is taken.
  half = jnp.maximum(1 / (2 * eta * nuclear), 1.0)
  return (half + jnp.sqrt(half**2 - 1)) * s


def power(s, exponent):
  values, vectors = jnp.linalg.eigh(s)
  return (vectors * values**exponent) @ vectors.T


def curves(seed):
  """All data that both plots need, for one problem."""
  a, b, y = make_problem(seed)
  start = loss_fn(a @ b.T, y)
  s, nuclear = balanced(a, b)
  eye = jnp.eye(RANK)
  sizes = jnp.asarray(SIZES[1:])

  def at(change):
    return jax.vmap(lambda eta: after_step(a, b, y, change(eta), eta))(sizes)

  def along(eta):
    def one(exponent):
      return after_step(a, b, y, power(s, exponent), eta)

    return jax.vmap(one)(jnp.asarray(POWERS))

  lora, lora_bound = at(lambda eta: eye)
  own, own_bound = at(lambda eta: s)
  ref, ref_bound = at(lambda eta: reflora(a, b, eta))
  powers, powers_bound = jax.vmap(along)(jnp.asarray(FIXED_SIZES))
  return {
    'start': start, 'kink': 1 / (2 * nuclear),
    'lora': lora, 'lora_bound': lora_bound,
    'balanced': own, 'balanced_bound': own_bound,
    'reflora': ref, 'reflora_bound': ref_bound,
    'powers': powers, 'powers_bound': powers_bound,
  }  # fmt: skip


def summary(c):
  """Best step sizes and losses of one problem, relative to the start."""
  row = {'kink': c['kink']}
  for name in ('lora', 'balanced', 'reflora'):
    loss, bound = c[name] / c['start'], c[f'{name}_bound'] / c['start']
    row |= {
      f'{name}_size': SIZES[1:][np.argmin(loss)],
      f'{name}_loss': loss.min(),
      f'{name}_bound': bound.min(),
      # The largest step sizes that lower the loss, or for which the bound
      # shows that they do.
      f'{name}_stable': SIZES[1:][loss < 1].max(),
      f'{name}_safe': SIZES[1:][bound < 1].max(initial=0),
    }
  row['best_power'] = POWERS[np.argmin(c['powers'], axis=1)]
  row['best_power_bound'] = POWERS[np.argmin(c['powers_bound'], axis=1)]
  return row


def rows(seeds):
  """The curves of the first problem, then a summary of each."""
  made = jax.jit(jax.vmap(curves))(jnp.arange(seeds))
  made = jax.tree.map(np.asarray, made)
  each = [{k: v[seed] for k, v in made.items()} for seed in range(seeds)]
  shown = {k: v for k, v in each[0].items() if k not in ('start', 'kink')}
  yield {k: v / each[0]['start'] for k, v in shown.items()}
  yield from map(summary, each)
