"""The methods in NumPy, float64, written from the papers. Slow and plain.

Every class takes lists of pairs, A (m, r) and B (n, r), both tall, and
`step(gradients)` returns the new pairs. Conventions of the authors' code (the
average over m, the decay of the escaped mass) are named where they are used.
"""

import dataclasses

import numpy as np


def spd_power(x, power):
  """x^power of a symmetric positive definite matrix."""
  values, vectors = np.linalg.eigh(x)
  return (vectors * values**power) @ vectors.T


def geometric_mean(x, y):
  """The geometric mean x # y."""
  root, inverse = spd_power(x, 0.5), spd_power(x, -0.5)
  return root @ spd_power(inverse @ y @ inverse, 0.5) @ root


def bias_corrected(decay, t):
  return decay * (1 - decay ** (t - 1)) / (1 - decay**t)


def polar(x):
  """Polar basis and magnitude."""
  u, s, vt = np.linalg.svd(x, full_matrices=False)
  return u @ vt, (vt.T * s) @ vt


@dataclasses.dataclass
class LoraRite:
  """LoRA-RITE (arXiv 2410.20625), full-rank factors only."""

  learning_rate: float
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-6
  weight_decay: float = 0.0
  clip_norm: float | None = 1.0
  skip_rms: float | None = None
  cap_rms: float | None = None
  escaped_mass: bool = False
  rebalance: bool = False
  basis: str = 'qr'

  def __post_init__(self):
    self.t = 0
    self.state = {}

  def step(self, pairs, gradients):
    self.t += 1
    decompose = np.linalg.qr if self.basis == 'qr' else polar
    plan = []  # one entry per factor
    for k, (pair, gradient) in enumerate(zip(pairs, gradients, strict=True)):
      for f in (0, 1):
        u, r = decompose(pair[1 - f])
        g = gradient[f] @ np.linalg.inv(r)
        if self.skip_rms and np.sqrt(np.mean(g**2)) > self.skip_rms:
          g = np.zeros_like(g)
        plan.append([(k, f), u, r, g])
    norm = np.sqrt(sum(np.sum(g**2) for *_, g in plan))
    new = [list(pair) for pair in pairs]
    for (k, f), u, r, g in plan:
      if self.clip_norm and norm > self.clip_norm:
        g = g * self.clip_norm / norm
      moved = self._moments((k, f), u, g) @ np.linalg.inv(r).T
      x = pairs[k][f]
      new[k][f] = x - self.learning_rate * (moved + self.weight_decay * x)
    if self.rebalance:
      new = [_equal_norms(a, b) for a, b in new]
    return [tuple(pair) for pair in new]

  def _moments(self, key, u, g):
    m, r = g.shape
    zero = np.zeros_like(u), np.zeros((r, r)), np.zeros((m, r)), 0.0
    u_old, v, momentum, rho = self.state.get(key, zero)
    d1, d2 = bias_corrected(self.b1, self.t), bias_corrected(self.b2, self.t)
    p = u.T @ u_old
    carried = p @ v @ p.T
    if self.escaped_mass:
      lost = np.linalg.eigvalsh(v) - np.linalg.eigvalsh(carried)
      lost = min(max(lost.max(), 0), max(np.trace(v) - np.trace(carried), 0))
      rho = d2 * (rho + lost)  # the code's decay
    v = d2 * carried + (1 - d2) * g.T @ g / m  # the code's average
    values, vectors = np.linalg.eigh(v)
    root = 1 / (np.sqrt(np.maximum(values, 0) + rho) + self.eps)
    s = g @ (vectors * root) @ vectors.T
    momentum = d1 * momentum @ p.T + (1 - d1) * s
    self.state[key] = u, v, momentum, rho
    if self.cap_rms:
      rms = np.sqrt(np.mean(momentum**2))
      return momentum / max(1, rms / self.cap_rms)
    return momentum


def _equal_norms(a, b):
  na, nb = np.linalg.norm(a) + 1e-6, np.linalg.norm(b) + 1e-6
  both = np.sqrt(na * nb)
  return a * both / na, b * both / nb


