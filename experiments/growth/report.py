"""Makes the table and the picture of the README from results.jsonl."""

import functools

from experiments import results
from experiments.growth.run import FOLDER, draw, table

sections = functools.partial(results.table_section, table)

if __name__ == '__main__':
  results.rebuild(__doc__, FOLDER, sections, draw)
