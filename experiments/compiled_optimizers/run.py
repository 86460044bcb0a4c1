"""Compiles optimizer steps with the compilers of TPUs and GPUs.

    python -m experiments.compiled_optimizers.run [--chips v5e-8 8xh100]

Adapters have rank 16 on every projection, float32, and their long axes are
split over eight chips. The chips' own compilers need no chips:
`pip install ".[plan-tpu,plan-gpu]" -c constraints.txt`. Each line of
results.jsonl is a step; existing ones are skipped.
"""

import argparse
import json
import os

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lora_opt
from experiments import results
from experiments.compiled_optimizers import report
from experiments.compiled_optimizers.kernels import launches
from experiments.optimizer_step.run import methods
from experiments.optimizer_step.trees import SHAPES, make_tree
from lora_opt.planning.chips import read_topology
from lora_opt.planning.costs import costs
from lora_opt.planning.cycles import cycles
from lora_opt.planning.targets import compiling_for, find_target

RANK = 16


def placed(tree, mesh):
  """Shapes, with the long axis of every factor split over the mesh."""

  def place(path, x):
    name, last = path[-1].key, x.ndim - 1
    axes = [None] * x.ndim
    axes[last - 1 if name == 'lora_a' else last] = 'fsdp'
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree_util.tree_map_with_path(place, tree)


def measure(chips: str, tree: str, layout: str, method: str) -> dict:
  """Compiles a step with donated parameters and state."""
  target = find_target(read_topology(chips))
  if not target.real:
    raise SystemExit(
      f'{chips}: its compiler is not installed: '
      f'pip install ".[{target.missing}]" -c constraints.txt'
    )
  mesh = Mesh(np.array(target.devices), ('fsdp',))
  params = placed(
    jax.eval_shape(lambda: make_tree(tree, RANK, layout, seed=0)), mesh
  )
  tx = methods(1e-3)[method]
  state = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    jax.eval_shape(tx.init, params),
    lora_opt.state_shardings(tx, params),
  )

  def step(params, state, gradients):
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  with jax.set_mesh(mesh), compiling_for(target):
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    # Includes the processes that assemble GPU kernels.
    start = sum(os.times()[:4])
    compiled = lowered.compile()
    seconds = sum(os.times()[:4]) - start
  text, found = compiled.as_text(), cycles(compiled.as_text())
  moved = costs(text, len(target.devices), 0.0).collectives
  if target.platform == 'gpu':  # its compiler does not report them
    kernels, accessed = zip(*launches(text), strict=True)
  else:
    kernels, accessed = None, compiled.cost_analysis()['bytes accessed']
  return {
    'chips': chips,
    'tree': tree,
    'layout': layout,
    'method': method,
    'compiler': target.compiler,
    'compile_cpu_seconds': round(seconds, 1),
    'cycles': found and [found.least, found.most],
    'kernels': kernels,
    'custom_calls': report.custom_calls(text),
    'bytes_accessed': accessed,
    'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
    'collectives': sum(each.times for each in moved),
    'bytes_sent': sum(each.sent for each in moved),
  }


def main() -> None:
  # Even on machines with TPUs or GPUs: nothing runs on them.
  jax.config.update('jax_platforms', 'cpu')
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--chips', nargs='+', default=['v5e-8', '8xh100'])
  parser.add_argument('--trees', nargs='+', default=list(SHAPES))
  parser.add_argument('--layouts', nargs='+', default=['stacked', 'separate'])
  parser.add_argument('--methods', nargs='+', default=list(methods(1e-3)))
  args = parser.parse_args()
  rows = results.load_rows(report.FILE) if report.FILE.exists() else []
  done = {tuple(row[key] for key in report.KEYS) for row in rows}
  for chips in args.chips:
    for layout in args.layouts:
      for tree in args.trees:
        for method in args.methods:
          if (chips, tree, layout, method) in done:
            continue
          row = measure(chips, tree, layout, method)
          print(json.dumps(row), flush=True)
          with report.FILE.open('a', encoding='utf-8') as out:
            out.write(json.dumps(row) + '\n')
  report.main([])


if __name__ == '__main__':
  main()
