"""Plans of tiny models against closed forms and against what is really held."""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import lora_opt
from lora_opt import models
from lora_opt.data import forms, tasks
from lora_opt.data.tokenizer import Tokenizer
from lora_opt.devices.partitioning import DATA_PARALLEL, put
from lora_opt.models import LoraConfig, from_folder, random_model
from lora_opt.planning import plan
from lora_opt.planning.chips import GB, Chip, Topology
from lora_opt.planning.program import Job, compile_step, describe
from lora_opt.planning.search import Tried, candidates
from lora_opt.planning.targets import find_target
from lora_opt.planning.timing import ASSUMED
from lora_opt.training.step import make_train_step
from lora_opt.training.train_state import create_train_state
from tests.training import launching

pytestmark = pytest.mark.usefixtures('fast_compile')

ROWS, LENGTH, RANK, LAYERS = 8, 64, 4, 3
WIDTH, HEADS, MLP, VOCABULARY = 64, 4, 192, 320
ONE = Topology(
  Chip('mine', GB, flops=1e12, bandwidth=1e11, network=1e10), devices=1
)


def job(**settings):
  model = random_model(
    LoraConfig(rank=RANK),
    embed_dim=WIDTH,
    num_layers=LAYERS,
    num_heads=HEADS,
    num_kv_heads=HEADS,
    head_dim=WIDTH // HEADS,
    mlp_dim=MLP,
    vocab_size=VOCABULARY,
    **({'remat': 'none'} | settings),
  )
  batch = forms.empty_batch('decoder', length=LENGTH, batch_size=ROWS)
  return Job(model, lora_opt.adamw(1e-3), batch, {})


def compiled(job, native_bfloat16=True):
  target = find_target(ONE)
  shapes = describe(job, DATA_PARALLEL, target.devices)
  return compile_step(job, shapes, target, native_bfloat16)


@pytest.fixture(scope='module')
def planned():
  """A plan, and what was said while it was made."""
  with contextlib.redirect_stderr(io.StringIO()) as said:
    found = plan.make_plan(job(), ONE, DATA_PARALLEL)
  return found, said.getvalue()


@pytest.fixture(scope='module')
def found(planned):
  return planned[0]


@pytest.fixture(scope='module')
def program(found):
  return found.program


def products(tokens, fan_in, fan_out):
  """Operations of an adapted projection, forward and backward."""
  kernel = 2 * 2 * tokens * fan_in * fan_out  # not for its own gradient
  return kernel + 3 * 2 * tokens * RANK * (fan_in + fan_out)


def test_operations_are_those_of_the_closed_form(program):
  tokens = ROWS * LENGTH
  layer = 4 * products(tokens, WIDTH, WIDTH) + 3 * products(tokens, WIDTH, MLP)
  # Scores and mixing of values; each has two gradients, for which the scores
  # are computed once more.
  layer += (3 * 2 + 1) * 2 * ROWS * LENGTH * LENGTH * WIDTH
  head = 2 * 2 * tokens * WIDTH * VOCABULARY
  # The rest is what the optimizer does with factors.
  assert program.costs.flops == pytest.approx(LAYERS * layer + head, rel=0.01)


def test_what_is_held_and_needed_is_what_the_real_step_holds_and_needs(program):
  tiny = job()
  placement = DATA_PARALLEL.place(tiny.model, jax.devices()[:1])
  base = put(tiny.model.base, placement.base)
  lora = put(tiny.model.init(jax.random.key(0)), placement.trainable)
  state = create_train_state(lora, tiny.optimizer, placement)
  batch = placement.put_rows(tiny.batch)

  def size(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))

  assert program.held == {
    'base weights': size(base),
    'adapters': size(lora),
    'optimizer state': size((state.step, state.opt_state)),
    'batch': size(batch),
  }
  step = make_train_step(tiny.model, tiny.optimizer, placement, state)
  stats = step.lower(state, base, batch).compile().memory_analysis()
  real = (
    stats.argument_size_in_bytes
    + stats.temp_size_in_bytes
    + stats.output_size_in_bytes
    - stats.alias_size_in_bytes
  )
  assert program.total == pytest.approx(real, rel=0.02)


def test_rematerialization_keeps_less_and_computes_more(program):
  tiny = job(remat='full')
  full = compiled(tiny, native_bfloat16=False)
  assert full.costs.flops > 1.2 * program.costs.flops
  assert full.activations < program.activations / 5
  # The input of every layer is kept, and the gradient of the loss.
  assert full.activations >= 4 * ROWS * LENGTH * WIDTH * LAYERS


def test_weights_take_no_part_beyond_their_shapes(program):
  tiny = job()
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tiny.model.base
  )
  abstract = tiny._replace(model=dataclasses.replace(tiny.model, base=shapes))
  assert compiled(abstract) == program


