"""Plans four large models for three topologies: the table of docs/plan.md.

    python -m experiments.plans.run FOLDER [--optimizer lora_rite] [--search]

Every plan is a separate run of the command line, takes one to three minutes on
one core, and leaves its page in FOLDER/<model>_<topology>. Existing plans are
only read. The results of the hardware's compilers are shown beside an estimate
of the same step by XLA's compiler for CPUs, made once per number of devices.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys

from lora_opt.planning.report import table

MODELS = {
  'gemma_2b': ('configs/models/gemma_2b.gin', {'targets': 1024}),
  'gemma_7b': ('configs/models/gemma_7b.gin', {'targets': 1024}),
  'llama3_8b': ('configs/models/llama3_8b.gin', {'targets': 1024}),
  'mt5_xxl': ('configs/models/mt5.gin', {'inputs': 1024, 'targets': 256}),
}
# Devices along fsdp.
TOPOLOGIES = {'v5e-64': 64, 'v5p-128': 64, '8xh100': 8}
# An estimate depends on the number of devices, not on their kind.
ESTIMATED_AS = {'v5p-128': 'v5e-64'}
FILES = (
  'configs/runs/finetune.gin',
  'configs/lora/all_linear.gin',
  'configs/tasks/word_sequence_reversal.gin',
)
# Runs the command line as if only the compiler of CPUs were installed.
WITHOUT_COMPILERS = """
import importlib.util as util, runpy
find = util.find_spec
util.find_spec = lambda name, *more: (
  None if name in ('libtpu', 'jax_cuda13_plugin') else find(name, *more))
runpy.run_module('lora_opt.main', run_name='__main__', alter_sys=True)
"""


def command(
  model: str,
  topology: str,
  folder: pathlib.Path,
  optimizer: str = 'lora_rite',
  *flags: str,
) -> list[str]:
  """The command line of a plan."""
  file, lengths = MODELS[model]
  files = (*FILES, f'configs/optimizers/{optimizer}.gin', file)
  return [
    *('python', '-m', 'lora_opt.main', '--run_mode=plan'),
    *(f'--gin_file={name}' for name in files),
    f'--gin.MODEL_PATH=configs/published/{model}',
    '--gin.WEIGHTS=False',
    f'--gin.TOPOLOGY={topology}',
    f'--gin.FSDP={TOPOLOGIES[topology]}',
    '--gin.BATCH_SIZE=64',
    f'--gin.TASK_FEATURE_LENGTHS={json.dumps(lengths)}',
    '--gin.TRAIN_STEPS=1',
    *flags,
    f'--gin.MODEL_DIR={folder}',
  ]


def planned(
  words: list[str], folder: pathlib.Path, estimate: bool = False
) -> dict:
  """Reads the plan in a folder; runs the command line if it is missing."""
  if not (folder / 'plan.json').exists():
    print(shlex.join(words), flush=True)
    start = ['-c', WITHOUT_COMPILERS] if estimate else words[1:3]
    words = [sys.executable, *start, *words[3:]]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
  return json.loads((folder / 'plan.json').read_text(encoding='utf-8'))


def row(name: str, plan: dict) -> list[str]:
  """A row of a table of plans."""
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
    str(plan['smallest'] or ''),
  ]


HEAD = [
  *('', 'base GB', 'adapters, state GB', 'activations GB', 'temporaries GB'),
  *('all GB', 'TFLOP', 'GB sent', 'ms a step', 'thousand tokens/s'),
  'smallest mesh',
]


def compared(name: str, plan: dict, estimate: dict) -> list[str]:
  """A row of this table: the memory, and the estimate's error."""
  whole = row(name, plan)
  total, estimated = (
    each['total_bytes_per_device'] / 1e9 for each in (plan, estimate)
  )
  peak, cycles = plan['peak_bytes_per_device'], plan['cycles']
  return [
    *whole[:6],
    '' if peak is None else f'{peak / 1e9:.2f}',
    f'{estimated:.2f} ({estimated / total - 1:+.0%})',
    whole[HEAD.index('GB sent')],
    f'{cycles["most"] / 1e6:,.0f}' if cycles else '',
    f'{plan["compile_seconds"]:,.0f}',
  ]


COMPARED = [
  *HEAD[:6],
  *('in use at one time', 'estimate of all (error)', 'GB sent'),
  *('million cycles', 'compile s'),
]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--optimizer', default='adamw')
  parser.add_argument('--models', nargs='+', default=list(MODELS))
  parser.add_argument('--topologies', nargs='+', default=list(TOPOLOGIES))
  parser.add_argument('--diagnostics', action='store_true')
  parser.add_argument(
    '--search', action='store_true', help='for the smallest mesh, too'
  )
  args = parser.parse_args()
  flags = [
    f'--gin.plan.plan.diagnostics={args.diagnostics}',
    f'--gin.plan.plan.search={args.search}',
  ]
  rows = []
  for model in args.models:
    for topology in args.topologies:

      def made(name, topology, estimate=False, model=model):
        place = args.folder / f'{model}_{name}'
        words = command(model, topology, place, args.optimizer, *flags)
        return planned(words, place, estimate)

      plan = made(topology, topology)
      like = ESTIMATED_AS.get(topology, topology)
      estimate = made(f'{like}_estimate', like, estimate=True)
      rows.append(compared(f'{model}, {topology}', plan, estimate))
  print(table(COMPARED, rows))


if __name__ == '__main__':
  main()
