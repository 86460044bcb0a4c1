"""That long rows need no square array, by the real compiler of TPUs."""

import re

import jax
import pytest

import lora_opt
from lora_opt.data import forms
from lora_opt.models import LoraConfig, random_model
from lora_opt.planning import program, targets
from lora_opt.planning.chips import read_topology
from lora_opt.training.partitioning import Partitioner
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
  found = re.findall(r'%splash_mha_(fwd|dq|dkv)\S* = .*"tpu_custom_call"', text)
  return sorted(set(found))


def squares(text):
  return re.findall(rf'\w+\[[\d,]*{LENGTH},{LENGTH}[\d,]*\]', text)


def test_on_a_tpu_long_rows_are_the_kernels_of_splash_attention():
  text = compiled_step(Partitioner(), 'v5e-1')
  assert kernels(text) == ['dkv', 'dq', 'fwd'] and not squares(text)


@pytest.mark.slow
def test_the_plain_way_has_squares():
  text = compiled_step(Partitioner(), 'v5e-1', attention='plain')
  assert not kernels(text) and squares(text)


@pytest.mark.slow
@pytest.mark.parametrize('kv_heads', [4, 1])
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
