"""Checks the model, task and objective that a configuration gives."""

from typing import Any

from lora_opt.reading.values import shown

PREFERENCE = 'preference'  # the kind of tasks whose answers are compared
_WANTED = {
  'model': ('base', '@models.from_folder() or @models.random_model()'),
  'task': ('validate', '@tasks.Generation(), as in configs/tasks'),
}


def check(**parts: Any) -> None:
  """Raises ValueError, naming the macro, unless parts are a model or a task.

  Models and tasks are duck-typed, so type checks of the configuration do not
  catch this: MODEL = 3 would fail somewhere deep inside.

  >>> check(model=3)
  Traceback (most recent call last):
  ...
  ValueError: MODEL=3 is not a model: ...
  """
  for name, part in parts.items():
    attribute, example = _WANTED[name]
    if not hasattr(part, attribute):
      raise ValueError(
        f'{name.upper()}={shown(part)} is not a {name}: give what makes one, '
        f'such as {example}'
      )


def check_objective(objective: Any, task: Any) -> None:
  """Raises ValueError unless the objective fits the task's batches."""
  can_compare = getattr(objective, 'compares', False)
  for part in getattr(task, 'tasks', (task,)):
    compares = getattr(part, 'kind', None) == PREFERENCE
    if compares and not can_compare:
      raise ValueError(
        f'task {part.name!r} has pairs of answers to compare: give it '
        'OBJECTIVE=@objective.DPO(), as configs/runs/dpo.gin does'
      )
    if can_compare and not compares:
      raise ValueError(
        f'task {part.name!r} of kind {part.kind} has no pairs of answers, '
        'which OBJECTIVE=@objective.DPO() compares: take a tasks.Preference '
        '(configs/tasks/preferences.gin), or configs/runs/finetune.gin'
      )
