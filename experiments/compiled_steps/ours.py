"""Compiles our training step of a case.

python -m experiments.compiled_steps.ours gemma_2b/v5e-8 [--remat full]
"""

import argparse

import jax

import lora_opt
from experiments.compiled_steps import cases, measured
from lora_opt.data import forms
from lora_opt.devices.partitioning import Partitioner
from lora_opt.models import LoraConfig, from_folder
from lora_opt.planning.chips import read_topology
from lora_opt.planning.program import Job, describe
from lora_opt.planning.targets import find_target
from lora_opt.training.step import make_train_step


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('case', type=cases.case)
  parser.add_argument('--remat', default='full')
  parser.add_argument('--attention', default='auto')
  parser.add_argument('--loss_rows', type=int)
  parser.add_argument('--dump')
  flags = parser.parse_args()
  case = flags.case
  jax.config.update('jax_platforms', 'cpu')
  # The compile time is part of the comparison.
  jax.config.update('jax_enable_compilation_cache', False)
  settings = {
    name: getattr(flags, name) for name in ('remat', 'attention', 'loss_rows')
  }
  model = from_folder(
    cases.PUBLISHED / case.model,
    lora=LoraConfig(rank=cases.RANK, alpha=cases.ALPHA),
    dtype='bfloat16',
    weights=False,
    **settings,
  )
  batch = forms.empty_batch(
    'decoder', length=cases.LENGTH, batch_size=case.rows
  )
  target = find_target(read_topology(case.topology))
  job = Job(model, lora_opt.adamw(1e-3), batch, {})
  mesh = Partitioner(fsdp=len(target.devices))
  shapes = describe(job, mesh, target.devices)
  step = make_train_step(
    model, job.optimizer, shapes.placement, shapes.state, **job.settings
  )
  traced = step.trace(shapes.state, shapes.base, shapes.batch)
  found = measured.measure(traced, target, flags.dump)
  measured.report({'side': 'lora_opt', 'settings': settings} | found)


if __name__ == '__main__':
  main()
