"""Likelihood of choices: one pass over a split, three ways to compare.

The choices of a question share one pass over its prompt. Their log-likelihoods
are compared unnormalised (`sum`), per token and per UTF-8 byte.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lora_opt.evaluation.finite import named, require_finite
from lora_opt.reading.values import shown

# Normalisation: the field of a prediction that holds the likeliest choice.
CHOICE_FIELDS = {
  'sum': 'choice',
  'token': 'choice_per_token',
  'byte': 'choice_per_byte',
}


def sum_over_choices(
  batches: Iterable[Any],
  losses: Callable[[Mapping[str, np.ndarray]], np.ndarray],
  shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
  """Log-likelihood and number of tokens of every choice.

  Args:
    batches: batches from a task's `choice_batches`: arrays for the model, and
      the example and choice that each position belongs to.
    losses: maps these arrays to the loss of each position, in nats.
    shape: (examples, most choices of any example).

  Returns:
    Two arrays of this shape, summed in float64; 0 for missing choices.
  """
  likelihood, tokens = np.zeros(shape), np.zeros(shape)
  for batch in batches:
    weights = batch.arrays['weights']
    place = (batch.example, batch.choice)
    found = np.asarray(losses(batch.arrays), np.float64)
    # Positions without weight are padding; their losses may be anything.
    np.add.at(likelihood, place, -np.where(weights, found, 0) * weights)
    np.add.at(tokens, place, weights)
  return likelihood, tokens


def predict(
  example: Any,
  likelihood: Sequence[float],
  tokens: Sequence[float],
  place: str = 'example',
) -> dict[str, Any]:
  """The prediction for one example, from the likelihoods of its choices.

  Args:
    example: has prompt, choices and answer, the index of the right choice.
    likelihood: log-likelihood of each choice, in nats.
    tokens: number of tokens of each choice.
    place: which example it is, for messages.

  Returns:
    A JSON-able dict: prompt, reference, prediction, score (of the likeliest
    choice), choices, answer, log_likelihoods, tokens, and the likeliest choice
    by sum (choice), per token (choice_per_token) and per byte
    (choice_per_byte).

  Raises:
    ValueError: a log-likelihood is not finite, or a choice has no tokens.
  """
  choices = example.choices
  sums = np.asarray(likelihood)[: len(choices)]
  counts = np.asarray(tokens)[: len(choices)]
  sizes = [len(choice.encode()) for choice in choices]
  for index, choice in enumerate(choices):
    which = f'of choice {index}, {shown(choice, 40)},'
    where = named(place, example.prompt)
    require_finite(sums[index], f'the log-likelihood {which}', where)
    if not (counts[index] > 0 and sizes[index] > 0):
      raise ValueError(f'{where}: nothing {which} is scored: it has no tokens')
  best = {
    CHOICE_FIELDS['sum']: int(np.argmax(sums)),
    CHOICE_FIELDS['token']: int(np.argmax(sums / counts)),
    CHOICE_FIELDS['byte']: int(np.argmax(sums / sizes)),
  }
  return {
    'prompt': example.prompt,
    'reference': choices[example.answer],
    'prediction': choices[best['choice']],
    'score': float(best['choice'] == example.answer),
    'choices': list(choices),
    'answer': example.answer,
    **best,
    'log_likelihoods': [round(float(x), 5) for x in sums],
    'tokens': [int(count) for count in counts],
  }
