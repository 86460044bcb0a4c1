"""Injects many faults: `python -m tests.faults --count 200 --seed 0`."""

import argparse
import collections
import pathlib
import tempfile

from tests.faults.harness import Harness


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--count', type=int, default=200)
  parser.add_argument('--seed', type=int, default=0)
  settings = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    harness = Harness(pathlib.Path(folder), settings.seed)
    kinds: collections.Counter[str] = collections.Counter()
    while kinds.total() < settings.count:
      attempt = harness.attempt()
      if attempt.fired:
        kinds[attempt.fault.kind] += 1
      print(f'{kinds.total()}: {attempt}', flush=True)
    harness.finish()
  print(f'{kinds.total()} faults, all survived: {dict(kinds)}')
  print(f'{harness.finished} runs ended with the adapter of the reference')


if __name__ == '__main__':
  main()
