"""The training step of a planned run, compiled from shapes alone."""

import dataclasses
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lora_opt import progress
from lora_opt.devices.partitioning import Partitioner, Placement
from lora_opt.planning.costs import Costs, costs
from lora_opt.planning.cycles import Cycles, cycles
from lora_opt.planning.kept import Compiled, compile_or_recall
from lora_opt.planning.operations import product_flops
from lora_opt.planning.targets import Target, compiling_for
from lora_opt.planning.widen import widen
from lora_opt.training.step import make_train_step
from lora_opt.training.train_state import (
  TrainState,
  abstract_train_state,
  placed_shapes,
)

# Compiler options for simulated devices. They change neither what is computed
# nor where it is placed: machine code that never runs need not be fast, and
# collectives stay separate so that they can be counted.
_SIMULATED = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
  'xla_disable_hlo_passes': 'all-reduce-combiner,cpu-all-reduce-combiner',
}


class DoesNotFitError(ValueError):
  """The compiler says that a step needs more memory than a device has."""


class Job(NamedTuple):
  """What is trained, independent of the devices.

  Attributes:
    model: A `lora_opt.models.CausalLM` or an object with the same interface;
      shapes suffice for its weights.
    optimizer: The optimizer of the adapter parameters.
    batch: Name -> array or shape (rows, ...).
    settings: Further arguments of `make_train_step`.
  """

  model: Any
  optimizer: optax.GradientTransformation
  batch: Mapping[str, Any]
  settings: Mapping[str, Any]


