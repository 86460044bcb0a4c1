"""Makes the table of the README from results.jsonl."""

import functools
import pathlib

from experiments import results
from experiments.scoring.table import table

FOLDER = pathlib.Path(__file__).parent

sections = functools.partial(results.table_section, table)

if __name__ == '__main__':
  results.rebuild(__doc__, FOLDER, sections)
