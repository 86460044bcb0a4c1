"""Plans a run of each table of the papers at full size, on eight chips.

    python -m experiments.papers.plans FOLDER

The run is the first one of the paper's own method. A plan takes up to a minute
of one core and leaves its page in FOLDER/<table>. Existing plans are only read.
"""

import pathlib
import sys

from experiments import study
from experiments.plans.run import HEAD, planned, row
from lora_opt.planning.report import table

TOPOLOGY, DEVICES = 'v5e-8', 8
# What each table trains, by its folder in configs/published.
MODELS = {
  'lora_plus_gpt2': 'gpt2',
  'lora_plus_llama_7b': 'llama_7b',
  'lora_plus_roberta': 'roberta_base',
  'lora_rite_commonsense': 'gemma_2b',
  'lora_rite_gemma_2b': 'gemma_2b',
  'lora_rite_gemma_2b_super_ni': 'gemma_2b',
  'lora_rite_gemma_7b': 'gemma_7b',
  'lora_rite_mt5_xxl': 'mt5_xxl',
  'reflora_glue': 'deberta_v3_base',
  'reflora_llama2_7b': 'llama2_7b',
  'reflora_llama3_8b': 'llama3_8b',
  'reflora_llama_7b': 'llama_7b',
}


def flags(name: str) -> list[str]:
  """The flags of a table's first run with the last method, the paper's own."""
  file = pathlib.Path(__file__).with_name(f'{name}.json')
  whole = study.read(file)
  own = whole | {'methods': dict([list(whole['methods'].items())[-1]])}
  return [*own['flags'], *next(study.ready(own, {}))[0]]


def command(
  name: str, folder: pathlib.Path, topology: str = TOPOLOGY
) -> list[str]:
  """The command line of a plan."""
  return [
    *('python', '-m', 'lora_opt.main', '--run_mode=plan', *flags(name)),
    f'--gin.MODEL_PATH=configs/published/{MODELS[name]}',
    '--gin.WEIGHTS=False',
    '--gin.DATA_DIR=none',
    f'--gin.TOPOLOGY={topology}',
    f'--gin.FSDP={DEVICES}',
    f'--gin.MODEL_DIR={folder}',
  ]


def main() -> None:
  folder, rows = pathlib.Path(sys.argv[1]), []
  for name in MODELS:
    plan = planned(command(name, folder / name), folder / name)
    rows.append(row(name, plan))
  print(table(HEAD, rows))


if __name__ == '__main__':
  main()