@dataclasses.dataclass
class Adam:
  """AdamW on every factor; LoRA+ with a ratio."""

  learning_rate: float
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  lr_ratio: float = 1.0

  def __post_init__(self):
    self.t = 0
    self.mu, self.nu = {}, {}

  def precondition(self, pair, gradient):
    del pair
    return gradient

  def step(self, pairs, gradients):
    self.t += 1
    new = []
    for k, (pair, raw) in enumerate(zip(pairs, gradients, strict=True)):
      gradient = self.precondition(pair, raw)
      both = []
      for f in (0, 1):
        g, key = gradient[f], (k, f)
        self.mu[key] = self.b1 * self.mu.get(key, 0) + (1 - self.b1) * g
        self.nu[key] = self.b2 * self.nu.get(key, 0) + (1 - self.b2) * g**2
        mu = self.mu[key] / (1 - self.b1**self.t)
        nu = self.nu[key] / (1 - self.b2**self.t)
        move = mu / (np.sqrt(nu) + self.eps) + self.weight_decay * pair[f]
        rate = self.learning_rate * (self.lr_ratio if f else 1)
        both.append(pair[f] - rate * move)
      new.append(tuple(both))
    return new


@dataclasses.dataclass
class RefLora(Adam):
  """RefLoRA (arXiv 2505.18877), full-rank factors only."""

  warmup_steps: int = 0
  every: int = 1

  def precondition(self, pair, gradient):
    since = self.t - 1 - self.warmup_steps
    if since < 0 or since % self.every:
      return gradient
    a, b = pair
    s = geometric_mean(np.linalg.inv(a.T @ a), b.T @ b)
    return gradient[0] @ np.linalg.inv(s), gradient[1] @ s


@dataclasses.dataclass
class RefLoraS(Adam):
  """RefLoRA-S: really rescales, with Adam's moments."""

  warmup_steps: int = 0
  every: int = 1

  def _due(self):
    since = self.t - self.warmup_steps
    return since >= 0 and since % self.every == 0

  def _rescale(self, pairs):
    new = []
    for k, (a, b) in enumerate(pairs):
      s = np.linalg.norm(b) / np.linalg.norm(a)
      for f, factor in ((0, s), (1, 1 / s)):
        if (k, f) in self.mu:
          self.mu[k, f] = self.mu[k, f] / np.sqrt(factor)
          self.nu[k, f] = self.nu[k, f] / factor
      new.append((a * np.sqrt(s), b / np.sqrt(s)))
    return new

  def start(self, pairs):
    """The pairs that training starts from."""
    return self._rescale(pairs) if self._due() else pairs

  def step(self, pairs, gradients):
    pairs = super().step(pairs, gradients)
    return self._rescale(pairs) if self._due() else pairs


@dataclasses.dataclass
class Polora:
  """PoLoRA (arXiv 2607.17620), roots and norms by SVD and eigenvectors."""

  learning_rate: float
  b1: float = 0.9
  b2: float = 0.99
  eps: float = 1e-12
  damping: float = 1e-4
  weight_decay: float = 0.0
  half_each: bool = False
  max_relative_step: float | None = 0.1

  def __post_init__(self):
    self.mu, self.curvature = {}, {}

  def lengths(self, pair):
    """The spectral norms of the steps of A and B."""
    size_a, size_b = (np.linalg.norm(x, 2) for x in pair)
    if not self.half_each:
      return (self.learning_rate / (size_a + size_b),) * 2
    limit = self.max_relative_step
    return (
      min(
        self.learning_rate / size_b / 2 if size_b else np.inf,
        np.inf if limit is None else limit * size_a,
      ),
      self.learning_rate / size_a / 2,
    )

  def step(self, pairs, gradients):
    new = []
    for k, (pair, gradient) in enumerate(zip(pairs, gradients, strict=True)):
      metric, root = [], []
      for f in (0, 1):
        q = self.curvature.setdefault((k, f), np.full(len(pair[f]), self.eps))
        metric.append(q / np.max(q) + self.damping)
        c = (pair[f].T * metric[f]) @ pair[f]
        shift = max(self.damping * np.linalg.norm(c, 2), self.eps)
        root.append(spd_power(c + shift * np.eye(len(c)), -0.5))
      lengths = self.lengths(pair)
      both = []
      for f in (0, 1):
        x, g, across = pair[f], gradient[f], root[1 - f]
        mu = self.b1 * self.mu.get((k, f), 0) + (1 - self.b1) * g
        self.mu[k, f] = mu
        ahead = self.b1 * mu + (1 - self.b1) * g
        along = metric[f][:, None] ** -0.5
        u, _, vt = np.linalg.svd(along * ahead @ across, full_matrices=False)
        step = along * (u @ vt) @ across
        step = lengths[f] * step / np.linalg.norm(step, 2)
        both.append(x - step - self.learning_rate * self.weight_decay * x)
        seen = np.sum(g * (g @ across @ across), axis=1) / g.shape[1]
        q = self.curvature[k, f]
        self.curvature[k, f] = self.b2 * q + (1 - self.b2) * seen
      new.append(tuple(both))
    return new
