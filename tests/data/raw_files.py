"""Two made rows of every data set, in the files of its publisher."""

import json
import pathlib
from typing import NamedTuple


class Raw(NamedTuple):
  """Files by name, and what the first row of a split becomes."""

  files: dict[str, str]
  split: str
  row: dict


def lines(*rows):
  return ''.join(json.dumps(row) + '\n' for row in rows)


def tsv(*rows):
  return ''.join('\t'.join(row) + '\n' for row in rows)


def pairs(header, labels, places=('sentence1', 'sentence2', 'label')):
  """Two rows under a header; columns that matter hold their own names."""

  def row(number, label):
    values = {places[0]: f'First "{number}', places[1]: 'Second'}
    values[places[2]] = label
    return [values.get(name, str(number)) for name in header.split('\t')]

  return tsv(header.split('\t'), *(row(i, x) for i, x in enumerate(labels)))


def arc(name):
  row = {
    'id': 'A_1',
    'question': {
      'stem': 'Why is the sky blue?',
      'choices': [
        {'text': 'It scatters light', 'label': 'A'},
        {'text': 'It is painted', 'label': 'B'},
      ],
    },
    'answerKey': 'B',
  }
  numbered = json.loads(json.dumps(row).replace('"A"', '"1"'))
  numbered['answerKey'] = '1'
  files = {
    f'ARC-V1-Feb2018-2/{name}/{name}-{split}.jsonl': lines(row, numbered)
    for split in ('Train', 'Dev', 'Test')
  }
  return Raw(
    files,
    'test',
    {
      'question': 'Why is the sky blue?',
      'choices': ['It scatters light', 'It is painted'],
      'answer': 1,
    },
  )


GSM = {'question': 'Two and two?', 'answer': '2+2=<<2+2=4>>4\n#### 1,004'}
OPENBOOK = {
  'id': '7-1',
  'question': {
    'stem': 'The sun is responsible for',
    'choices': [
      {'text': text, 'label': label}
      for label, text in zip('ABCD', ('a', 'b', 'c', 'd'), strict=True)
    ],
  },
  'answerKey': 'D',
}
HELLASWAG = {
  'ind': 4,
  'activity_label': 'Cooking',
  'ctx_a': 'A man boils water.',
  'ctx_b': 'he',
  'ctx': 'A man boils water. he',
  'split': 'val',
  'split_type': 'indomain',
  'endings': ['[header] stirs [title] Then', 'b', 'c', 'd'],
  'label': 3,
}
BOOLQ = {
  'question': 'is water wet',
  'title': 'Water',
  'answer': True,
  'passage': 'Water is a liquid.',
}
PIQA = {'goal': 'Open a jar', 'sol1': 'Turn it', 'sol2': 'Eat it'}
SIQA = {
  'context': 'Tracy left.',
  'question': 'Why did Tracy do this?',
  'answerA': 'a',
  'answerB': 'b',
  'answerC': 'c',
}
WINOGRANDE = {
  'qID': '3QHI',
  'sentence': 'Ann thanked Bo because _ had helped.',
  'option1': 'Ann',
  'option2': 'Bo',
  'answer': '2',
}
INSTRUCTION = {
  'instruction': 'Is it? \n\nAnswer format: answer1/answer2',
  'input': '',
  'output': 'the correct answer is answer2',
  'answer': 'answer2',
}
SUMS = {
  'iIndex': 1,
  'lEquations': ['X=70-27'],
  'lSolutions': [43.0],
  'sQuestion': ' Joan had 70 shells . She gave 27 away . How many now ? ',
}
SVAMP = {
  'ID': 'chal-1',
  'Body': 'Each pack costs 76 dollars',
  'Question': 'How much do two cost?',
  'Equation': '( 76.0 * 2.0 )',
  'Answer': 152.0,
  'Type': 'Multiplication',
}
AQUA = {
  'question': 'What is x?',
  'options': ['A)1', 'B)2', 'C)3', 'D)4', 'E)None of these'],
  'rationale': 'x = 2 .',
  'correct': 'B',
}
NI_TASK = {
  'Contributors': [''],
  'Source': ['x'],
  'Categories': ['Title Generation'],
  'Definition': ['Give the text a title'],
  'Input_language': ['English'],
  'Positive Examples': [
    {'input': 'Rain fell', 'output': 'Rain!', 'explanation': 'short'},
    {'input': 'Sun shone.', 'output': 'Sun'},
  ],
  'Negative Examples': [],
  'Instances': [
    {'id': 'task1-1', 'input': 'Snow lay', 'output': ['Snow', 'White']},
    {'id': 'task1-2', 'input': 'Wind blew', 'output': 'Wind'},
  ],
}
MNLI = (
  'index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\t'
  'sentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\t'
  'sentence2\tlabel1\tgold_label'
)
STSB = (
  'index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\t'
  'sentence2\tscore'
)
PAIR = {'sentence1': 'First "0', 'sentence2': 'Second', 'label': 1}
COMMONSENSE = (
  'boolq', 'piqa', 'social_i_qa', 'hellaswag', 'winogrande', 'ARC-Easy',
  'ARC-Challenge', 'openbookqa',
)  # fmt: skip


