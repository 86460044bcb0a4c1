"""Compiles the training step of tunix's PeftTrainer; runs in its environment.

    python -m experiments.compiled_steps.tunix_step CASE [--remat BLOCK]

Model, sharding, adapters (qwix), optimizer (`nnx.Optimizer` over
`optax.adamw`), loss and jitted step are tunix's own. This file replaces only
the parts of its trainer that need weights or devices: everything is made in
`nnx.eval_shape`, and placed according to its partition specs.
"""

import argparse
import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tunix.models.gemma import model as gemma
from tunix.models.llama3 import model as llama3
from tunix.sft import peft_trainer, utils

from experiments.compiled_steps import cases, measured
from lora_opt.planning.chips import read_topology
from lora_opt.planning.targets import find_target

# Every projection of every layer, as on our side.
TARGETS = {
  'gemma': '.*(qkv_einsum|q_einsum|kv_einsum|attn_vec_einsum|'
  'gate_proj|up_proj|down_proj)',
  'llama3': '.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)',
}


def make_model(
  name: str, vocabulary: int, remat: str, layers: int | None
) -> nnx.Module:
  """Makes tunix's model of a published size, in bfloat16, with adapters."""
  fewer = {'num_layers': layers} if layers else {}
  if name.startswith('gemma'):
    config = getattr(gemma.ModelConfig, name)()
    # Hugging Face's table has 128 rows fewer; both sides use its size.
    config = dataclasses.replace(
      config,
      num_embed=vocabulary,
      remat_config=gemma.RematConfig[remat],
      **fewer,
    )
    model, target = gemma.Gemma(config, rngs=nnx.Rngs(0)), TARGETS['gemma']
  else:
    # It has the sizes of Llama 3; 3.1 differs only in its rotations.
    config = dataclasses.replace(
      llama3.ModelConfig.llama3p1_8b(),
      remat_config=llama3.RematConfig[remat],
      **fewer,
    )
    assert config.vocab_size == vocabulary
    model, target = llama3.Llama3(config, rngs=nnx.Rngs(0)), TARGETS['llama3']
  weights = jax.tree.map(
    lambda x: x.astype(jnp.bfloat16), nnx.state(model, nnx.Param)
  )
  nnx.update(model, weights)
  provider = qwix.LoraProvider(
    module_path=target, rank=cases.RANK, alpha=cases.ALPHA
  )
  return qwix.apply_lora_to_model(
    model, provider, rngs=nnx.Rngs(1), **model.get_model_input()
  )


def model_inputs(batch: peft_trainer.TrainingInput) -> dict:
  """The model's inputs, as in tunix's examples of fine-tuning."""
  mask = batch.input_mask
  return {
    'input_tokens': batch.input_tokens,
    'input_mask': mask,
    'positions': utils.build_positions_from_mask(mask),
    'attention_mask': utils.make_causal_attn_mask(mask),
  }


def make_trainer(make) -> peft_trainer.PeftTrainer:
  """A trainer whose model and optimizer are shapes."""
  made = []

  def build():
    trainer = peft_trainer.PeftTrainer(
      make(),
      optax.adamw(1e-3),
      peft_trainer.TrainingConfig(eval_every_n_steps=1000),
    )
    made.append(trainer)
    return trainer.model, trainer.optimizer

  model, optimizer = nnx.eval_shape(build)
  (trainer,) = made
  trainer.model, trainer.optimizer = model, optimizer
  return trainer.with_gen_model_input_fn(model_inputs)


def place(module: nnx.Module, mesh: Mesh) -> None:
  """Gives the shapes of a module the shardings of its partition specs."""
  state = nnx.state(module)

  def placed(x, spec):
    # Scalars, and all else without a spec, are replicated.
    spec = spec if isinstance(spec, PartitionSpec) else PartitionSpec()
    return jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
    )

  specs = nnx.get_partition_spec(state)
  nnx.update(module, jax.tree.map(placed, state, specs))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('case', type=cases.case)
  remats = [each.name for each in gemma.RematConfig]
  parser.add_argument('--remat', choices=remats, default='NONE')
  parser.add_argument('--layers', type=int, help='fewer than the model has')
  parser.add_argument('--dump')
  flags = parser.parse_args()
  case = flags.case
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_enable_compilation_cache', False)
  target = find_target(read_topology(case.topology))
  devices = np.array(target.devices).reshape(-1, 1)
  mesh = Mesh(devices, ('fsdp', 'tp'))
  trainer = make_trainer(
    functools.partial(
      make_model,
      case.model,
      case.config['vocab_size'],
      flags.remat,
      flags.layers,
    )
  )
  place(trainer.model, mesh)
  place(trainer.optimizer, mesh)
  axes = trainer.config.data_sharding_axis
  rows = NamedSharding(mesh, PartitionSpec(*axes))
  shape = (case.rows, cases.LENGTH)
  batch = peft_trainer.TrainingInput(
    input_tokens=jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows),
    input_mask=jax.ShapeDtypeStruct(shape, jnp.bool, sharding=rows),
  )
  step, _ = trainer.jit_train_and_eval_step()
  # Its model asks JAX's first device whether to place activations at all.
  with mock.patch.object(jax, 'devices', lambda *_: target.devices), mesh:
    traced = step.func.trace(*step.args, batch).traced
  found = measured.measure(traced, target, flags.dump)
  settings = {'remat': flags.remat}
  measured.report({'side': 'tunix', 'settings': settings} | found)


if __name__ == '__main__':
  main()
