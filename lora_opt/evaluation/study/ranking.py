"""Ranks methods: chooses learning rates, computes intervals, finds ties.

Methods are compared in groups; a group is a task at a rank. The rules:

1. The sweep of a group covers the seeds at which every method has run with as
   many learning rates as the study gives each method or, if it gives no number,
   as any method has run with. (A method may have more, if its best rate was the
   lowest or highest.) If other groups have several seeds, a group with a single
   one is incomplete.
2. A method's learning rate in a group is the one with the best mean score on
   the even examples over the seeds of the sweep. Its score is the one on the
   odd examples, at every seed at which all methods have run with their chosen
   rates. A rate at which a run diverged is not chosen, and a method that
   diverged at every rate of a group is not ranked. (If an evaluation has no
   halves, both are the score on all examples, which flatters all methods
   alike.)
3. A method's overall score is the mean over groups of the mean over seeds.
4. The method with the best overall score is the best. Another is tied with it
   if the 95 % interval of the difference, paired by seed, includes zero.

If the metric is a loss (`lower_is_better`), all of this applies to its
negative.

Intervals are Student's over seeds, by Welch and Satterthwaite if several groups
are combined. They say what other initial values and orders of the data would
change, for these tasks and these examples.
"""

import collections
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lora_opt.evaluation._text import Json
from lora_opt.evaluation.finite import require_finite
from lora_opt.evaluation.metrics import LOWER

BASELINE = 'adamw'
_RUN_AGAIN = 'Its weights are damaged: remove its row and run it again'


class Group(NamedTuple):
  """A group in which methods are compared: a task, a rank, a budget."""

  task: str
  rank: int | None
  budget: str = ''

  @property
  def title(self) -> str:
    """The name of the group for readers.

    >>> Group('cola', 4).title
    'cola, rank 4'
    """
    rank = '' if self.rank is None else f', rank {self.rank}'
    return f'{self.task}{rank}{self.budget and ", " + self.budget}'


class Interval(NamedTuple):
  """A mean with its 95 % interval; there are no bounds with one seed."""

  mean: float
  low: float | None = None
  high: float | None = None


class Chosen(NamedTuple):
  """A method in a group, at the learning rate chosen for it."""

  learning_rate: float
  at_edge: bool  # the least or greatest of those tried
  rows: list[Json]  # by seed
  scores: list[float]  # by seed, on examples not used to choose the rate


class Place(NamedTuple):
  """A line of the ranking."""

  method: str
  score: Interval
  behind: Interval  # the best method's score minus this one's
  verdict: str  # 'best', 'tied', 'behind', or 'open' without an interval


class Ranking(NamedTuple):
  """The ranking of methods that results from the rows of a study."""

  places: list[Place]  # the best first
  chosen: dict[Group, dict[str, Chosen]]  # of complete groups
  seeds: dict[Group, list[int]]  # the seeds that are used
  incomplete: list[Group]
  diverged: dict[str, list[Group]]  # unranked methods, where they diverged
  halves: bool  # whether rates were chosen on examples that are not scored
  lower_is_better: bool = False  # whether scores are negated losses


def label_methods(rows: Sequence[Json]) -> list[str]:
  """A name for the method of each row: the recipe, and its varying options.

  >>> label_methods([
  ...   {'method': 'lora_plus', 'options': {'lora_plus.lr_ratio': '4'}},
  ...   {'method': 'lora_plus', 'options': {'lora_plus.lr_ratio': '16'}},
  ...   {'method': 'adamw', 'options': {'adamw.b2': '0.99'}},
  ... ])
  ['lora_plus lr_ratio=4', 'lora_plus lr_ratio=16', 'adamw']
  """
  values = collections.defaultdict(lambda: collections.defaultdict(set))
  for row in rows:
    for name in {n for r in rows for n in r['options']}:
      values[row['method']][name].add(row['options'].get(name))
  labels = []
  for row in rows:
    varied = [
      f'{name.rpartition(".")[2]}={row["options"][name]}'
      for name, found in sorted(values[row['method']].items())
      if len(found) > 1 and name in row['options']
    ]
    labels.append(' '.join([row['method'], *varied]))
  return labels


