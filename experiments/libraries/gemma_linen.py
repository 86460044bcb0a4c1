"""gemma: its linen model in its own LoRA wrapper, in a plain training loop.

The model has Gemma's architecture in a small size, with random weights; the
text is a few sentences, encoded letter by letter. `gemma.peft.split_params`
separates adapters and base, so only the adapters have gradients.
"""

import jax
import jax.numpy as jnp
import optax
from gemma import peft

import lora_opt
from experiments.libraries import text
from tests.integrations.layouts.gemma_linen import small_gemma

STEPS = 60


def main():
  model = small_gemma(text.VOCABULARY)
  batches = text.batches(STEPS)
  params = model.init(jax.random.key(0), tokens=jnp.asarray(batches[0]))
  base, lora = peft.split_params(params['params'])
  shape = base['embedder']['input_embedding'].shape
  base['embedder']['input_embedding'] = jnp.asarray(text.embedding(shape))
  tx = lora_opt.lora_rite(3e-2)

  @jax.jit
  def train_step(lora, state, tokens):
    def loss_fn(lora):
      merged = {'params': peft.merge_params(base, lora)}
      logits = model.apply(merged, tokens=tokens).logits[:, :-1]
      return optax.softmax_cross_entropy_with_integer_labels(
        logits, tokens[:, 1:]
      ).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(lora)
    updates, state = tx.update(gradients, state, lora)
    return optax.apply_updates(lora, updates), state, loss

  losses, state = [], tx.init(lora)
  for tokens in batches:
    lora, state, loss = train_step(lora, state, jnp.asarray(tokens))
    losses.append(float(loss))
  print(f'gemma: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {STEPS}')
  if not losses[-1] < losses[0] - 0.5:
    raise SystemExit('gemma did not train as expected')


if __name__ == '__main__':
  main()
