"""Plans by the real compilers, of a model that is small enough to be quick."""

import contextlib
import importlib.util
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import lora_opt
from lora_opt.data import forms
from lora_opt.devices.partitioning import Partitioner
from lora_opt.models import LoraConfig, random_model
from lora_opt.planning import plan, program, report, targets
from lora_opt.planning.chips import CHIPS, Topology, read_topology
from lora_opt.planning.program import DoesNotFitError, Job
from lora_opt.planning.timing import ASSUMED


def make_job(rows=8, length=32, **settings):
  model = random_model(
    LoraConfig(rank=4), num_layers=2, dtype='bfloat16', **settings
  )
  batch = forms.empty_batch('decoder', length=length, batch_size=rows)
  return Job(model, lora_opt.adamw(1e-3), batch, {})


@pytest.mark.parametrize(
  ('chips', 'axes', 'shape'),
  [
    (1, 2, (1, 1)),
    (2, 2, (1, 2)),
    (4, 2, (2, 2)),
    (32, 2, (4, 8)),
    (256, 2, (16, 16)),
    (1, 3, (1, 1, 1)),
    (2, 3, (1, 2, 1)),
    (4, 3, (2, 2, 1)),
    (8, 3, (2, 2, 2)),
    (64, 3, (4, 4, 4)),
    (128, 3, (4, 4, 8)),
  ],
)
def test_shapes_of_slices(chips, axes, shape):
  assert targets.slice_shape(chips, axes) == shape


def test_a_slice_that_is_no_power_of_two():
  with pytest.raises(ValueError, match='slice of 12 chips.*power of two'):
    targets.slice_shape(12, 3)


def test_without_its_compiler_a_plan_is_an_estimate_and_says_so(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  found = plan.make_plan(
    make_job(), Topology(CHIPS['v5e'], 1), Partitioner(), search=False
  )
  assert not found.target.real and found.program.cycles is None
  text = report.as_text(found, ASSUMED)
  assert 'AN ESTIMATE: this is not the compiler of v5e' in text
  assert 'pip install "lora_opt[plan-tpu]" -c constraints.txt' in text
  assert report.as_json(found)['estimate'] is True


def tpu(name):
  """A topology of TPUs, whose compiler comes for Linux alone."""
  pytest.importorskip('libtpu')
  return read_topology(name)


@pytest.mark.slow
def test_a_slice_of_tpus():
  found = plan.make_plan(
    make_job(), tpu('v5e-4'), Partitioner(fsdp=4), search=False
  )
  assert found.target.real and found.program.cycles.least > 10_000
  assert found.program.cycles.uncounted == {}
  held = sum(found.program.held.values())
  assert held < found.program.peak <= found.program.total
  kinds = {each.kind for each in found.program.costs.collectives}
  assert 'all-gather' in kinds
  text = report.as_text(found, ASSUMED)
  assert 'Compiled by libtpu' in text and 'The compiler expects' in text
  assert 'ESTIMATE:' not in text


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'fsdp', 'tensor'), [('2xv5e-4', 4, 1), ('2xv5e-16', 8, 2)]
)
def test_between_slices_goes_what_data_parallelism_needs_alone(
  name, fsdp, tensor
):
  """fsdp and tensor stay within a slice, whose devices stand in a row."""
  slice_size = fsdp * tensor
  mesh = Partitioner(data=2, fsdp=fsdp, tensor=tensor)
  job = make_job(rows=2 * fsdp)
  found = plan.make_plan(job, tpu(name), mesh, search=False)
  assert found.mesh == {'data': 2, 'fsdp': fsdp, 'tensor': tensor}
  collectives = found.program.costs.collectives
  across = [c for c in collectives if c.leaves(slice_size)]
  assert across and {c.kind for c in across} <= {'all-reduce', 'reduce-scatter'}
  # Gradients of the factors and sums of the loss, never a frozen weight.
  factors = sum(x.size for x in jax.tree.leaves(shapes_of_factors()))
  assert sum(c.bytes * c.times for c in across) < 4 * 4 * factors
  # Frozen weights are gathered along fsdp: within the slice, and by devices
  # that hold the same part along tensor.
  gathers = [c for c in collectives if c.kind == 'all-gather']
  assert gathers
  for group in (group for c in gathers for group in c.groups):
    assert len({device % tensor for device in group}) == 1
    assert len({device // slice_size for device in group}) == 1
  with pytest.raises(ValueError, match='data=1 must be a multiple of the 2 sl'):
    plan.make_plan(job, tpu(name), Partitioner(fsdp=2 * fsdp, tensor=tensor))


def shapes_of_factors():
  return jax.eval_shape(make_job().model.init, jax.random.key(0))


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_what_helps():
  job = make_job(rows=2**14, length=2**12)
  with pytest.raises(DoesNotFitError) as caught:
    plan.make_plan(job, tpu('v5e-1'), Partitioner(), search=False)
  message = str(caught.value)
  assert 'exceeds available HBM' in message and 'batch' in message
  assert "remat='full'" in message


@pytest.mark.slow
def test_the_search_asks_the_real_compiler():
  found = plan.make_plan(make_job(), tpu('v5e-4'), Partitioner(fsdp=4))
  assert [each.devices for each in found.tried] == [1]
  assert found.smallest.program.cycles is not None


@pytest.mark.long
def test_eight_gpus():
  if not targets.is_installed('gpu'):
    pytest.fail('the compiler of GPUs is not installed: WITH_GPU=1')
  found = plan.make_plan(
    make_job(), read_topology('8xh100'), Partitioner(fsdp=8), search=False
  )
  assert found.target.real and found.program.cycles is None
  assert found.program.peak > sum(found.program.held.values())
  kinds = {each.kind for each in found.program.costs.collectives}
  assert 'all-gather' in kinds
  # Work that every device does alike is not in the operations of the trace.
  assert math.isfinite(found.time.hidden) and found.time.hidden > 0


def test_bfloat16_is_compiled_as_it_is_where_the_compiler_is_real():
  target = targets.find_target(tpu('v5e-1'))
  assert target.real
  x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)
  sharding = jax.sharding.SingleDeviceSharding(target.devices[0])
  lowered = jax.jit(lambda x: x @ x, in_shardings=sharding).lower(x)
  assert 'f32[256,256]' not in lowered.compile().as_text().split('ENTRY')[1]


@pytest.mark.slow
def test_processes_plan_for_tpus_side_by_side():
  tpu('v5e-4')
  code = (
    'from lora_opt.planning import chips, targets;'
    "targets.find_target(chips.read_topology('v5e-4'));"
    "print('here', flush=True); input()"
  )
  words = [sys.executable, '-c', code]
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
  with contextlib.ExitStack() as stack:
    for _ in range(2):  # the second begins while the first is there
      started = stack.enter_context(subprocess.Popen(words, **pipes))
      stack.callback(started.kill)
      assert started.stdout.readline() == 'here\n'


def test_a_product_without_tiles_is_given_to_cublas(monkeypatch):
  """As XLA's compiler for GPUs says of (32768, 320) by (320, 328) columns."""
  asked = []

  def compiler(lowered, target, options):
    asked.append(options)
    if not options:
      raise jax.errors.JaxRuntimeError(
        "INTERNAL: Couldn't find output tile sizes that satisfy hlo: %dot.1"
      )
    return 'compiled'

  monkeypatch.setattr(program, 'compile_or_recall', compiler)
  assert program._compiled('lowered', 'target', None) == 'compiled'
  assert asked == [None, {'xla_gpu_enable_triton_gemm': False}]