@pytest.mark.parametrize(
  ('form', 'length'), [('decoder', 32), ('encoder_decoder', (32, 16))]
)
def test_a_batch_without_examples_is_shaped_like_one_with_them(form, length):
  rows = [{'question': 'x' * i, 'answer': str(i)} for i in range(5)]
  task = tasks.Generation(name='x', train=rows, eval=rows, chat=False)
  settings = {'length': length, 'batch_size': 2}
  tokenizer = Tokenizer.byte_level()
  stream = task.train_batches(tokenizer, form=form, seed=0, **settings)
  real = next(iter(stream))
  empty = forms.empty_batch(form, **settings)
  assert {k: (v.shape, v.dtype) for k, v in empty.items()} == {
    k: (v.shape, v.dtype) for k, v in real.items()
  }


def test_more_devices_than_there_are():
  with pytest.raises(ValueError, match='1000 devices.*simulate makes them'):
    find_target(Topology(ONE.chip, 1000))


def test_candidates_split_rows_first_and_then_heads():
  tiny = job()
  assert list(candidates(tiny, 32)) == [
    *((1, 1), (2, 1), (4, 1), (8, 1)),
    *((8, 2), (8, 4)),
  ]
  halves = tiny._replace(settings={'microbatches': 2})
  assert list(candidates(halves, 8))[-1] == (4, 2)


def test_each_mesh_is_compiled_once_and_that_is_said(planned):
  found, said = planned
  one, other = said.splitlines()
  assert one.startswith('compiling for data=1, fsdp=1, tensor=1, 0.00 GB held')
  gigabytes = found.program.total / GB
  assert other.startswith(f'... {gigabytes:,.2f} GB in a step; it took ')


def test_the_page_and_the_numbers_of_a_plan(found):
  text, numbers = (
    plan.report.as_text(found, ASSUMED),
    plan.report.as_json(found),
  )
  assert 'It fits' in text and 'tokens/s' in text
  assert found.smallest.program is found.program
  assert '1 of mine suffice: --gin.FSDP=1 --gin.TENSOR=1.' in text
  assert numbers['total_bytes_per_device'] == sum(
    numbers['bytes_per_device'].values()
  )
  assert numbers['tokens'] == ROWS * LENGTH
  assert numbers['seconds']['compute'] == pytest.approx(
    numbers['flops_per_device'] / 0.5e12
  )


def test_what_does_not_fit_says_so(found):
  tried = (Tried(1, 1, 10**6, None), Tried(2, 1, 10**5, found.program))
  small = dataclasses.replace(found, usable=1e6, tried=tried)
  assert not small.fits and small.smallest is None
  text = plan.report.as_text(small, ASSUMED)
  assert 'It does NOT fit' in text and 'None of these fits' in text
  enough = dataclasses.replace(small, usable=GB)
  assert enough.smallest == tried[1]
  assert '2 of mine suffice: --gin.FSDP=2 --gin.TENSOR=1.' in (
    plan.report.as_text(enough, ASSUMED)
  )


@pytest.mark.long
def test_from_the_command_line_on_eight_devices(tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'lora_opt.main', '--run_mode=plan'),
      *launching.FLAGS,
      f'--gin.MODEL_DIR={tmp_path}',
      *('--gin.TRAIN_STEPS=1', '--gin.TOPOLOGY=v5e-8'),
      *('--gin.FSDP=2', '--gin.TENSOR=2', '--gin.BATCH_SIZE=16'),
      '--gin.models.random_model.dtype=bfloat16',
      *('--gin.plan.plan.search=False', '--gin.plan.plan.diagnostics=False'),
      # XLA inlines a loop over one layer, and then moves parts of factors.
      '--gin.models.random_model.num_layers=2',
    ],
    env=os.environ | {'XLA_FLAGS': '', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'plan.md').read_text() in done.stdout
  numbers = json.loads((tmp_path / 'plan.json').read_text())
  assert numbers['mesh'] == {'data': 2, 'fsdp': 2, 'tensor': 2}
  rows = numbers['collectives']
  optimizer = [row for row in rows if row['part'] == 'optimizer']
  assert {row['kind'] for row in optimizer} <= {'all-reduce', 'all-gather'}
  # r x r of all sites together, split over eight devices in whole parts.
  assert all(row['elements'] <= 2 * 2 * 32 for row in optimizer)
  assert {row['kind'] for row in rows if row['part'] == 'model'} >= {
    'all-gather',
    'all-reduce',
  }


@pytest.mark.parametrize(
  ('name', 'parameters'),
  [('gemma_7b', 8_537_680_896), ('mt5_xxl', 12_921_057_280)],
)
def test_a_published_model_without_its_weights(name, parameters):
  model = from_folder(
    f'configs/published/{name}',
    lora=LoraConfig(),
    dtype='bfloat16',
    weights=False,
  )
  leaves = jax.tree.leaves(model.base)
  assert sum(leaf.size for leaf in leaves) == parameters
  assert {leaf.dtype for leaf in leaves} == {np.dtype('bfloat16')}
  with pytest.raises(ValueError, match='WEIGHTS=False'):
    put(model.base, None)


def test_a_quantized_model_without_its_weights():
  model = from_folder(
    'configs/published/smollm2_135m', weights=False, quantize='nf4'
  )
  kernel = model.base['layers']['mlp']['up']['kernel']
  assert isinstance(kernel, models.quantized.QuantizedKernel)
  assert kernel.codes.shape == (30, 576 // 2, 1536)
  assert kernel.shape == (30, 576, 1536)
