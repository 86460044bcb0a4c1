"""The training step of a described run, compiled from shapes alone."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt.planning.costs import Costs, costs
from lora_opt.planning.widen import widen
from lora_opt.training.partitioning import Partitioner, Placement
from lora_opt.training.step import make_train_step
from lora_opt.training.train_state import (
  TrainState,
  abstract_train_state,
  placed_shapes,
)

# Nothing that changes what is computed or where it lies: machine code that will
# never run need not be good, and collectives stay apart to be counted.
_OPTIONS = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
  'xla_disable_hlo_passes': 'all-reduce-combiner,cpu-all-reduce-combiner',
}


class Job(NamedTuple):
  """What is trained, whatever the devices.

  Attributes:
    model: A `lora_opt.models.CausalLM` or what offers the same; shapes do for
      its weights.
    optimizer: Over the adapter parameters.
    batch: Name -> array or shape (rows, ...).
    settings: Further arguments of `make_train_step`.
  """

  model: Any
  optimizer: optax.GradientTransformation
  batch: Mapping[str, Any]
  settings: Mapping[str, Any]


class Shapes(NamedTuple):
  """Everything a step is given, as shapes with their places."""

  placement: Placement
  base: Any
  state: TrainState
  batch: dict[str, jax.ShapeDtypeStruct]

  def held(self) -> dict[str, int]:
    """Bytes on the device that holds most, by what they are."""
    return {
      'base weights': bytes_on_a_device(self.base),
      'adapters': bytes_on_a_device(self.state.lora),
      'optimizer state': bytes_on_a_device(
        (self.state.step, self.state.opt_state)
      ),
      'batch': bytes_on_a_device(self.batch),
    }


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled step.

  Attributes:
    held: Bytes on a device before the step, by what they are.
    activations: Bytes that loops over layers keep for the backward pass.
    temporaries: Bytes of everything else that a step needs while it runs.
    costs: What a device does in a step.
  """

  held: Mapping[str, int]
  activations: int
  temporaries: int
  costs: Costs

  @property
  def memory(self) -> dict[str, int]:
    """Bytes on a device during the step, by what they are."""
    return {
      **self.held,
      'activations': self.activations,
      'temporaries': self.temporaries,
    }

  @property
  def total(self) -> int:
    """Bytes on a device during the step."""
    return sum(self.memory.values())


def describe(job: Job, partitioner: Partitioner, devices: int) -> Shapes:
  """Places a job on the first so many devices, simulated ones as a rule.

  Raises:
    ValueError: There are fewer, or the job does not divide among them.
  """
  model = job.model
  there = jax.devices()
  if len(there) < devices:
    raise ValueError(
      f'{devices} devices are to be planned with and {len(there)} are '
      'simulated: lora_opt.planning.plan.simulate makes them before JAX is used'
    )
  placement = partitioner.place(model, there[:devices])
  rows = {len(part) for part in job.batch.values()}
  placement.check_batch(*rows, job.settings.get('microbatches', 1))
  trainable = jax.eval_shape(model.init, jax.random.key(0))
  lora = placed_shapes(trainable, placement.trainable)
  return Shapes(
    placement,
    placed_shapes(model.base, placement.base),
    abstract_train_state(lora, job.optimizer, placement),
    {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement.rows)
      for name, x in job.batch.items()
    },
  )


def compile_step(job: Job, shapes: Shapes, native_bfloat16: bool) -> Program:
  """Compiles the training step for simulated devices, and reads what it needs.

  Args:
    job: What is trained.
    shapes: From `describe`.
    native_bfloat16: Whether the device computes in bfloat16. CPUs do not: see
      `lora_opt.planning.widen`.
  """
  step = make_train_step(
    job.model, job.optimizer, shapes.placement, shapes.state, **job.settings
  )
  lowered = step.lower(shapes.state, shapes.base, shapes.batch)
  wider = native_bfloat16 and _has_bfloat16(shapes, job.model)
  if wider:
    widen(lowered.compiler_ir('stablehlo'))
  compiled = lowered.compile(compiler_options=_OPTIONS)
  width = 2 if wider else 1
  found = costs(compiled.as_text(), shapes.placement.mesh.size, width)
  stats = compiled.memory_analysis()
  while_running = (
    stats.temp_size_in_bytes
    + stats.output_size_in_bytes
    - stats.alias_size_in_bytes
  ) // width
  activations = min(found.kept_bytes, while_running)
  return Program(shapes.held(), activations, while_running - activations, found)


def bytes_on_a_device(tree: Any) -> int:
  """Bytes of one device's parts of arrays, given their shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def _has_bfloat16(shapes: Shapes, model: Any) -> bool:
  leaves = jax.tree.leaves((shapes.base, shapes.state.lora))
  dtypes = {leaf.dtype for leaf in leaves} | {jnp.dtype(model.dtype)}
  return jnp.dtype('bfloat16') in dtypes