def group_rows(rows: Sequence[Json]) -> dict[Group, dict[str, list[Json]]]:
  """Rows by group and method; different budgets make different groups."""
  labels = label_methods(rows)
  budgets = collections.defaultdict(lambda: collections.defaultdict(set))
  for row in rows:
    for name, value in row['budget'].items():
      budgets[row['task']][name].add(value)
  found: dict[Group, dict[str, list[Json]]] = {}
  for row, label in zip(rows, labels, strict=True):
    differing = ' '.join(
      f'{name}={value}'
      for name, value in row['budget'].items()
      if len(budgets[row['task']][name]) > 1
    )
    group = Group(row['task'], row['rank'], differing)
    found.setdefault(group, {}).setdefault(label, []).append(row)
  ordered = sorted(found, key=lambda g: (g.task, g.rank or 0, g.budget))
  return {group: found[group] for group in ordered}


def rank(rows: Sequence[Json], rates: int | None = None) -> Ranking:
  """Ranks the methods of a study by the rules above.

  Args:
    rows: the rows of its runs.
    rates: how many learning rates each method must have run with; by default as
      many as any method has.

  Raises:
    ValueError: the scores of some rows are losses, and those of others are not.
  """
  lower = {bool(row.get(LOWER)) for row in rows if 'score' in row}
  if len(lower) > 1:
    raise ValueError(
      'some of these runs are scored by a loss and others by a score of which '
      'more is better: make a study of each kind'
    )
  groups = group_rows(rows)
  everyone = sorted({method for found in groups.values() for method in found})
  swept = {
    group: swept_seeds(found, everyone, rates)
    for group, found in groups.items()
  }
  diverged = _diverged_everywhere(groups, swept)
  methods = [method for method in everyone if method not in diverged]
  chosen, seeds, incomplete = {}, {}, []
  for group, found in groups.items():
    best = {m: choose(found[m], swept[group]) for m in methods if swept[group]}
    if not best or None in best.values():
      incomplete.append(group)
      continue
    shared = set.intersection(
      *({row['seed'] for row in method.rows} for method in best.values())
    )
    seeds[group] = sorted(shared)
    chosen[group] = {
      method: _at_seeds(found, shared) for method, found in best.items()
    }
  if any(len(found) > 1 for found in seeds.values()):
    # With a group of one seed, the mean would have no interval at all.
    for group in [g for g, found in seeds.items() if len(found) == 1]:
      del chosen[group], seeds[group]
      incomplete.append(group)
  places = _places(methods, chosen)
  halves = all(row.get('halves') for row in rows if 'score' in row)
  return Ranking(
    places, chosen, seeds, incomplete, diverged, halves, True in lower
  )


def _diverged_everywhere(
  groups: Mapping[Group, Mapping[str, Sequence[Json]]],
  swept: Mapping[Group, Sequence[int]],
) -> dict[str, list[Group]]:
  """Methods with a diverged run at every rate of a group, and those groups."""
  lost = collections.defaultdict(list)
  for group, found in groups.items():
    for method, rows in found.items() if swept[group] else ():
      rates = {row['learning_rate'] for row in rows}
      if rates == {r['learning_rate'] for r in rows if 'score' not in r}:
        lost[method].append(group)
  return dict(lost)


def swept_seeds(
  found: Mapping[str, Sequence[Json]],
  methods: Iterable[str],
  rates: int | None = None,
) -> list[int]:
  """Seeds at which every method ran with `rates` rates, or as many as any did.

  >>> row = lambda seed, rate: {'seed': seed, 'learning_rate': rate}
  >>> found = {'a': [row(0, 1), row(1, 1), row(1, 2)], 'b': [row(0, 2)]}
  >>> swept_seeds(found, 'ab'), swept_seeds(found, 'ab', rates=1)
  ([], [0])
  """
  tried = {
    method: collections.Counter(row['seed'] for row in found.get(method, ()))
    for method in methods
  }
  if rates is None:
    rates = max(max(counts.values(), default=0) for counts in tried.values())
  seeds = sorted({seed for counts in tried.values() for seed in counts})
  return [
    seed
    for seed in seeds
    if all(counts[seed] >= rates for counts in tried.values())
  ]


