"""Makes the table and the picture of the README from results.jsonl."""

from experiments import results
from experiments.growth import run


def main(argv=None):
  results.rebuild(__doc__, run.FOLDER, run.report, run.draw, argv)


if __name__ == '__main__':
  main()
