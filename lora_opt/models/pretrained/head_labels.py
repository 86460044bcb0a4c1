"""Reads the names of a checkpoint's labels from config.json.

LABEL_0, LABEL_1 ... do not count as names.
"""

import re

from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.reading import values
from lora_opt.reading.values import shown

_NUMBERED = re.compile(r'(?:label[\W_]*)?(\d+)')
PROBLEMS = {1: 'regression'}  # by number of outputs; for more, SINGLE_LABEL
SINGLE_LABEL = 'single_label_classification'
# Ends of the names of transformers' classes whose heads do another task.
OTHER_HEADS = ('TokenClassification', 'MultipleChoice', 'QuestionAnswering')


def labels_of_head(settings: ConfigFile, outputs: int) -> tuple[str, ...]:
  """Returns the names that config.json gives to the outputs of a head.

  Args:
    settings: The config.json.
    outputs: Number of outputs of the head.

  Returns:
    The names in order; () if there are none.

  Raises:
    ValueError: If the settings contradict each other or the head, or the head
      is for another kind of task.
  """
  place = settings.place
  for architecture in settings.items('architectures', [], null=True):
    if str(architecture).endswith(OTHER_HEADS):
      raise ValueError(
        f'{place}: the head is that of a {shown(architecture)}, which does not '
        f'label whole texts; {_NEW_HEAD}'
      )
  kind = PROBLEMS.get(outputs, SINGLE_LABEL)
  problem = settings.text('problem_type', kind, null=True)
  if problem != kind:
    raise ValueError(
      f'{place}: problem_type={shown(problem)} does not fit a head of '
      f'{outputs} output(s), which is for {kind}; correct it, or {_NEW_HEAD}'
    )
  for key in ('num_labels', '_num_labels'):
    if settings.integer(key, outputs, null=True) != outputs:
      raise ValueError(
        f'{place}: {key} is not {outputs}, the number of outputs of the head'
      )
  names = _names(settings)
  if names and len(names) != outputs:
    raise ValueError(
      f'{place}: id2label={shown(names)} names {len(names)} labels, the head '
      f'has {outputs} output(s); correct it, or {_NEW_HEAD}'
    )
  return () if outputs == 1 else _identity(names, f'{place}: id2label')


_NEW_HEAD = 'start a new head by models.from_folder(..., new_head=True)'


def _names(settings: ConfigFile) -> tuple[str, ...]:
  """The names in order, from id2label and label2id; () without them."""
  by_id = settings.table('id2label', {}, null=True)
  by_name = settings.table('label2id', {}, null=True)
  what = f'{settings.place}: id2label'
  names = {_index(k, what): values.text(v, what) for k, v in by_id.items()}
  what = f'{settings.place}: label2id'
  ids = {values.integer(i, what, 0): name for name, i in by_name.items()}
  if by_id and by_name and (names != ids or len(ids) != len(by_name)):
    raise ValueError(
      f'{settings.place}: id2label={shown(by_id)} and label2id='
      f'{shown(by_name)} contradict each other; delete the wrong one'
    )
  names = names or ids
  if sorted(names) != list(range(len(names))):
    raise ValueError(
      f'{what}: expected labels of 0, 1, 2 ..., found {shown(sorted(names))}'
    )
  return tuple(names[index] for index in range(len(names)))


def _index(key: str, what: str) -> int:
  if not key.isdecimal() or len(key) > 9:
    raise ValueError(f'{what}: expected numbers of labels, found {shown(key)}')
  return int(key)


def _identity(names: tuple[str, ...], what: str) -> tuple[str, ...]:
  """The names, or () if they are only numbers."""
  numbers = [_NUMBERED.fullmatch(name.casefold()) for name in names]
  if all(numbers):
    if [int(number[1]) for number in numbers] != list(range(len(names))):
      raise ValueError(
        f'{what}={shown(names)} numbers the labels in another order than that '
        'of the outputs; give them names'
      )
    return ()
  return names
