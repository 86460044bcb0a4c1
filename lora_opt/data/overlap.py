"""Evaluation examples that also stand in the training split."""


def overlap(task) -> tuple[int, ...]:
  """Finds evaluation examples whose prompt is a training prompt too.

  Prompts are compared without regard to case and white space. Report scores
  with these examples left out, or say that they are in.

  Args:
    task: see lora_opt.data.tasks.

  Returns:
    Their indices in the eval split, ascending.

  >>> from lora_opt.data import tasks
  >>> rows = [{'question': f'Letter {i}?', 'answer': 'b'} for i in range(3)]
  >>> overlap(tasks.Generation(name='letters', train=rows[:1], eval=rows))
  (0,)
  """
  seen = {_normalised(example.prompt) for example in task.examples('train')}
  return tuple(
    index
    for index, example in enumerate(task.examples('eval'))
    if _normalised(example.prompt) in seen
  )


def _normalised(text: str) -> str:
  return ' '.join(text.casefold().split())
