"""Makes the table of the README from results.jsonl."""

import pathlib

from experiments import results
from experiments.startup.table import table

FOLDER = pathlib.Path(__file__).parent


def sections(folder: pathlib.Path) -> dict[str, str]:
  return {'table': table(results.load_rows(folder / 'results.jsonl'))}


def main(argv=None):
  results.rebuild(__doc__, FOLDER, sections, lambda folder: None, argv)


if __name__ == '__main__':
  main()
