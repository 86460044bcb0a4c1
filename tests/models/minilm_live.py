"""Writes minilm_reference.json: needs torch and transformers.

python -m tests.models.minilm_live
"""

import json
import pathlib

import torch
import transformers

from lora_opt.models.pretrained.minilm import minilm_folder

TEXTS = (
  'A plane is taking off.|An air plane is taking off.',
  "She was VERY naïve, wasn't she?|",
  'Amrozi accused his brother , whom he called " the witness " .|'
  'Referring to him as only " the witness " , Amrozi accused his brother .',
)


def main():
  """Ids, types and the first numbers of the mean of the last states."""
  folder = minilm_folder()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModel.from_pretrained(folder).eval()
  found = {}
  for text in TEXTS:
    first, _, second = text.partition('|')
    batch = tokenizer(first, second or None, return_tensors='pt')
    with torch.no_grad():
      mean = model(**batch).last_hidden_state[0].mean(0)
    found[text] = {
      'ids': batch['input_ids'][0].tolist(),
      'types': batch['token_type_ids'][0].tolist(),
      'mean': [round(x, 7) for x in mean[:8].tolist()],
    }
  file = pathlib.Path(__file__).with_name('minilm_reference.json')
  file.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
