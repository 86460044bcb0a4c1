"""That long rows need no square array, by the real compiler of TPUs."""

import re

import jax
import jax.numpy as jnp
import pytest

import lora_opt
from lora_opt.data import forms
from lora_opt.devices.partitioning import Partitioner
from lora_opt.models import LoraConfig, random_model
from lora_opt.models.attend import attend
from lora_opt.models.visibility import Visibility
from lora_opt.planning import program, targets
from lora_opt.planning.chips import read_topology
from lora_opt.training.step import make_train_step

LENGTH = 640


def compiled_step(partitioner, topology, **settings):
  """A training step on rows of `LENGTH`, as the compiler writes it."""
  pytest.importorskip('libtpu')
  model = random_model(
    LoraConfig(rank=4), num_layers=1, dtype='bfloat16', **settings
  )
  target = targets.find_target(read_topology(topology))
  devices = len(target.devices)
  batch = forms.empty_batch('decoder', length=LENGTH, batch_size=devices)
  job = program.Job(model, lora_opt.adamw(1e-3), batch, {})
  shapes = program.describe(job, partitioner, target.devices)
  step = make_train_step(model, job.optimizer, shapes.placement, shapes.state)
  traced = step.trace(shapes.state, shapes.base, shapes.batch)
  return traced.lower().compile().as_text()


def kernels(text):
  """Their names, each as often as it stands in the program."""
  found = re.findall(r'%splash_mha_(fwd|dq|dkv)\S* = .*"tpu_custom_call"', text)
  return sorted(found)


def squares(text):
  return re.findall(rf'\w+\[[\d,]*{LENGTH},{LENGTH}[\d,]*\]', text)


def test_on_a_tpu_long_rows_are_the_kernels_of_splash_attention():
  text = compiled_step(Partitioner(), 'v5e-1')
  # Forward once: what backward needs of it is kept.
  assert kernels(text) == ['dkv', 'dq', 'fwd'] and not squares(text)


@pytest.mark.slow
def test_the_plain_way_has_squares():
  text = compiled_step(Partitioner(), 'v5e-1', attention='plain')
  assert not kernels(text) and squares(text)


@pytest.mark.slow
@pytest.mark.parametrize(
  'kv_heads', [pytest.param(4, marks=pytest.mark.long), 1]
)
def test_nothing_is_brought_together_for_a_kernel(kv_heads):
  """Heads lie along `tensor`, rows along `fsdp`, and stay there."""
  text = compiled_step(
    Partitioner(fsdp=4, tensor=2),
    'v5e-8',
    num_heads=4,
    num_kv_heads=kv_heads,
    head_dim=16,
  )
  assert kernels(text) == ['dkv', 'dq', 'fwd'] and not squares(text)
  moved = re.findall(
    r'= (\S+) (?:all-gather|all-to-all|collective-permute)\S*\(', text
  )
  assert moved and not [shape for shape in moved if str(LENGTH) in shape]


def test_this_machine_compiles_another_way_for_itself():
  model = random_model(LoraConfig(rank=4), num_layers=1)
  batch = forms.empty_batch('decoder', length=LENGTH, batch_size=1)
  losses = jax.jit(model.token_losses)
  text = losses.lower(model.base, None, batch).as_text()
  assert 'custom_call' not in text and f'{LENGTH}x{LENGTH}x' not in text


@pytest.mark.long
@pytest.mark.parametrize('width', [64, 128, 256])
def test_on_a_gpu_long_rows_are_its_kernel(width):
  if not targets.is_installed('gpu'):
    pytest.fail('the compiler of GPUs is not installed: WITH_GPU=1')
  target = targets.find_target(read_topology('1xh100'))
  sharding = jax.sharding.SingleDeviceSharding(target.devices[0])
  x, segments = (
    jax.ShapeDtypeStruct(shape, kind, sharding=sharding)
    for shape, kind in (
      ((1, LENGTH, 2, width), jnp.bfloat16),
      ((1, LENGTH), jnp.int32),
    )
  )

  def loss(q, k, v, segments):
    out = attend(q, k, v, Visibility(segments))
    return out.astype(jnp.float32).sum()

  with targets.compiling_for(target):
    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x, segments)
    text = lowered.compile().as_text()
  # Forward, what goes before backward, and backward.
  assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == 3
  assert not squares(text)
