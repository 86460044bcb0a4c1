"""Whether what a configuration gives as model and task can be one."""

from typing import Any

from lora_opt.reading.values import shown

_WANTED = {
  'model': ('base', '@models.from_folder() or @models.random_model()'),
  'task': ('validate', '@tasks.Generation(), as in configs/tasks'),
}


def check(**parts: Any) -> None:
  """Raises ValueError for what is no model or no task, by its macro.

  They are of any type that offers what is used, so that the types of a
  configuration do not tell: MODEL = 3 would go wrong somewhere within.

  >>> check(model=3)
  Traceback (most recent call last):
  ...
  ValueError: MODEL=3 is no model: ...
  """
  for name, part in parts.items():
    attribute, example = _WANTED[name]
    if not hasattr(part, attribute):
      raise ValueError(
        f'{name.upper()}={shown(part)} is no {name}: give what makes one, such '
        f'as {example}'
      )
