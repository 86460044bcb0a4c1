"""Makes the tables of the README from results.jsonl and where.jsonl."""

import pathlib

from experiments import results
from experiments.training_step.table import table
from experiments.training_step.where import table as where_table

FOLDER = pathlib.Path(__file__).parent


def sections(folder: pathlib.Path) -> dict[str, str]:
  parts = results.load_rows(folder / 'where.jsonl')
  return {
    'table': table(results.load_rows(folder / 'results.jsonl')),
    'where': '\n\n'.join(map(where_table, parts)),
  }


if __name__ == '__main__':
  results.rebuild(__doc__, FOLDER, sections)
