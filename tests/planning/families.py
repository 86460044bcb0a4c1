"""The training step of every family of models, small, compiled for TPU v5e.

    python -m tests.planning.families [FAMILY ...]

renews the table that `families_test.py` compares with, families.json: the
cycles that the compiler expects, the bytes in use at one time, and the kernels
whose cycles it does not count. Sizes are small and the parts are those of the
published models: their config.json with fewer layers, narrower.
"""

import json
import pathlib
import sys
import tempfile

import lora_opt
from lora_opt.data import forms
from lora_opt.devices.partitioning import Partitioner
from lora_opt.models import LoraConfig, from_folder
from lora_opt.planning.chips import read_topology
from lora_opt.planning.plan import make_plan
from lora_opt.planning.program import Job

TABLE = pathlib.Path(__file__).with_name('families.json')
PUBLISHED = pathlib.Path(__file__).parents[2] / 'configs/published'
ROWS, LENGTH = 4, 256
_LLAMA = {
  'hidden_size': 256,
  'intermediate_size': 512,
  'num_attention_heads': 2,
  'num_key_value_heads': 1,
  'num_hidden_layers': 2,
  'vocab_size': 2048,
}
# The published model that stands for a family, and what differs from it. Two
# layers: of one, the compiler makes no loop.
FAMILIES = {
  'llama': ('llama3_8b', _LLAMA),
  # As long as attention is a kernel there.
  'llama, 1024 tokens': ('llama3_8b', _LLAMA),
  'gemma': (
    'gemma_2b',
    {
      'hidden_size': 256,
      'intermediate_size': 512,
      'num_attention_heads': 2,
      'num_hidden_layers': 2,
      'vocab_size': 2048,
    },
  ),
  'gemma3': (
    'gemma3_270m',
    {
      'hidden_size': 256,
      'intermediate_size': 512,
      'num_attention_heads': 2,
      'num_hidden_layers': 2,
      'layer_types': ['sliding_attention', 'full_attention'],
      'sliding_window': 128,
      'vocab_size': 2048,
    },
  ),
  'gpt2': (
    'gpt2',
    {'n_embd': 256, 'n_head': 4, 'n_layer': 2, 'vocab_size': 2048},
  ),
  't5': (
    't5_v1_1_small',
    {
      'd_model': 256,
      'd_ff': 512,
      'num_heads': 4,
      'num_layers': 2,
      'num_decoder_layers': 2,
      'vocab_size': 2048,
    },
  ),
  'roberta': (
    'roberta_base',
    {
      'hidden_size': 256,
      'intermediate_size': 512,
      'num_attention_heads': 4,
      'num_hidden_layers': 2,
      'vocab_size': 2048,
    },
  ),
  'deberta': (
    'deberta_v3_base',
    {
      'hidden_size': 256,
      'intermediate_size': 512,
      'num_attention_heads': 4,
      'num_hidden_layers': 2,
      'vocab_size': 2048,
    },
  ),
}


def measure(family: str) -> dict:
  """A line of the table."""
  name, changes = FAMILIES[family]
  file = PUBLISHED / name / 'config.json'
  config = json.loads(file.read_text(encoding='utf-8')) | changes
  with tempfile.TemporaryDirectory() as folder:
    pathlib.Path(folder, 'config.json').write_text(
      json.dumps(config), encoding='utf-8'
    )
    model = from_folder(
      folder,
      lora=LoraConfig(),
      name=family,
      dtype='bfloat16',
      remat='full',
      weights=False,
    )
  length = 1024 if '1024' in family else LENGTH
  if model.batch_form == 'encoder_decoder':
    length = (length, 128)
  batch = forms.empty_batch(model.batch_form, length=length, batch_size=ROWS)
  job = Job(model, lora_opt.adamw(1e-3), batch, {})
  found = make_plan(
    job, read_topology('v5e-4'), Partitioner(fsdp=4), search=False
  )
  cycles = found.program.cycles
  return {
    'cycles': cycles.most,
    'peak': found.program.peak,
    'uncounted': dict(sorted(cycles.uncounted.items())),
    'compiler': found.target.compiler,
  }


def read_table() -> dict[str, dict]:
  """The committed numbers."""
  return json.loads(TABLE.read_text(encoding='utf-8'))


def main() -> None:
  table = read_table() if TABLE.exists() else {}
  for family in sys.argv[1:] or FAMILIES:
    found = measure(family)
    before = table.get(family, {}).get('cycles')
    change = f' ({found["cycles"] / before - 1:+.1%})' if before else ''
    print(f'{family}: {found["cycles"]:,} cycles{change}', flush=True)
    table[family] = found
  table = {family: table[family] for family in FAMILIES if family in table}
  text = json.dumps(table, indent=1)
  TABLE.write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
