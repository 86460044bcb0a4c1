"""Programs that are made before their hardware is there."""

import os
import subprocess
import sys

import jax
import pytest

from lora_opt import adamw
from lora_opt.data import forms
from lora_opt.devices.partitioning import Partitioner
from lora_opt.models import LoraConfig, random_model
from lora_opt.planning import ahead, targets
from tests.training import launching


def compiled(folder, topology, **settings):
  model = random_model(LoraConfig(rank=4), num_layers=1)
  return ahead.compile_ahead(
    folder,
    model,
    adamw(1e-3),
    forms.empty_batch,
    topology=topology,
    diagnostics=False,
    **settings,
  )


def test_programs_for_gpus_are_refused_by_name(tmp_path, monkeypatch):
  gpus = targets.Target('gpu', (), 'jax-cuda13-plugin')
  monkeypatch.setattr(ahead, 'find_target', lambda topology: gpus)
  with pytest.raises(ValueError, match='8xh100: .*cannot be made ahead of ti'):
    compiled(tmp_path, '8xh100')


def test_an_estimate_is_no_program(tmp_path, monkeypatch):
  monkeypatch.setattr(targets.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r'1xv5e: .*lora_opt\[plan-tpu\]'):
    compiled(tmp_path, 'v5e-1')


def test_an_entry_for_tpus(tmp_path, capsys):
  pytest.importorskip('libtpu')
  before = jax.config.jax_compilation_cache_dir
  settings = {'partitioner': Partitioner(fsdp=4), 'batch_size': 4}
  folder = compiled(tmp_path, 'v5e-4', **settings)
  (program,) = folder.glob('jit_step-*-cache')
  assert program.stat().st_size > 10_000
  assert 'is untried' in capsys.readouterr().out
  # Once more: the same name, and no warning that it could not be read.
  compiled(tmp_path, 'v5e-4', **settings)
  assert list(folder.glob('*-cache')) == [program]
  assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.long
def test_a_run_finds_the_program_that_was_made_ahead(tmp_path):
  """On simulated devices, whose programs can be shipped as well."""
  cache = tmp_path / 'elsewhere'

  def run(mode, *flags):
    subprocess.run(
      [
        *(sys.executable, '-m', 'lora_opt.main', f'--run_mode={mode}'),
        *launching.FLAGS,
        '--gin_file=configs/optimizers/adamw.gin',
        *('--gin.TRAIN_STEPS=1', '--gin.FSDP=2', '--gin.RANDOM_SEED=3'),
        f'--gin.MODEL_DIR={tmp_path / mode}',
        *flags,
      ],
      env=os.environ
      | {
        'JAX_COMPILATION_CACHE_DIR': '' if mode == 'compile' else str(cache),
        'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
        'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      },
      check=True,
      capture_output=True,
      timeout=300,
    )

  run('compile', '--gin.TOPOLOGY=2xcpu', '--compilation_cache_dir=')
  made = tmp_path / 'compile' / ahead.FOLDER
  made.rename(cache)
  (program,) = cache.glob('jit_step-*')
  run('train', '--gin.loop.train.evaluate_before=False')
  assert list(cache.glob('jit_step-*')) == [program]
  assert len(list(cache.glob('jit_*'))) > 1  # the rest was compiled there
