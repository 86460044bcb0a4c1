"""States the findings of a study in sentences, by rules on its numbers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lora_opt.evaluation import _text
from lora_opt.evaluation.study.pace import Pace
from lora_opt.evaluation.study.ranking import (
  BASELINE,
  Interval,
  Place,
  Ranking,
  best_in_group,
)


class Unit(NamedTuple):
  """How the scores of a ranking are written.

  >>> Unit().score(0.71234), Unit(lower_is_better=True).score(-0.04321)
  ('71.2', '0.0432')
  """

  lower_is_better: bool = False

  @property
  def name(self) -> str:
    """The word for a score."""
    return 'loss' if self.lower_is_better else 'score'

  def natural(self, score: float) -> float:
    """A score as it was measured: losses are not negated."""
    return -score if self.lower_is_better else score

  def score(self, score: float) -> str:
    """Formats a score in points, or a loss."""
    return self.gap(self.natural(score))

  def gap(self, difference: float) -> str:
    """Formats a difference of scores, or of losses."""
    if self.lower_is_better:
      return _text.minus(f'{difference:.4f}')
    return _text.minus(f'{100 * difference:.1f}')

  def span(self, interval: Interval) -> str:
    """The bounds of a score's interval, the lower first; or a dash."""
    if interval.low is None:
      return _text.NONE
    ends = sorted(map(self.natural, (interval.low, interval.high)))
    return ' to '.join(map(self.gap, ends))

  def gap_span(self, interval: Interval) -> str:
    """The bounds of a difference's interval, the lower first; or a dash."""
    if interval.low is None:
      return _text.NONE
    return f'{self.gap(interval.low)} to {self.gap(interval.high)}'


def unit(ranking: Ranking) -> Unit:
  """The unit of a ranking's scores."""
  return Unit(ranking.lower_is_better)


def listed(names: Sequence[str]) -> str:
  """Joins names for a sentence.

  >>> listed(['a', 'b', 'c'])
  'a, b and c'
  """
  return ' and '.join(
    [', '.join(names[:-1]), names[-1]] if names[1:] else names
  )


def recommended(ranking: Ranking) -> str:
  """The method to use.

  Of the best and those tied with it, it is the one that is best, or tied with
  the best, in the most groups; among equals, the one with the highest mean.
  """
  within = _groups_within(ranking)
  able = [p.method for p in ranking.places if p.verdict in ('best', 'tied')]
  return max(able, key=lambda method: within[method])


def sentences(ranking: Ranking, pace: Mapping[str, Pace]) -> list[str]:
  """The findings, the most important first."""
  if not ranking.places:
    return [
      'Nothing can be compared yet: there is no task in which every method has '
      'run with the same number of learning rates.',
      *_diverged(ranking),
    ]
  best, *others = ranking.places
  if best.behind.low is None or any(p.verdict == 'open' for p in others):
    return [
      _highest(best, ranking),
      _only_one_seed(),
      *_diverged(ranking),
      *_edges(ranking),
    ]
  chosen = recommended(ranking)
  return [
    f'Recommended: {chosen}. {_reason(chosen, ranking)}',
    _highest(best, ranking),
    *_ties(others, unit(ranking)),
    *_against_baseline(ranking),
    *_beaten(chosen, ranking),
    *_cost(chosen, pace),
    *_diverged(ranking),
    *_edges(ranking),
  ]


def _highest(best: Place, ranking: Ranking) -> str:
  seeds = sorted({len(found) for found in ranking.seeds.values()})
  groups = len(ranking.chosen)
  write = unit(ranking)
  spread = '' if best.score.low is None else f' [{write.span(best.score)}]'
  highest = 'lowest' if write.lower_is_better else 'highest'
  many = 'comparison' if groups == 1 else 'comparisons'
  plural = 's' if seeds != [1] else ''
  return (
    f'{best.method} has the {highest} mean {write.name}, '
    f'{write.score(best.score.mean)}{spread}, over {groups} {many} (a task at '
    f'a rank) of {listed([str(n) for n in seeds])} seed{plural}.'
  )


def _only_one_seed() -> str:
  return (
    'With one seed there are no intervals: the order may be chance, and '
    'nothing is recommended.'
  )


def _reason(method: str, ranking: Ranking) -> str:
  count = _groups_within(ranking)[method]
  total = len(ranking.chosen)
  return (
    'Of the best and those tied with it overall, it is the best or tied with '
    f'the best in the most comparisons, {count} of {total}.'
  )


def _ties(others: Sequence[Place], write: Unit) -> list[str]:
  tied = [place for place in others if place.verdict == 'tied']
  behind = [place for place in others if place.verdict == 'behind']
  said = []
  if tied:
    verb = 'is' if len(tied) == 1 else 'are'
    names = listed([place.method for place in tied])
    said.append(
      f'{names} {verb} tied with it: the interval of the difference includes '
      'zero.'
    )
  if behind:
    names = listed(
      [f'{p.method} (by {write.gap(p.behind.mean)})' for p in behind]
    )
    said.append(f'Behind it by more than seeds explain: {names}.')
  return said


def _against_baseline(ranking: Ranking) -> list[str]:
  place = next((p for p in ranking.places if p.method == BASELINE), None)
  if place is None or place.verdict == 'best':
    return []
  if place.verdict == 'tied':
    return [
      f'{BASELINE} is among them: these numbers alone are no reason to leave '
      'it.'
    ]
  write = unit(ranking)
  points = '' if write.lower_is_better else ' points'
  gain = (
    f'{write.gap(place.behind.mean)}{points} [{write.gap_span(place.behind)}]'
  )
  return [f'Over {BASELINE} the best one gains {gain}.']


def _beaten(method: str, ranking: Ranking) -> list[str]:
  losses, write = [], unit(ranking)
  for group, found in ranking.chosen.items():
    best, behind = best_in_group(found)
    low = behind[method].low
    if low is not None and low > 0:
      gap = behind[method]
      by = f'{write.gap(gap.mean)} [{write.gap_span(gap)}]'
      losses.append(f'{group.title} ({best} by {by})')
  if not losses:
    return [f'In no comparison is another method better than {method}.']
  return [f'Others are better than {method} on {listed(losses)}.']


def _cost(method: str, pace: Mapping[str, Pace]) -> list[str]:
  found = pace.get(method)
  if method == BASELINE or found is None or found.step_seconds is None:
    return []
  return [
    f'A step with {method} took {found.step_seconds:.2f} times as long as with '
    f'{BASELINE}, the model included.'
  ]


def _diverged(ranking: Ranking) -> list[str]:
  return [
    f'{method} has no place: it diverged at every learning rate on '
    f'{listed([group.title for group in groups])}.'
    for method, groups in ranking.diverged.items()
  ]


def _edges(ranking: Ranking) -> list[str]:
  counts = {
    place.method: sum(
      found[place.method].at_edge for found in ranking.chosen.values()
    )
    for place in ranking.places
  }
  total = len(ranking.chosen)
  names = [f'{name} ({n} of {total})' for name, n in counts.items() if n]
  if not names:
    return []
  return [
    'The chosen learning rate is the least or the greatest one tried, so that '
    f'the method may do better beyond, for {listed(names)}.'
  ]


def _groups_within(ranking: Ranking) -> dict[str, int]:
  """In how many groups each method is the best or tied with the best."""
  counts = {place.method: 0 for place in ranking.places}
  for found in ranking.chosen.values():
    _, behind = best_in_group(found)
    for method, interval in behind.items():
      counts[method] += interval.low is None or interval.low <= 0
  return counts
