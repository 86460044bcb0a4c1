"""tunix: its PeftTrainer trains the adapters of its Gemma, and resumes.

The model has Gemma's architecture in a small size, with random weights; the
text is a few sentences, encoded letter by letter.
"""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from tunix.sft import peft_trainer, utils

import lora_opt
from experiments.libraries import text
from tests.integrations.layouts.tunix_gemma import small_gemma

STEPS = 60


def model_inputs(batch: peft_trainer.TrainingInput):
  mask = batch.input_mask
  return {
    'input_tokens': batch.input_tokens,
    'input_mask': mask,
    'positions': utils.build_positions_from_mask(mask),
    'attention_mask': utils.make_causal_attn_mask(mask),
  }


class Recorded(peft_trainer.PeftTrainer):
  """A trainer that keeps the losses."""

  def __init__(self, *args, **kwargs):
    self.losses = []
    super().__init__(*args, **kwargs)

  def _write_metrics(self, metrics_buffer):
    self.losses.append(float(np.mean(metrics_buffer.losses)))
    super()._write_metrics(metrics_buffer)


def make_model():
  model = small_gemma(text.VOCABULARY)
  table = model.embedder.input_embedding
  table[...] = jnp.asarray(text.embedding(table.shape))
  return model


def train(folder: str, steps: int):
  """Trains from the folder's newest checkpoint; returns (model, losses)."""
  model = make_model()
  config = peft_trainer.TrainingConfig(
    eval_every_n_steps=1000,
    max_steps=steps,
    checkpoint_root_directory=folder,
    checkpointing_options=ocp.CheckpointManagerOptions(
      save_interval_steps=STEPS // 2
    ),
  )
  # The only line that uses this project.
  optimizer = lora_opt.lora_rite(3e-2)
  trainer = Recorded(model, optimizer, config)
  trainer.with_gen_model_input_fn(model_inputs)
  data = [
    peft_trainer.TrainingInput(input_tokens=b, input_mask=np.ones_like(b) > 0)
    for b in text.batches(STEPS)
  ]
  devices = np.array(jax.devices()[:1]).reshape(1, 1)
  with jax.sharding.Mesh(devices, ('fsdp', 'tp')):
    trainer.train(data, None)
  trainer.close()
  return model, trainer.losses


def main():
  base = nnx.state(make_model(), nnx.Not(nnx.LoRAParam))
  with tempfile.TemporaryDirectory() as folder:
    _, first = train(folder, STEPS // 2)
    model, rest = train(folder, STEPS)
  after = nnx.state(model, nnx.Not(nnx.LoRAParam))
  same = jax.tree.all(
    jax.tree.map(
      lambda x, y: not hasattr(x, 'dtype') or bool(jnp.all(x == y)),
      nnx.to_pure_dict(base),
      nnx.to_pure_dict(after),
    )
  )
  print(
    f'tunix PeftTrainer: loss {first[0]:.3f} -> {first[-1]:.3f} in '
    f'{len(first)}; restarted: {rest[0]:.3f} -> {rest[-1]:.3f} in {len(rest)}'
  )
  print(f'base unchanged: {same}')
  if not (same and rest[0] < first[0] and rest[-1] < first[-1]):
    raise SystemExit('tunix did not train and resume as expected')


if __name__ == '__main__':
  main()
