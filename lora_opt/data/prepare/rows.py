"""Rows: from what a publisher writes to the fields that our tasks read.

A function here takes one raw row and returns one of ours. Whatever it raises
(a field that is missing, a label that is none) makes the row a bad one.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

Raw = Mapping[str, Any]
Row = dict[str, Any]


def gsm8k(raw: Raw) -> Row:
  """Question, worked answer, and the number after '####'."""
  final = raw['answer'].rpartition('####')[2].strip().replace(',', '')
  return {'question': raw['question'], 'answer': raw['answer'], 'final': final}


def lettered(raw: Raw) -> Row:
  """ARC and OpenBookQA: choices under labels, the label of the right one."""
  choices = raw['question']['choices']
  labels = [choice['label'] for choice in choices]
  return {
    'question': raw['question']['stem'],
    'choices': [choice['text'] for choice in choices],
    'answer': labels.index(raw['answerKey'].strip()),
  }


def hellaswag(raw: Raw) -> Row:
  """Activity, context and endings, cleaned as lm-evaluation-harness does."""
  context = f'{raw["ctx_a"]} {raw["ctx_b"].capitalize()}'
  return {
    'question': _cleaned(f'{raw["activity_label"]}: {context}'),
    'choices': [_cleaned(ending) for ending in raw['endings']],
    'answer': _index(raw['label'], 4),
  }


def boolq(raw: Raw) -> Row:
  """Passage, question (which gets its question mark) and a truth value."""
  question = raw['question']
  return {
    'passage': raw['passage'],
    'question': question if question.endswith('?') else question + '?',
    'answer': raw['answer'],
  }


def piqa(raw: Raw) -> Row:
  return {
    'question': raw['goal'],
    'choices': [raw['sol1'], raw['sol2']],
    'answer': _index(raw['label'], 2),
  }


def siqa(raw: Raw) -> Row:
  return {
    'question': f'{raw["context"]} {raw["question"]}',
    'choices': [raw['answerA'], raw['answerB'], raw['answerC']],
    'answer': _index(int(raw['label']) - 1, 3),
  }


def winogrande(raw: Raw) -> Row:
  if raw['sentence'].count('_') != 1:
    raise ValueError(f'the sentence needs one blank: {raw["sentence"]!r}')
  before, after = raw['sentence'].split('_')
  return {
    'before': before,
    'after': after,
    'question': raw['sentence'],
    'choices': [raw['option1'], raw['option2']],
    'answer': _index(int(raw['answer']) - 1, 2),
  }


def instruction(raw: Raw) -> Row:
  """LLM-Adapters' commonsense_170k: the instruction and what is to be said."""
  return {
    'question': raw['instruction'],
    'output': raw['output'],
    'answer': raw['answer'],
  }


def worked_problem(raw: Raw) -> Row:
  """LLM-Adapters' math_10k: a problem, its worked answer, the final one."""
  return {
    'question': raw['instruction'].strip(),
    'answer': raw['output'].strip(),
    'final': str(raw['answer']),
  }


def arithmetic(raw: Raw) -> Row:
  """AddSub and MultiArith: a question and the list of its solutions."""
  (solution,) = raw['lSolutions']
  return _solved(raw['sQuestion'], solution)


def svamp(raw: Raw) -> Row:
  """SVAMP: a body and a question, which may not end in a full stop."""
  body = raw['Body'].strip()
  if body[-1:] not in '.?!,':
    body += '.'
  return _solved(f'{body} {raw["Question"].strip()}', raw['Answer'])


def aqua(raw: Raw) -> Row:
  """AQuA: options 'A)5', a rationale and the letter of the right one."""
  options = [option.partition(')')[2].strip() for option in raw['options']]
  answer = _index('ABCDE'.index(raw['correct']), len(options))
  listed = ' '.join(
    f'({"ABCDE"[i]}) {option}' for i, option in enumerate(options)
  )
  return {
    'question': f'{raw["question"].strip()} Answer Choices: {listed}',
    'answer': f'{raw["rationale"].strip()} The answer is ({raw["correct"]}).',
    'final': 'ABCDE'[answer],
  }


def columns(**fields: str) -> Callable[[Raw], Row]:
  """Takes columns of a table; a field that ends in 'label' becomes a number.

  >>> columns(sentence='text', label='gold')({'text': 'Hm .', 'gold': '1'})
  {'sentence': 'Hm .', 'label': 1}
  """

  def row(raw: Raw) -> Row:
    values = {name: raw[column].strip() for name, column in fields.items()}
    if 'label' in values:
      values['label'] = int(values['label'])
    if 'score' in values:
      values['score'] = float(values['score'])
    return values

  return row


def named(names: tuple[str, ...], **fields: str) -> Callable[[Raw], Row]:
  """As `columns`, where the label is a word; its index is taken.

  >>> named(('no', 'yes'), label='gold')({'gold': 'yes'})
  {'label': 1}
  """

  def row(raw: Raw) -> Row:
    values = {name: raw[column].strip() for name, column in fields.items()}
    return values | {'label': names.index(values['label'])}

  return row


def cola(raw: list[str]) -> Row:
  """CoLA: source, label, the author's mark, sentence; no header."""
  _, label, _, sentence = raw
  return {'sentence': sentence, 'label': _index(label, 2)}


def _solved(question: str, solution: Any) -> Row:
  number = f'{float(solution):.10g}'
  return {
    'question': ' '.join(question.split()),
    'answer': f'The answer is {number}.',
    'final': number,
  }


def _index(value: Any, count: int) -> int:
  number = int(value)
  if not 0 <= number < count:
    raise ValueError(f'label {value!r} is none of 0 to {count - 1}')
  return number


def _cleaned(text: str) -> str:
  """Without the marks that the WikiHow part of HellaSwag has kept."""
  text = re.sub(r'\[.*?\]', '', text.strip().replace(' [title]', '. '))
  return text.replace('  ', ' ')