def both(name, text, train='train', test='dev'):
  return {f'{name}/{split}.tsv': text for split in (train, test)}


RAW = {
  'gsm8k': Raw(
    {
      f'grade_school_math/data/{split}.jsonl': lines(GSM, GSM)
      for split in ('train', 'test')
    },
    'test',
    {**GSM, 'final': '1004'},
  ),
  'arc_easy': arc('ARC-Easy'),
  'arc_challenge': arc('ARC-Challenge'),
  'openbookqa': Raw(
    {
      f'OpenBookQA-V1-Sep2018/Data/Main/{split}.jsonl': lines(OPENBOOK)
      for split in ('train', 'dev', 'test')
    },
    'test',
    {
      'question': 'The sun is responsible for',
      'choices': ['a', 'b', 'c', 'd'],
      'answer': 3,
    },
  ),
  'hellaswag': Raw(
    {
      'data/hellaswag_train.jsonl': lines(HELLASWAG),
      'data/hellaswag_val.jsonl': lines(HELLASWAG, HELLASWAG),
    },
    'test',
    {
      'question': 'Cooking: A man boils water. He',
      'choices': [' stirs. Then', 'b', 'c', 'd'],
      'answer': 3,
    },
  ),
  'boolq': Raw(
    {'train.jsonl': lines(BOOLQ), 'dev.jsonl': lines(BOOLQ)},
    'test',
    {
      'passage': 'Water is a liquid.',
      'question': 'is water wet?',
      'answer': True,
    },
  ),
  'piqa': Raw(
    {
      'train.jsonl': lines(PIQA, PIQA),
      'train-labels.lst': '0\n1\n',
      'dev.jsonl': lines(PIQA),
      'dev-labels.lst': '1\n',
    },
    'test',
    {
      'question': 'Open a jar',
      'choices': ['Turn it', 'Eat it'],
      'answer': 1,
    },
  ),
  'siqa': Raw(
    {
      'socialiqa-train-dev/train.jsonl': lines(SIQA, SIQA),
      'socialiqa-train-dev/train-labels.lst': '1\n3\n',
      'socialiqa-train-dev/dev.jsonl': lines(SIQA),
      'socialiqa-train-dev/dev-labels.lst': '3\n',
    },
    'test',
    {
      'question': 'Tracy left. Why did Tracy do this?',
      'choices': ['a', 'b', 'c'],
      'answer': 2,
    },
  ),
  'winogrande': Raw(
    {
      'winogrande_1.1/train_xl.jsonl': lines(WINOGRANDE),
      'winogrande_1.1/dev.jsonl': lines(WINOGRANDE),
    },
    'test',
    {
      'before': 'Ann thanked Bo because ',
      'after': ' had helped.',
      'question': WINOGRANDE['sentence'],
      'choices': ['Ann', 'Bo'],
      'answer': 1,
    },
  ),
  'commonsense_170k': Raw(
    {'ft-training_set/commonsense_170k.json': json.dumps([INSTRUCTION])}
    | {
      f'dataset/{name}/test.json': json.dumps([INSTRUCTION])
      for name in COMMONSENSE
    },
    'arc_easy',
    {
      'question': INSTRUCTION['instruction'],
      'output': 'the correct answer is answer2',
      'answer': 'answer2',
    },
  ),
  'math_10k': Raw(
    {
      'ft-training_set/math_10k.json': json.dumps(
        [
          {
            'instruction': ' Two and two? ',
            'input': '',
            'output': '\nA: 2 + 2 = 4. The answer is 4.',
            'answer': '4.0',
          }
        ]
      )
    },
    'train',
    {
      'question': 'Two and two?',
      'answer': 'A: 2 + 2 = 4. The answer is 4.',
      'final': '4.0',
    },
  ),
  **{
    name: Raw(
      {f'dataset/{folder}/{folder}.json': json.dumps([SUMS])},
      'test',
      {
        'question': 'Joan had 70 shells . She gave 27 away . How many now ?',
        'answer': 'The answer is 43.',
        'final': '43',
      },
    )
    for name, folder in (('addsub', 'AddSub'), ('multiarith', 'MultiArith'))
  },
  'svamp': Raw(
    {'SVAMP.json': json.dumps([SVAMP])},
    'test',
    {
      'question': 'Each pack costs 76 dollars. How much do two cost?',
      'answer': 'The answer is 152.',
      'final': '152',
    },
  ),
  'aqua': Raw(
    {f'{split}.json': lines(AQUA) for split in ('train', 'dev', 'test')},
    'test',
    {
      'question': 'What is x? Answer Choices: (A) 1 (B) 2 (C) 3 (D) 4 (E) None '
      'of these',
      'answer': 'x = 2 . The answer is (B).',
      'final': 'B',
    },
  ),
  'super_ni': Raw(
    {
      'tasks/task1_title.json': json.dumps(NI_TASK),
      'splits/default/train_tasks.txt': 'task1_title\n',
      'splits/default/test_tasks.txt': 'task1_title\n',
    },
    'test',
    {
      'task': 'task1_title',
      'categories': ['Title Generation'],
      'definition': 'Give the text a title',
      'example_inputs': ['Rain fell', 'Sun shone.'],
      'example_outputs': ['Rain!', 'Sun'],
      'example_explanations': ['short', ''],
      'input': 'Snow lay',
      'outputs': ['Snow', 'White'],
    },
  ),
  'cola': Raw(
    both('CoLA', tsv(['gj04', '1', '', 'It "is so.'], ['b', '0', '*', 'So.'])),
    'test',
    {'sentence': 'It "is so.', 'label': 1},
  ),
  'sst2': Raw(
    both('SST-2', tsv(['sentence', 'label'], ['fine .', '1'], ['bad', '0'])),
    'test',
    {'sentence': 'fine .', 'label': 1},
  ),
  'mrpc': Raw(
    {
      f'MRPC/msr_paraphrase_{split}.txt': '\ufeff'
      + pairs(
        'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String',
        '10',
        ('#1 String', '#2 String', 'Quality'),
      )
      for split in ('train', 'test')
    },
    'test',
    PAIR,
  ),
  'stsb': Raw(
    both(
      'STS-B',
      pairs(STSB, ['3.8', '5.000'], ('sentence1', 'sentence2', 'score')),
    ),
    'test',
    {'sentence1': 'First "0', 'sentence2': 'Second', 'score': 3.8},
  ),
  'qqp': Raw(
    both(
      'QQP',
      pairs(
        'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate',
        '10',
        ('question1', 'question2', 'is_duplicate'),
      ),
    ),
    'test',
    {'question1': 'First "0', 'question2': 'Second', 'label': 1},
  ),
  'mnli': Raw(
    {
      f'MNLI/{name}.tsv': pairs(
        MNLI,
        ['neutral', 'contradiction'],
        ('sentence1', 'sentence2', 'gold_label'),
      )
      for name in ('train', 'dev_matched', 'dev_mismatched')
    },
    'test_mismatched',
    {'premise': 'First "0', 'hypothesis': 'Second', 'label': 1},
  ),
  'qnli': Raw(
    both(
      'QNLI',
      pairs(
        'index\tquestion\tsentence\tlabel',
        ['not_entailment', 'entailment'],
        ('question', 'sentence', 'label'),
      ),
    ),
    'test',
    {'question': 'First "0', 'sentence': 'Second', 'label': 1},
  ),
  'rte': Raw(
    both(
      'RTE',
      pairs(
        'index\tsentence1\tsentence2\tlabel', ['not_entailment', 'entailment']
      ),
    ),
    'test',
    PAIR,
  ),
  'wnli': Raw(
    both('WNLI', pairs('index\tsentence1\tsentence2\tlabel', '10')),
    'test',
    PAIR,
  ),
}


def write(name: str, folder: pathlib.Path) -> pathlib.Path:
  """Writes the raw files of a set; returns their folder."""
  for file, text in RAW[name].files.items():
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
  return folder