class Shapes(NamedTuple):
  """All inputs of a step, as shapes with shardings."""

  placement: Placement
  base: Any
  state: TrainState
  batch: dict[str, jax.ShapeDtypeStruct]

  def held(self) -> dict[str, int]:
    """Bytes on the device that holds most, by kind."""
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
    held: Bytes on a device before the step, by kind.
    activations: Bytes that loops over layers keep for the backward pass.
    temporaries: Bytes of everything else that a step needs while it runs: what
      the compiler reserves, and the program itself if it is in device memory.
    peak: Bytes in use at one time, as reported by the compiler. This is less
      than the sum of the above; None if the compiler does not report it.
    costs: The work of a device in a step.
    cycles: Expected cycles of a step, on TPUs; otherwise None.
    seconds: Time that compiling took, when it was done (see `kept`).
  """

  held: Mapping[str, int]
  activations: int
  temporaries: int
  peak: int | None
  costs: Costs
  cycles: Cycles | None
  seconds: float = dataclasses.field(compare=False)

  @property
  def memory(self) -> dict[str, int]:
    """Bytes on a device during the step, by kind."""
    return {
      **self.held,
      'activations': self.activations,
      'temporaries': self.temporaries,
    }

  @property
  def total(self) -> int:
    """Bytes on a device during the step."""
    return sum(self.memory.values())


def describe(
  job: Job, partitioner: Partitioner, devices: Sequence[jax.Device]
) -> Shapes:
  """Places a job on devices.

  Raises:
    ValueError: The job does not divide evenly among them.
  """
  model = job.model
  placement = partitioner.place(model, devices)
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


def compile_step(
  job: Job, shapes: Shapes, target: Target, native_bfloat16: bool = True
) -> Program:
  """Compiles the training step for a target, and finds out what it needs.

  This can take many minutes. A line on standard error says what is being
  compiled, and another one afterwards what the result is.

  Args:
    job: What is trained.
    shapes: From `describe`, on devices of the target.
    target: What it is compiled for.
    native_bfloat16: Whether the topology's devices compute in bfloat16. If they
      are simulated, see `lora_opt.planning.widen`.

  Raises:
    DoesNotFitError: The compiler reports that memory does not suffice.
    ValueError: The compiler refuses the step for another reason.
  """
  step = make_train_step(
    job.model, job.optimizer, shapes.placement, shapes.state, **job.settings
  )
  devices = shapes.placement.mesh.size
  with compiling_for(target):
    traced = step.trace(shapes.state, shapes.base, shapes.batch)
    lowered = traced.lower()
    wide = not target.real and native_bfloat16
    wide = wide and _has_bfloat16(shapes, job.model)
    if wide:
      widen(lowered.compiler_ir('stablehlo'))
    options = None if target.real else _SIMULATED
    _say(f'compiling for {_mesh(shapes)} ...')
    start = time.monotonic()
    try:
      with progress.waiting('compiling'):
        compiled = _compiled(lowered, target, options)
    except jax.errors.JaxRuntimeError as error:
      _say(f'... refused after {time.monotonic() - start:.0f} s')
      raise refusal(error, shapes) from error
    took = time.monotonic() - start
  width = 2 if wide else 1
  flops = product_flops(traced.jaxpr, target.lowered_for) / devices
  found = costs(compiled.text, devices, flops, width)
  sizes = compiled.sizes
  while_running = (
    sizes['temp_size_in_bytes']
    + sizes['output_size_in_bytes']
    - sizes['alias_size_in_bytes']
  ) // width
  if target.real:
    # What tiled layouts in device memory add to the arguments.
    padding = sizes['argument_size_in_bytes'] - sum(shapes.held().values())
    while_running += padding + sizes['generated_code_size_in_bytes']
  activations = min(found.kept_bytes, while_running)
  program = Program(
    held=shapes.held(),
    activations=activations,
    temporaries=while_running - activations,
    peak=sizes['peak_memory_in_bytes'] if target.real else None,
    costs=found,
    cycles=cycles(compiled.text),
    seconds=compiled.seconds,
  )
  _say(f'... {program.total / 1e9:,.2f} GB in a step; it took {took:.0f} s')
  return program


def _say(line: str) -> None:
  # Not standard output, where the report is printed.
  print(line, file=sys.stderr, flush=True)


def _mesh(shapes: Shapes) -> str:
  """Describes the devices along each axis, and the bytes that each holds."""
  axes = ', '.join(
    f'{axis}={size}' for axis, size in shapes.placement.mesh.shape.items()
  )
  held = sum(shapes.held().values()) / 1e9
  return f'{axes}, {held:,.2f} GB held by a device before a step'


def refusal(error: Exception, shapes: Shapes) -> ValueError:
  """Explains a compiler's error, and quotes it.

  Args:
    error: The compiler's error.
    shapes: The inputs of the step that it compiled.
  """
  words = str(error).strip()
  if 'RESOURCE_EXHAUSTED' not in words and 'out of memory' not in words.lower():
    first = words.splitlines()[0]
    return ValueError(f'the compiler refuses the training step: {first}')
  held = ', '.join(
    f'{name} {size / 1e9:,.2f} GB' for name, size in shapes.held().items()
  )
  # The list of the largest buffers can be long.
  words = '\n'.join(words.splitlines()[:40])
  return DoesNotFitError(
    'the training step does not fit on a device, says its compiler:\n'
    f'{words}\nHeld before the step begins: {held}. What makes room: more '
    'devices along FSDP; for activations a smaller BATCH_SIZE, more '
    "MICROBATCHES or the model's remat='full'; for the logits its loss_rows; "
    "for base weights its quantize='nf4'"
  )


def bytes_on_a_device(tree: Any) -> int:
  """Bytes that one device holds of arrays, given their shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def _compiled(lowered, target: Target, options) -> Compiled:
  """Compiles, even without a GPU to try out the tiles of products on.

  Without a GPU, XLA's own products (by Triton) find no tiles for some sizes,
  such as 320 columns and the 8 of an adapter. Then cuBLAS is used, which
  supports all sizes. With a GPU at hand, XLA would end up there as well.
  """
  try:
    return compile_or_recall(lowered, target, options)
  except jax.errors.JaxRuntimeError as error:
    if "Couldn't find output tile sizes" not in str(error):
      raise
  _say("... no tiles for a product of XLA's own: again, with those of cuBLAS")
  options = {**(options or {}), 'xla_gpu_enable_triton_gemm': False}
  return compile_or_recall(lowered, target, options)


def _has_bfloat16(shapes: Shapes, model: Any) -> bool:
  leaves = jax.tree.leaves((shapes.base, shapes.state.lora))
  dtypes = {leaf.dtype for leaf in leaves} | {jnp.dtype(model.dtype)}
  return jnp.dtype('bfloat16') in dtypes
