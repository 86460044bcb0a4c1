"""The side of lora_opt: runs the main job's own training step."""

import sys
import time

from experiments.training_step import cases, measured

STARTED = time.perf_counter()


def main(case: str, dtype: str, data_dir: str, cache: str):
  import jax
  import numpy as np

  import lora_opt
  from lora_opt.devices.partitioning import DATA_PARALLEL, put
  from lora_opt.models import LoraConfig, smollm2_135m
  from lora_opt.training.step import make_train_step
  from lora_opt.training.train_state import create_train_state

  jax.config.update('jax_compilation_cache_dir', cache)
  model = smollm2_135m(lora=LoraConfig(rank=16, alpha=32.0), dtype=dtype)
  placement = DATA_PARALLEL.place(model)
  base = put(model.base, placement.base)
  optimizer = lora_opt.adamw(1e-4)
  lora = put(model.init(jax.random.key(0)), placement.trainable)
  state = create_train_state(lora, optimizer, placement)
  train_step = make_train_step(model, optimizer, placement, state)
  batches = iter(cases.packed_batches(case, data_dir, model))

  def step():
    nonlocal state
    batch = next(batches)
    rows = len(batch['segment_ids'])
    started = time.perf_counter()
    state, metrics = train_step(state, base, placement.put_batch(batch, rows))
    loss = float(metrics['loss'])
    return {
      'seconds': time.perf_counter() - started,
      'tokens': int(np.sum(batch['segment_ids'] > 0)),
      'loss': loss,
    }

  measured.serve_steps(step, STARTED)


if __name__ == '__main__':
  main(*sys.argv[1:])
