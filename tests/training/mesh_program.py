"""Trains a tiny model on meshes of host devices; prints what it saw as JSON.

`XLA_FLAGS=--xla_force_host_platform_device_count=8
python -m tests.training.mesh_program '{"recipes": ["lora_rite"],
"meshes": [[1, 1, 1], [2, 2, 2]], "optimize": false, "objective": "dpo"}'`

An empty list of recipes means every recipe, of meshes every shape of 8 devices.
Without an objective answers are learned.
"""

import itertools
import json
import math
import re
import sys

import jax
import numpy as np

from lora_opt.data import tasks
from lora_opt.devices.partitioning import Partitioner, put
from lora_opt.models import LoraConfig, random_model
from lora_opt.training.objective import DPO
from lora_opt.training.step import make_train_step
from lora_opt.training.train_state import create_train_state
from tests.core import problems

STEPS, ROWS, LENGTH = 3, 16, 32
OBJECTIVES = {'answers': None, 'dpo': DPO(beta=0.5)}
RANK, LAYERS = 2, 2
# An op of the compiled program: what it gives, its kind, where it came from.
COLLECTIVE = re.compile(
  r'= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|'
  r'collective-broadcast|reduce-scatter)(?:-start)?\(.*?op_name="([^"]*)"'
)
SHAPE = re.compile(r'[a-z]+\d*\[([\d,]*)\]')


def shapes(devices):
  """Every (data, fsdp, tensor) whose product is `devices`."""
  sizes = range(1, devices + 1)
  return [
    list(shape)
    for shape in itertools.product(sizes, repeat=3)
    if math.prod(shape) == devices
  ]


def tiny_model():
  return random_model(
    LoraConfig(rank=RANK, dropout=0.1),
    num_layers=LAYERS,
    num_heads=8,
    num_kv_heads=8,
    head_dim=4,
    vocab_size=320,
  )


def tiny_task(name):
  if name == 'dpo':
    rows = [
      {'prompt': 'x' * (i % 5), 'chosen': str(i), 'rejected': 'y' * (i % 3 + 1)}
      for i in range(60)
    ]
    return tasks.Preference(name='x', train=rows, eval=rows[:2], chat=False)
  rows = [{'question': 'x' * (i % 5), 'answer': str(i)} for i in range(60)]
  return tasks.Generation(name='x', train=rows, eval=rows[:2], chat=False)


def tiny_batches(model, task):
  stream = task.train_batches(
    model.tokenizer, length=LENGTH, batch_size=ROWS, seed=0
  )
  return list(itertools.islice(iter(stream), STEPS))


def collectives(text):
  """[[kind, elements of its largest result, name]] of compiled HLO."""
  found = []
  for results, kind, name in COLLECTIVE.findall(text):
    sizes = [
      math.prod(int(n) for n in dims.split(',') if n)
      for dims in SHAPE.findall(results)
    ]
    found.append([kind, max(sizes), name])
  return found


def measure(model, batches, recipe, shape, objective):
  """Losses of the steps, adapters after them, collectives of the step."""
  data, fsdp, tensor = shape
  devices = jax.devices()[: math.prod(shape)]
  placement = Partitioner(data, fsdp, tensor).place(model, devices)
  optimizer = problems.RECIPES[recipe](problems.RATES[recipe])
  base = put(model.base, placement.base)
  lora = put(model.init(jax.random.key(0)), placement.trainable)
  state = create_train_state(lora, optimizer, placement)
  step = make_train_step(
    model,
    optimizer,
    placement,
    state,
    objective=objective,
    microbatches=1,
    diagnostics_period=1,
  )
  rows = [placement.put_rows(batch) for batch in batches]
  compiled = step.lower(state, base, rows[0]).compile()
  losses = []
  for batch in rows:
    state, metrics = compiled(state, base, batch)
    losses.append(float(metrics['loss']))
  return losses, jax.device_get(state.lora), collectives(compiled.as_text())


def distance(trees):
  """How far the first is from the second, relative to its size."""
  one, two = (
    np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in trees
  )
  return float(np.linalg.norm(one - two) / np.linalg.norm(two))


def main(arguments):
  settings = json.loads(arguments)
  if not settings.get('optimize'):
    jax.config.update('jax_disable_most_optimizations', True)
  model = tiny_model()
  name = settings.get('objective', 'answers')
  batches = tiny_batches(model, tiny_task(name))
  objective = OBJECTIVES[name]
  result = {}
  for recipe in settings['recipes'] or problems.RECIPES:
    alone, adapters, _ = measure(model, batches, recipe, (1, 1, 1), objective)
    rows = {}
    for shape in settings['meshes'] or shapes(8):
      losses, moved, found = measure(model, batches, recipe, shape, objective)
      rows['x'.join(map(str, shape))] = {
        'losses': losses,
        'alone': alone,
        'adapters': distance((moved, adapters)),
        'collectives': found,
      }
    result[recipe] = rows
  json.dump(result, sys.stdout)


if __name__ == '__main__':
  main(sys.argv[1])
