"""The runs of the study, the most informative first, and which one is next.

The learning rate of a setting is swept with seed 0, in powers of 1.6. A sweep
begins at the best rate of the nearest setting and grows until the best rate has
a worse neighbour on both sides. If the width of the good range is wanted, it
grows until both ends of that range are inside. The best rate is then run with
more seeds.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.small_lm.methods import start_of

STEP = 1.6  # from one learning rate to the next
# A rate is good if its loss is at most this much (nats a token) above the best.
GOOD = 0.02
# A sweep goes at most this many powers away from where it began.
FARTHEST = 16


class Setting(NamedTuple):
  """How a run is trained, except for learning rate and seed."""

  method: str
  domain: str = 'gsm8k'
  width: int = 128
  rank: int = 8
  alpha: float = 16.0
  batch: int = 8  # windows of 64 tokens
  steps: int = 300
  schedule: str = 'cosine'  # see SCHEDULES in finetune.py


class Cell(NamedTuple):
  """A setting, and what is wanted of it."""

  setting: Setting
  seeds: int = 5
  wide: bool = False  # whether both ends of the good range are wanted


CORE = (
  'adamw', 'lora_plus', 'lora_rite', 'reflora', 'polora', 'recommended',
  'lora_muon',
)  # fmt: skip
# The steps that these need are also measured on other texts and ranks.
FEWER_STEPS = ('adamw', 'polora', 'recommended', 'lora_muon')
FEW = ('adamw', 'lora_rite', 'recommended')
FULL = ('full adamw', 'full muon')
MORE = (
  'reflora, real', 'reflora_s', 'muon', 'scaled_adamw', 'lora_pro', 'altlora',
  'lora_fa', 'lamb', 'shampoo', 'balanced(adamw)', 'scaled_gd',
)  # fmt: skip
VARIANTS = (
  'lora_rite, clip: none', 'lora_rite, clip: 0.1', 'lora_rite, V: sums',
  'lora_rite, escaped mass: none', 'lora_rite, cold start: no limit',
  'lora_rite, cold start: limit 0.1', 'lora_rite, cold start: limit 1',
  'lora_rite, cold start: B of 0.01', 'lora_rite, b1: 0',
  'lora_rite, b2: 0.99', "lora_rite, authors' code",
  'lora_rite, rows of equal size',
  'reflora, virtual, warm-up 50', 'reflora, virtual, any spread',
  'polora, steps of equal length', 'lora_muon, steps of equal length',
  'polora, b1: 0.95', 'polora, b1: 0.8', 'polora, b2: 0.95',
  'polora, b2: 0.999', 'polora, damping: 0.01', 'polora, damping: 0.1',
  'polora, B 4 times as fast', 'polora, A 4 times as fast',
  'polora, half each', 'recommended, b1: 0.9', 'recommended, b1: 0.7',
)  # fmt: skip
# Averages, and what each is an average of.
AVERAGED = {
  'averaged(adamw)': 'adamw',
  'averaged(recommended)': 'recommended',
}
# The variants that are run on all texts and ranks.
EVERYWHERE = ('polora, steps of equal length', 'recommended, b1: 0.9')
OTHERS = ('python', 'super_ni')


def cells() -> list[Cell]:
  """The whole study, in the order in which it is run."""
  none = Setting('none', rank=0, alpha=0.0, batch=0, steps=0, schedule='none')
  plan = [Cell(none, seeds=1)]

  def add(methods, seeds=5, wide=False, **changes):
    for method in methods:
      setting = Setting(method)._replace(**changes)
      if method in FULL:
        setting = setting._replace(rank=0, alpha=0.0)
      plan.append(Cell(setting, seeds, wide))

  def of_rank(rank):
    return {'rank': rank, 'alpha': 2.0 * rank}

  others = (of_rank(2), of_rank(32), *({'domain': d} for d in OTHERS))
  plan += [Cell(none._replace(domain=domain), seeds=1) for domain in OTHERS]
  # Most come twice: first with few seeds, so that comparisons come early.
  add(CORE, seeds=3)
  add(CORE, wide=True)
  add(CORE, schedule='constant')
  add(FULL)
  for changes in others:
    add(CORE, seeds=3, **changes)
  for changes in others:
    add(EVERYWHERE, seeds=3, **changes)
    add(FEWER_STEPS, seeds=3, schedule='constant', **changes)
  add(VARIANTS, seeds=3)
  # There LoRA-RITE is above AdamW, and PoLoRA gains least.
  rest = [name for name in VARIANTS if name not in EVERYWHERE]
  add(rest, seeds=3, **of_rank(2))
  for steps in (100, 1000):
    add(CORE, seeds=3, steps=steps)
  # There seeds differ most.
  add(('adamw', 'polora', 'recommended'), steps=1000)
  plan.append(Cell(none._replace(width=64), seeds=1))
  add(CORE, seeds=3, width=64)
  for alpha in (4.0, 64.0):
    add(CORE, seeds=3, alpha=alpha)
  for changes in ({}, *others):
    add(AVERAGED, seeds=3, schedule='constant', **changes)
  add(FEW, seeds=3, batch=32)
  add(MORE, seeds=3)
  add(FULL, seeds=3, steps=1000)
  add(('adamw', 'recommended'), seeds=3, steps=3000)
  for schedule in ('linear', 'cool-down'):
    add(('adamw', 'recommended'), seeds=3, schedule=schedule)
  for changes in others:
    add(FEW, **changes)
    add(('adamw', 'recommended'), schedule='constant', **changes)
  return plan


def part_of(plan: list[Cell], part: int, parts: int) -> list[Cell]:
  """The cells of every `parts`-th setting, so that parts share no runs."""
  settings = list(dict.fromkeys(cell.setting for cell in plan))
  own = set(settings[part::parts])
  return [cell for cell in plan if cell.setting in own]


def rate_of(power: int) -> float:
  """The learning rate.

  >>> rate_of(0), round(rate_of(-10), 6)
  (1.0, 0.009095)
  """
  return STEP**power


Found = Mapping[tuple[int, int], float]  # (power, seed) -> loss
Runs = Mapping[tuple[int, int], dict[str, Any]]  # (power, seed) -> row


def next_run(cell: Cell, found: Found, start: int) -> tuple[int, int] | None:
  """(power, seed) of the next run that a cell needs, or None.

  Args:
    cell: the setting, and what is wanted of it.
    found: final losses of the runs so far; inf for those that diverged.
    start: the power at which the sweep begins.

  >>> cell = Cell(Setting('adamw'), seeds=2)
  >>> found = {}
  >>> while run := next_run(cell, found, start=-10):
  ...   found[run] = abs(run[0] + 7.4)
  >>> sorted(found)
  [(-11, 0), (-10, 0), (-9, 0), (-8, 0), (-7, 0), (-7, 1), (-6, 0)]
  """
  if cell.setting.method == 'none':
    return None if (0, 0) in found else (0, 0)
  first = {power: loss for (power, seed), loss in found.items() if seed == 0}
  if start not in first:
    return start, 0
  best, low, high = best_power(first), min(first), max(first)
  # If even the best run diverged, the good rates are far away.
  step = 1 if math.isfinite(first[best]) else 2
  asked = [best - step, best + step]
  if cell.wide:
    limit = first[best] + GOOD
    asked += [low - 2] if first[low] <= limit else []
    asked += [high + 2] if first[high] <= limit else []
  for power in asked:
    if power not in first and abs(power - start) <= FARTHEST:
      return power, 0
  for seed in range(1, cell.seeds):
    if (best, seed) not in found:
      return best, seed
  return None


def best_power(swept: Mapping[int, float]) -> int:
  """The power with the lowest loss; the smallest one among equals."""
  return min(sorted(swept), key=lambda power: swept[power])


def found_of(rows: list[dict[str, Any]]) -> dict[Setting, dict]:
  """Rows by setting, as {(power, seed): row}; the last of equal ones."""
  found: dict[Setting, dict] = {}
  for row in rows:
    setting = Setting(*(row[field] for field in Setting._fields))
    found.setdefault(setting, {})[row['power'], row['seed']] = row
  return found


def losses(runs: Runs) -> dict[tuple[int, int], float]:
  """The final loss of each run."""
  return {key: row['loss'] for key, row in runs.items()}


def swept(runs: Runs) -> dict[int, float]:
  """Losses of seed 0 by power."""
  return {p: row['loss'] for (p, seed), row in runs.items() if seed == 0}


def start_near(
  setting: Setting, found: Mapping[Setting, Runs], *earlier
) -> int:
  """The power at which a sweep begins.

  If it has begun already, that is its first power. Else it is the best power of
  the same method in the most similar setting with more than one seed.

  Args:
    setting: the setting to sweep.
    found: the runs so far.
    *earlier: runs with other weights; among equally similar settings, the first
      counts.
  """
  if begun := swept(found.get(setting, {})):
    return next(iter(begun))

  def distance(other):
    return sum(a != b for a, b in zip(setting, other, strict=True))

  known = [
    (other, runs)
    for study in (found, *earlier)
    for other, runs in study.items()
    if other.method == setting.method
    and math.isfinite(min(swept(runs).values(), default=math.inf))
    and any(seed for _, seed in runs)
  ]
  if not known:
    return start_of(setting.method)
  _, runs = min(known, key=lambda of: distance(of[0]))
  return best_power(swept(runs))
