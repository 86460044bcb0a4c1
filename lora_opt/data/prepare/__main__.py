"""Command line for preparing data sets; see the package."""

import argparse
import os
import sys

from lora_opt import writing
from lora_opt.buckets.paths import as_path
from lora_opt.data.prepare.recipes import RECIPES
from lora_opt.reading.copies import local_copy


def main() -> None:
  """Prepares one data set; a user's mistake ends in a single message."""
  writing.print_anything()
  parser = argparse.ArgumentParser(
    prog='python -m lora_opt.data.prepare',
    description="Prepares a data set from its publisher's files.",
  )
  parser.add_argument('name', choices=RECIPES, metavar='NAME')
  parser.add_argument('--raw', required=True)
  parser.add_argument('--data_dir', required=True)
  parser.add_argument('--on_bad', choices=('error', 'skip'), default='error')
  args = parser.parse_args()
  # Imported late, so that --help answers at once.
  from lora_opt.data.prepare.builder import prepare

  try:
    raw = local_copy(args.raw, what='--raw')
    data_dir = as_path(args.data_dir, '--data_dir')
    info = prepare(args.name, raw, data_dir, on_bad=args.on_bad)
  except (ValueError, OSError) as error:
    if os.environ.get('LORA_OPT_TRACEBACK'):
      raise
    sys.exit(f'error: {error}')
  for split, facts in info.metadata['splits'].items():
    print(f'{args.name} {split}: {facts["rows"]} rows, ', end='')
    print(f'{facts["bad_rows"]} left out')
  print(f'{info.data_dir}: {RECIPES[args.name].licence}')


if __name__ == '__main__':
  main()
