#!/usr/bin/env python3
"""Runs a training on TPU slices of a GKE cluster, as a JobSet.

    launch/gke.py --name=reversal --image=REGISTRY/lora_opt:1 \\
      --accelerator=tpu-v5-lite-podslice --topology=4x4 [--slices=2] \\
      --claim=shared --model_dir=/shared/runs/reversal [--dry_run] -- FLAG ...

FLAGs are those of `python -m lora_opt.main`. The image must have this project
as its working directory, and the packages of constraints.txt with jax[tpu]. The
claim is a volume that all machines can write to (ReadWriteMany). Needs kubectl,
and the JobSet controller in the cluster. --dry_run prints the manifest.
"""

import argparse
import json
import math
import pathlib
import re
import string
import subprocess
import sys
from collections.abc import Sequence

from checks import is_plain, whole

TEMPLATE = pathlib.Path(__file__).with_name('jobset.yaml')

# Chips per machine in a slice of several machines.
CHIPS_OF_A_MACHINE = 4
# Chips of the largest slice that one machine holds, by GKE's accelerator name.
ONE_MACHINE = {
  'tpu-v4-podslice': 4,
  'tpu-v5-lite-podslice': 8,
  'tpu-v5p-slice': 4,
  'tpu-v6e-slice': 8,
}
# A name that Kubernetes accepts; pods append to it, within 63 characters.
_NAME = re.compile(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?')
# A name of a volume claim; nothing is appended to it.
_CLAIM = re.compile(r'[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?')
_IMAGE = re.compile(r'[\w][\w./:@-]{0,400}', re.ASCII)


def machines(accelerator: str, topology: str) -> tuple[int, int]:
  """The number of machines in a slice, and of chips in each.

  Args:
    accelerator: as in the label cloud.google.com/gke-tpu-accelerator.
    topology: chips along each axis, such as 4x4 or 2x2x4.

  Raises:
    ValueError: the accelerator is unknown, or the topology is invalid.

  >>> machines('tpu-v5-lite-podslice', '2x4')
  (1, 8)
  >>> machines('tpu-v5p-slice', '4x4x8')
  (32, 4)
  """
  if accelerator not in ONE_MACHINE:
    raise ValueError(
      f'--accelerator={accelerator} is none of {", ".join(ONE_MACHINE)}'
    )
  if not re.fullmatch(r'[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}', topology):
    raise ValueError(f'--topology={topology} is not like 4x4 or 2x2x4')
  chips = math.prod(int(size) for size in topology.split('x'))
  if chips <= ONE_MACHINE[accelerator]:
    return 1, chips
  if chips % CHIPS_OF_A_MACHINE:
    raise ValueError(
      f'--topology={topology} has {chips} chips, not a multiple of the '
      f'{CHIPS_OF_A_MACHINE} of a machine'
    )
  return chips // CHIPS_OF_A_MACHINE, CHIPS_OF_A_MACHINE


def manifest(options: argparse.Namespace) -> str:
  """The JobSet, in YAML.

  Raises:
    ValueError: Kubernetes would not accept an option.
  """
  if not _NAME.fullmatch(options.name):
    raise ValueError(
      f'--name={options.name}: up to 40 lower-case letters, digits and dashes'
    )
  if not _CLAIM.fullmatch(options.claim):
    raise ValueError(f'--claim={options.claim}: not the name of a claim')
  if not _IMAGE.fullmatch(options.image):
    raise ValueError(f'--image={options.image}: not the name of an image')
  for name in ('mount', 'model_dir'):
    path = getattr(options, name)
    if (
      not path.startswith('/') or '..' in path.split('/') or not is_plain(path)
    ):
      raise ValueError(f'--{name}={path!r}: not a whole path without ..')
  for flag in options.flags:
    if not is_plain(flag.replace('\n', '').replace('\t', '')):
      raise ValueError(f'{flag!r} holds characters that YAML cannot')
  if not pathlib.PurePosixPath(options.model_dir).is_relative_to(options.mount):
    raise ValueError(
      f'--model_dir={options.model_dir} is not on the volume, which is mounted '
      f'at {options.mount}; see --mount'
    )
  hosts, chips = machines(options.accelerator, options.topology)
  command = [
    'bash',
    'launch/worker.sh',
    '--coordinator_address=auto',
    *options.flags,
  ]
  values = {
    'name': options.name,
    'image': options.image,
    'accelerator': options.accelerator,
    'topology': options.topology,
    'claim': options.claim,
    'mount': options.mount,
    # A $(NAME) would be expanded by Kubernetes.
    'model_dir': options.model_dir.replace('$', '$$'),
    'command': [word.replace('$', '$$') for word in command],
    'slices': options.slices,
    'restarts': options.restarts,
    'hosts': hosts,
    'chips': chips,
  }
  # JSON is YAML, and quotes everything that needs quotes.
  return string.Template(TEMPLATE.read_text(encoding='utf-8')).substitute(
    {n: json.dumps(value, ensure_ascii=False) for n, value in values.items()}
  )


def main(arguments: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--name', required=True, help='name of the JobSet')
  parser.add_argument('--image', required=True, help='container image')
  parser.add_argument(
    '--accelerator', required=True, help=', '.join(ONE_MACHINE)
  )
  parser.add_argument('--topology', required=True, help='of a slice: 4x4')
  parser.add_argument('--slices', type=whole(1, 10_000), default=1)
  parser.add_argument('--claim', required=True, help='PersistentVolumeClaim')
  parser.add_argument(
    '--mount', default='/shared', help='where the claim is mounted'
  )
  parser.add_argument('--model_dir', required=True, help='folder of the run')
  parser.add_argument(
    '--restarts',
    type=whole(0),
    default=20,
    help='restarts after which the JobSet counts as failed',
  )
  parser.add_argument(
    '--dry_run', action='store_true', help='only print the manifest'
  )
  parser.add_argument('flags', nargs='*', metavar='FLAG')
  options = parser.parse_args(arguments)
  sys.stdout.reconfigure(encoding='utf-8')
  try:
    text = manifest(options)
  except ValueError as error:
    parser.error(str(error))
  if options.dry_run:
    print(text, end='')
    return 0
  return subprocess.run(
    ['kubectl', 'apply', '-f', '-'], input=text, encoding='utf-8', check=False
  ).returncode


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
