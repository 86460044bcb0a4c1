"""Which method did best: learning rates chosen, scores with intervals, ties.

A group is a task at a rank, in which methods are compared. The rules:

1. A group's sweep is of the seeds at which every method has run with as many
   learning rates as the study gives each, or as any method has run with. (A
   method may get more, where its best one was at an end.) Where groups have
   several seeds, one that has a single seed still waits for more.
2. A method's learning rate in a group is the one of the best mean score over
   the seeds of the sweep on the even examples; its score is that on the odd
   ones, at every seed at which all methods have run with the rates chosen. A
   rate at which a run diverged is not chosen, and a method which did at every
   rate of a group has no place among the others. (Where an evaluation has no
   halves, both are the whole score, which flatters every method alike.)
3. A method's overall score is the mean over groups of the mean over seeds.
4. The method of the best overall score is the best; another is tied with it if
   the 95 % interval of the difference, paired by seed, includes zero.

Where the metric is a loss (`lower_is_better`), its negative is what all of
this is about.

Intervals are Student's over seeds, by Welch and Satterthwaite where several
groups join: they say what other initial values and orders of the data would
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
  """Where methods are compared: a task, a rank, what else was alike."""

  task: str
  rank: int | None
  budget: str = ''

  @property
  def title(self) -> str:
    """As a reader has it.

    >>> Group('cola', 4).title
    'cola, rank 4'
    """
    rank = '' if self.rank is None else f', rank {self.rank}'
    return f'{self.task}{rank}{self.budget and ", " + self.budget}'


class Interval(NamedTuple):
  """A mean with its 95 % interval; no bounds from one seed."""

  mean: float
  low: float | None = None
  high: float | None = None


class Chosen(NamedTuple):
  """A method in a group, at the learning rate chosen for it."""

  learning_rate: float
  at_edge: bool  # the least or greatest of those tried
  rows: list[Json]  # by seed
  scores: list[float]  # by seed, of the examples not chosen by


class Place(NamedTuple):
  """A line of the ranking."""

  method: str
  score: Interval
  behind: Interval  # the best's score less this one's
  verdict: str  # 'best', 'tied', 'behind', or 'open' without an interval


class Ranking(NamedTuple):
  """What follows from the rows of a study."""

  places: list[Place]  # the best first
  chosen: dict[Group, dict[str, Chosen]]  # of whole groups
  seeds: dict[Group, list[int]]  # those that count
  incomplete: list[Group]
  diverged: dict[str, list[Group]]  # methods without a place, and where
  halves: bool  # whether rates were chosen on other examples
  lower_is_better: bool = False  # whether scores are losses, made negative


def label_methods(rows: Sequence[Json]) -> list[str]:
  """A name for the method of each row: the recipe, and what varies of it.

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
  """Rows by group and method; what differs in budget is a group of its own."""
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
    rows: of its runs.
    rates: how many learning rates each method is to have run with; by default
      as many as any has.

  Raises:
    ValueError: the score of some of them is a loss, and that of others is not.
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
    # A mean with a group of one seed would have no interval at all.
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
  """The methods that had a run diverge at every rate, with the groups."""
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
  """Seeds for which every method ran at so many rates, or at as many as any.

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
  """The learning rate of a method in a group; None if all diverged.

  Args:
    rows: of the method in the group.
    swept: the seeds that choose. The rows returned are of all seeds.
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
  # Among equals one in the middle: they are no reason to look further out.
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
  # A single example makes but one half.
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
  """Mean of first less second, paired by group and seed."""
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
  from scipy import stats  # slow, and only here

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
