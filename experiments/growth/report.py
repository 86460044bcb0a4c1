"""Makes the table and the picture of the README from results.jsonl."""

import pathlib

from experiments import results
from experiments.growth.run import FOLDER, draw, table


def sections(folder: pathlib.Path) -> dict[str, str]:
  return {'table': table(results.load_rows(folder / 'results.jsonl'))}


def main(argv=None):
  results.rebuild(__doc__, FOLDER, sections, draw, argv)


if __name__ == '__main__':
  main()