def choose(rows: Sequence[Json], swept: Sequence[int]) -> Chosen | None:
  """Chooses the learning rate of a method in a group.

  None if no rate has a score for every seed used for choosing, as when all
  diverged.

  Args:
    rows: the rows of the method in the group.
    swept: the seeds used for choosing. The rows returned are of all seeds.
  """
  by_rate = collections.defaultdict(dict)
  for row in rows:
    by_rate[row['learning_rate']][row['seed']] = row
  able = {
    rate: found
    for rate, found in by_rate.items()
    if found.keys() >= set(swept) and all('score' in r for r in found.values())
  }
  if not able:
    return None
  merit = {
    rate: np.mean([score(found[seed], 0) for seed in swept])
    for rate, found in able.items()
  }
  # Among equals take one in the middle: a tie is no reason to try rates further
  # out.
  tried = sorted(by_rate)
  middle = (len(tried) - 1) / 2
  rate = max(merit, key=lambda r: (merit[r], -abs(tried.index(r) - middle)))
  edge = len(by_rate) > 1 and rate in (tried[0], tried[-1])
  ordered = [able[rate][seed] for seed in sorted(able[rate])]
  return Chosen(rate, edge, ordered, [score(row, 1) for row in ordered])


def _at_seeds(chosen: Chosen, seeds: Container[int]) -> Chosen:
  rows = [row for row in chosen.rows if row['seed'] in seeds]
  return chosen._replace(rows=rows, scores=[score(row, 1) for row in rows])


def score(row: Json, half: int) -> float:
  """The main score on one half of the examples, or on all if there is none.

  A loss is made negative, so that more is better.
  """
  halves = row.get('halves')
  # With a single example, only one of the halves has examples.
  whole = not halves or not all(halves)
  found = row['score'] if whole else halves[half][row['metric']]
  require_finite(found, 'the score', f'a run of {row["method"]}', _RUN_AGAIN)
  return -found if row.get(LOWER) else found


def _places(
  methods: Sequence[str], chosen: Mapping[Group, Mapping[str, Chosen]]
) -> list[Place]:
  if not chosen:
    return []
  scores = {
    method: [found[method].scores for found in chosen.values()]
    for method in methods
  }
  means = {method: mean_interval(scores[method]) for method in methods}
  order = sorted(methods, key=lambda method: -means[method].mean)
  best = order[0]
  places = []
  for method in order:
    behind = difference(scores[best], scores[method])
    verdict = 'best' if method == best else _verdict(behind)
    places.append(Place(method, means[method], behind, verdict))
  return places


def _verdict(behind: Interval) -> str:
  if behind.low is None:
    return 'open'
  return 'tied' if behind.low <= 0 else 'behind'


def difference(
  first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]
) -> Interval:
  """The mean of first minus second, paired by group and seed."""
  return mean_interval(
    [np.subtract(a, b) for a, b in zip(first, second, strict=True)]
  )


def mean_interval(groups: Sequence[Sequence[float]]) -> Interval:
  """The mean over groups of the mean over seeds, with its 95 % interval.

  >>> low, middle, high = -1.24, 0.0, 1.24
  >>> found = mean_interval([[-0.5, 0.0, 0.5]])
  >>> [round(float(x), 2) for x in found] == [middle, low, high]
  True
  >>> mean_interval([[1.0], [2.0]])
  Interval(mean=1.5, low=None, high=None)
  """
  mean = float(np.mean([np.mean(group) for group in groups]))
  if min(len(group) for group in groups) < 2:
    return Interval(mean)
  parts = [np.var(group, ddof=1) / len(group) for group in groups]
  variance = float(np.sum(parts))
  if variance == 0:
    return Interval(mean, mean, mean)
  freedom = variance**2 / sum(
    part**2 / (len(group) - 1)
    for part, group in zip(parts, groups, strict=True)
  )
  from scipy import stats  # slow, and needed only here

  half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance) / len(groups)
  return Interval(mean, mean - half, mean + half)


def best_in_group(
  found: Mapping[str, Chosen],
) -> tuple[str, dict[str, Interval]]:
  """The best method of a group, and how far each one is behind it."""
  best = max(sorted(found), key=lambda method: np.mean(found[method].scores))
  return best, {
    method: difference([found[best].scores], [chosen.scores])
    for method, chosen in found.items()
  }
