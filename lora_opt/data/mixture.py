"""Mixtures: several tasks trained together, each evaluated by itself."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from lora_opt.data import forms, order
from lora_opt.data.overlap import questions, repeated
from lora_opt.data.stream import Batches
from lora_opt.data.task import SPLITS, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
  """Several tasks, mixed example by example at given rates.

  Their kinds may differ, except that preferences mix with preferences only.

  Examples of different tasks share rows, each in its own segment. An epoch has
  as many examples as all tasks together. `lora_opt.data.order.Order` says how
  a task with a high rate is repeated within an epoch, and how one with a low
  rate is spread over several epochs.

  Args:
    name: name of the mixture in reports.
    tasks: two or more tasks with different names.
    rates: 'proportional' to the number of training examples, 'equal', or a
      positive number for each task.
    temperature, maximum: see `lora_opt.data.order.mixing_rates`.
    packing: put several training examples into a row.

  >>> from lora_opt.data.tasks import Generation
  >>> rows = [{'question': 'a', 'answer': 'b'}] * 3
  >>> first = Generation(name='first', train=rows, eval=rows)
  >>> second = dataclasses.replace(first, name='second', train=rows[:1])
  >>> Mixture(name='both', tasks=(first, second)).mixing_rates()
  (0.75, 0.25)

  Raises:
    ValueError: fewer than two tasks, or two with the same name.
  """

  kind: ClassVar[str] = 'mixture'
  name: str
  tasks: Sequence[Task]
  rates: str | Sequence[float] = 'proportional'
  temperature: float = 1.0
  maximum: int | None = None
  packing: bool = True

  def __post_init__(self):
    names = [task.name for task in self.tasks]
    if len(names) < 2 or len(set(names)) != len(names):
      raise ValueError(
        f'mixture {self.name!r} needs two or more tasks with different names, '
        f'found {names}'
      )

  def mixing_rates(self) -> tuple[float, ...]:
    """The share of each task, summing to 1."""
    sizes = [len(task.examples('train')) for task in self.tasks]
    try:
      return order.mixing_rates(
        sizes, self.rates, self.temperature, self.maximum
      )
    except ValueError as error:
      raise ValueError(f'mixture {self.name!r}: {error}') from error

  def validate(self, splits: Sequence[str] = SPLITS) -> None:
    """Checks every row of every task; see `Task.validate`."""
    for task in self.tasks:
      task.validate(splits)
    if 'train' in splits:
      self.mixing_rates()

  def overlap(self) -> list[tuple[str, int]]:
    """Finds evaluation examples that also occur in any task's training split.

    A task with `leave_out_overlap` has already left out those that occur in its
    own training split.

    Returns:
      For each, the name of its task and its index in the evaluation split.
    """
    seen = questions(e for task in self.tasks for e in task.examples('train'))
    return [
      (task.name, place)
      for task in self.tasks
      for place in repeated(seen, task.examples('eval'))
    ]

  def facts(self) -> dict[str, Any]:
    """The mixing rates and the facts of every task; see `Task.facts`."""
    return {
      'task': self.name,
      'kind': self.kind,
      'rates': list(self.mixing_rates()),
      'tasks': [task.facts() for task in self.tasks],
    }

  def train_batches(
    self, tokenizer: Any, *, form: str = 'decoder', **kwargs
  ) -> Batches:
    """Batches to train on; the arguments are those of `Task.train_batches`."""
    return forms.of_task(form, self).train_batches(
      self, tokenizer, packing=self.packing, **kwargs
    )
