"""Plans three large models for three topologies: the table of docs/plan.md.

    python -m experiments.plans.run FOLDER

Every plan is a run of the command line of its own, about a minute on one core,
and leaves its page in FOLDER/<model>_<topology>; those that are there already
are only read.
"""

import json
import pathlib
import shlex
import subprocess
import sys

from lora_opt.planning.report import table

MODELS = {
  'gemma_7b': ('configs/models/gemma_7b.gin', {'targets': 1024}),
  'llama3_8b': ('configs/models/llama3_8b.gin', {'targets': 1024}),
  'mt5_xxl': ('configs/models/mt5.gin', {'inputs': 1024, 'targets': 256}),
}
# Devices along fsdp.
TOPOLOGIES = {'v5e-64': 64, 'v5p-128': 64, '8xh100': 8}
FILES = (
  'configs/runs/finetune.gin',
  'configs/lora/all_linear.gin',
  'configs/optimizers/lora_rite.gin',
  'configs/tasks/word_sequence_reversal.gin',
)


def command(model: str, topology: str, folder: pathlib.Path) -> list[str]:
  """The command line of a plan."""
  file, lengths = MODELS[model]
  return [
    *('python', '-m', 'lora_opt.main', '--run_mode=plan'),
    *(f'--gin_file={name}' for name in (*FILES, file)),
    f'--gin.MODEL_PATH=configs/published/{model}',
    '--gin.WEIGHTS=False',
    f'--gin.TOPOLOGY={topology}',
    f'--gin.FSDP={TOPOLOGIES[topology]}',
    '--gin.BATCH_SIZE=64',
    f'--gin.TASK_FEATURE_LENGTHS={json.dumps(lengths)}',
    '--gin.TRAIN_STEPS=1',
    f'--gin.MODEL_DIR={folder}',
  ]


def planned(words: list[str], folder: pathlib.Path) -> dict:
  """What a command line that plans leaves in its folder, or has left there."""
  if not (folder / 'plan.json').exists():
    print(shlex.join(words), flush=True)
    words = [sys.executable, *words[1:]]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
  return json.loads((folder / 'plan.json').read_text(encoding='utf-8'))


def row(name: str, plan: dict) -> list[str]:
  """A line of the table."""
  parts = list(plan['bytes_per_device'].values())
  base, adapters, state, _, activations, temporaries = (n / 1e9 for n in parts)
  sent = sum(each['sent'] for each in plan['collectives']) / 1e9
  fast, slow = (plan['seconds'][key] for key in ('hidden', 'exposed'))
  return [
    name,
    f'{base:.2f}',
    f'{adapters + state:.2f}',
    f'{activations:.2f}',
    f'{temporaries:.2f}',
    f'{plan["total_bytes_per_device"] / 1e9:.2f}',
    f'{plan["flops_per_device"] / 1e12:.1f}',
    f'{sent:.1f}',
    f'{fast * 1e3:,.0f}-{slow * 1e3:,.0f}',
    f'{plan["tokens"] / slow / 1e3:,.0f}-{plan["tokens"] / fast / 1e3:,.0f}',
    str(plan['smallest']),
  ]


HEAD = [
  *('', 'base GB', 'adapters, state GB', 'activations GB', 'temporaries GB'),
  *('all GB', 'TFLOP', 'GB sent', 'ms a step', 'thousand tokens/s'),
  'smallest mesh',
]


def main() -> None:
  folder, rows = pathlib.Path(sys.argv[1]), []
  for model in MODELS:
    for topology in TOPOLOGIES:
      place = folder / f'{model}_{topology}'
      plan = planned(command(model, topology, place), place)
      rows.append(row(f'{model}, {topology}', plan))
  print(table(HEAD, rows))


if __name__ == '__main__':
  main()
