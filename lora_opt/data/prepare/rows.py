"""Rows: converts publishers' raw rows to the fields that our tasks read.

A function here takes one raw row and returns one of ours. If it raises an error
(for a missing field or an invalid label), the row is a bad one.
"""

from collections.abc import Callable
from typing import Any

from lora_opt.data.examples import written
from lora_opt.data.prepare.fields import (
  Raw,
  digits,
  index,
  number,
  text,
  texts,
  whole,
)
from lora_opt.reading import values
from lora_opt.reading.values import shown

Row = dict[str, Any]


def gsm8k(raw: Raw) -> Row:
  """Question, worked answer, and the number after '####'."""
  answer = text(raw, 'answer')
  _, mark, final = answer.rpartition('####')
  if not mark:
    raise ValueError(f"the answer has no '####': {shown(answer)}")
  return {
    'question': text(raw, 'question'),
    'answer': answer,
    'final': final.strip().replace(',', ''),
  }


def lettered(raw: Raw) -> Row:
  """ARC and OpenBookQA: labelled choices, and the label of the right one."""
  question = values.table(raw['question'], "field 'question'")
  choices = values.items(question['choices'], "field 'choices'")
  labels = [text(choice, 'label') for choice in choices]
  key = text(raw, 'answerKey').strip()
  if labels.count(key) > 1:
    raise ValueError(f'{shown(key)} is the label of several choices')
  return {
    'question': text(question, 'stem'),
    'choices': [text(choice, 'text') for choice in choices],
    'answer': labels.index(key),
  }


def hellaswag(raw: Raw) -> Row:
  """Activity, context and endings, cleaned as lm-evaluation-harness does."""
  context = f'{text(raw, "ctx_a")} {text(raw, "ctx_b").capitalize()}'
  endings = texts(raw, 'endings')
  return {
    'question': _cleaned(f'{text(raw, "activity_label")}: {context}'),
    'choices': [_cleaned(ending) for ending in endings],
    'answer': index(raw['label'], len(endings)),
  }


def boolq(raw: Raw) -> Row:
  """Passage, question (a missing question mark is added) and a boolean."""
  question = text(raw, 'question')
  return {
    'passage': text(raw, 'passage'),
    'question': question if question.endswith('?') else question + '?',
    'answer': raw['answer'],
  }


def piqa(raw: Raw) -> Row:
  return {
    'question': text(raw, 'goal'),
    'choices': [text(raw, 'sol1'), text(raw, 'sol2')],
    'answer': index(raw['label'], 2),
  }


def siqa(raw: Raw) -> Row:
  return {
    'question': f'{text(raw, "context")} {text(raw, "question")}',
    'choices': [text(raw, f'answer{letter}') for letter in 'ABC'],
    'answer': index(whole(raw['label']) - 1, 3),
  }


def winogrande(raw: Raw) -> Row:
  sentence = text(raw, 'sentence')
  if sentence.count('_') != 1:
    raise ValueError(f'the sentence needs one blank: {shown(sentence)}')
  before, after = sentence.split('_')
  return {
    'before': before,
    'after': after,
    'question': sentence,
    'choices': [text(raw, 'option1'), text(raw, 'option2')],
    'answer': index(whole(raw['answer']) - 1, 2),
  }


def instruction(raw: Raw) -> Row:
  """LLM-Adapters' commonsense_170k: instruction, expected output and answer."""
  return {
    'question': text(raw, 'instruction'),
    'output': text(raw, 'output'),
    'answer': text(raw, 'answer'),
  }


def worked_problem(raw: Raw) -> Row:
  """LLM-Adapters' math_10k: a problem, its worked answer and the final one."""
  final = written(raw['answer'])
  if final is None:
    raise ValueError(
      f"field 'answer' must be a text or a number, found {shown(raw['answer'])}"
    )
  return {
    'question': text(raw, 'instruction').strip(),
    'answer': text(raw, 'output').strip(),
    'final': final,
  }


def arithmetic(raw: Raw) -> Row:
  """AddSub and MultiArith: a question and the list of its solutions."""
  (solution,) = values.items(raw['lSolutions'], "field 'lSolutions'", 1)
  return _solved(text(raw, 'sQuestion'), solution)


def svamp(raw: Raw) -> Row:
  """SVAMP: a body, to which a missing full stop is added, and a question."""
  body = text(raw, 'Body').strip()
  if body[-1:] not in '.?!,':
    body += '.'
  return _solved(f'{body} {text(raw, "Question").strip()}', raw['Answer'])


def aqua(raw: Raw) -> Row:
  """AQuA: options such as 'A)5', a rationale, the letter of the right one."""
  options = texts(raw, 'options')
  letters = 'ABCDE'[: len(options)]
  right = values.one_of(raw['correct'], "field 'correct'", letters)
  if len(options) > len(letters) or not all(')' in one for one in options):
    raise ValueError(f"options must be as 'A)5', found {shown(options)}")
  listed = ' '.join(
    f'({letter}) {option.partition(")")[2].strip()}'
    for letter, option in zip(letters, options, strict=True)
  )
  return {
    'question': f'{text(raw, "question").strip()} Answer Choices: {listed}',
    'answer': f'{text(raw, "rationale").strip()} The answer is ({right}).',
    'final': right,
  }


def columns(**fields: str) -> Callable[[Raw], Row]:
  """Takes columns of a table; the fields label and score become numbers.

  >>> columns(sentence='text', label='gold')({'text': 'Hm .', 'gold': '1'})
  {'sentence': 'Hm .', 'label': 1}
  """

  def row(raw: Raw) -> Row:
    found: Row = {
      name: text(raw, column).strip() for name, column in fields.items()
    }
    if 'label' in found:
      found['label'] = whole(found['label'])
    if 'score' in found:
      found['score'] = number(found['score'])
    return found

  return row


def named(names: tuple[str, ...], **fields: str) -> Callable[[Raw], Row]:
  """Like `columns`, but the label is a word, which becomes its index.

  >>> named(('no', 'yes'), label='gold')({'gold': 'yes'})
  {'label': 1}
  """

  def row(raw: Raw) -> Row:
    found = {name: text(raw, column).strip() for name, column in fields.items()}
    label = values.one_of(found['label'], 'the label', names)
    return found | {'label': names.index(label)}

  return row


def cola(raw: list[str]) -> Row:
  """CoLA: source, label, the author's mark, sentence; no header."""
  _, label, _, sentence = raw
  return {'sentence': sentence, 'label': index(label, 2)}


def _solved(question: str, solution: Any) -> Row:
  final = digits(number(solution))
  return {
    'question': ' '.join(question.split()),
    'answer': f'The answer is {final}.',
    'final': final,
  }


def _cleaned(text: str) -> str:
  """Removes the markup that is left in the WikiHow part of HellaSwag."""
  lines = text.strip().replace(' [title]', '. ').split('\n')
  return '\n'.join(map(_without_marks, lines)).replace('  ', ' ')


def _without_marks(line: str) -> str:
  """Removes text in square brackets, in time linear in the length."""
  kept, end = [], 0
  while (start := line.find('[', end)) >= 0:
    behind = line.find(']', start) + 1
    if not behind:
      break
    kept.append(line[end:start])
    end = behind
  return ''.join(kept) + line[end:]
