"""Computes the numbers of transformers and peft that the parity tests replay.

    python -m tests.models.make_golden [FAMILY ...]

writes tests/golden/parity/FAMILY_CASE.npz for every case of the families named,
by default of all. It needs torch, transformers, peft and
diffusers.

A family is a module of tests/models/parity with `CASES`, a dict of cases by
name, and `reference(case)`, which returns the torch model, arrays by name, and
the text of its config.json.
"""

import argparse

from tests.models.parity import (
  decoder,
  diffusion,
  encoder,
  encoder_decoder,
  material,
  samplers,
  vision,
)

FAMILIES = {
  'decoder': decoder,
  'diffusion': diffusion,
  'encoder': encoder,
  'encoder_decoder': encoder_decoder,
  'samplers': samplers,
  'vision': vision,
}


def main() -> None:
  """Writes the files of the families on the command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('families', nargs='*', metavar='FAMILY')
  chosen = parser.parse_args().families or FAMILIES
  for family in chosen:
    if family not in FAMILIES:
      parser.error(f'{family!r} is none of {", ".join(FAMILIES)}')
    for name, case in FAMILIES[family].CASES.items():
      _, arrays, config = FAMILIES[family].reference(case)
      size = material.write_golden(f'{family}_{name}', arrays, config)
      print(f'{family}_{name}: {size} bytes')


if __name__ == '__main__':
  main()
