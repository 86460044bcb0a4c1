"""Makes this experiment's model, which draws 16 x 16 pixels from a caption.

    python -m experiments.dreambooth.pretrain FOLDER

A UNet and a text encoder, with a million parameters together, learn coloured
digits from scratch (see digits.py), and are saved as a diffusers folder.
The same command makes the same weights on the same machine.
"""

import argparse
import functools
import json
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.dreambooth import digits
from lora_opt.data.tokenizer import Tokenizer
from lora_opt.data.tokenizer_folder import open_tokenizer
from lora_opt.models.diffusion.clip_text_config import ClipTextConfig
from lora_opt.models.diffusion.formats import DIFFUSERS
from lora_opt.models.diffusion.noise import NoiseSchedule
from lora_opt.models.diffusion.pipeline_config import PipelineConfig
from lora_opt.models.diffusion.sampler import Sampler
from lora_opt.models.diffusion.save import save_pipeline
from lora_opt.models.diffusion.text_to_image import TextToImage, init_base
from lora_opt.models.diffusion.unet_config import UNetConfig

STEPS, BATCH, PEAK_RATE = 3000, 32, 2e-3
# Share of captions left out, so that sampling can be guided; and decay of the
# running average of the weights.
_EMPTY, _AVERAGE = 0.1, 0.998
_WORDS = (*digits.NAMES, *digits.COLOURS, 'on', 'an')
_START, _END = '<|startoftext|>', '<|endoftext|>'


def clip_tokenizer(folder: pathlib.Path) -> Tokenizer:
  """Makes a tokenizer like CLIP's: words of captions, all else by letters.

  Args:
    folder: vocab.json and merges.txt are written into it.
  """
  letters = [chr(code) for code in range(ord('!'), ord('~') + 1)]
  letters += [chr(code) for code in (*range(161, 173), *range(174, 324))]
  pieces = letters + [f'{letter}</w>' for letter in letters]
  merges: dict[tuple[str, str], None] = {}
  for word in sorted(_WORDS, key=lambda word: (-len(word), word)):
    first, *rest = word[:-1], f'{word[-1]}</w>'
    made = first[0]
    for piece in (*first[1:], *rest):
      merges.setdefault((made, piece))
      made += piece
  pieces += [a + b for a, b in merges] + [_START, _END]
  vocabulary = {piece: number for number, piece in enumerate(pieces)}
  lines = ['#version: 0.2', *(f'{a} {b}' for a, b in merges)]
  settings = {
    'tokenizer_class': 'CLIPTokenizer',
    'bos_token': _START,
    'eos_token': _END,
    'pad_token': _END,
  }
  for name, text in (
    ('vocab.json', json.dumps(vocabulary, ensure_ascii=False)),
    ('merges.txt', '\n'.join(lines) + '\n'),
    ('tokenizer_config.json', json.dumps(settings)),
  ):
    (folder / name).write_text(text, encoding='utf-8')
  return open_tokenizer(folder)


def new_model(seed: int = 0) -> TextToImage:
  """The model before training."""
  with tempfile.TemporaryDirectory() as folder:
    tokenizer = clip_tokenizer(pathlib.Path(folder))
  width = 64
  channels = (16, 32, 64)
  unet = UNetConfig(
    sample_size=digits.SIZE,
    in_channels=3,
    out_channels=3,
    channels=channels,
    down_cross=(False, True, True),
    up_cross=(True, True, False),
    layers=(1, 1, 1),
    heads=(4, 4, 4),
    depths=(1, 1, 1),
    context_dims=(width,) * 3,
    only_cross=(False,) * 3,
    groups=8,
    time_dim=64,
  )
  text = ClipTextConfig(
    vocab_size=tokenizer.vocab_size,
    embed_dim=width,
    num_layers=2,
    num_heads=4,
    mlp_dim=2 * width,
    max_length=16,
  )
  noise = NoiseSchedule(
    beta_schedule='squaredcos_cap_v2', prediction='v_prediction'
  )
  sampler = Sampler(spacing='trailing', clip=1.0, end_at_image=True)
  config = PipelineConfig(unet, text, None, noise, sampler)
  base = init_base(config, jax.random.key(seed), 'float32')
  return TextToImage('coloured digits', config, tokenizer, base, DIFFUSERS)


def batch_of(model: TextToImage, step: int, size: int) -> dict[str, np.ndarray]:
  """The pictures of a step, with their captions or empty ones."""
  rng = np.random.default_rng((0, step))
  images, said = zip(*(digits.draw_any(rng) for _ in range(size)), strict=True)
  said = ['' if rng.random() < _EMPTY else text for text in said]
  return {
    'images': np.stack(images),
    'tokens': model.encode_texts(said),
    'weights': np.ones((size, 1), np.float32),
  }


def train(model: TextToImage, steps: int) -> dict:
  """Trains all weights, and returns their running average."""
  rate = optax.warmup_cosine_decay_schedule(0, PEAK_RATE, 100, steps, 1e-5)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99)
  )

  def loss(base, batch, rng):
    return jnp.mean(model.denoising_losses(base, None, batch, rng))

  @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
  def update(base, average, state, batch, number):
    rng = jax.random.fold_in(jax.random.key(1), number)
    value, gradient = jax.value_and_grad(loss)(base, batch, rng)
    changes, state = optimizer.update(gradient, state, base)
    base = optax.apply_updates(base, changes)
    # Keep less of the old average at first, when it is bad.
    keep = jnp.minimum(_AVERAGE, (number + 1) / (number + 10))
    average = jax.tree.map(
      lambda old, new: keep * old + (1 - keep) * new, average, base
    )
    return base, average, state, value

  base = jax.tree.map(jnp.array, model.base)
  average = jax.tree.map(jnp.array, model.base)
  state, losses, start = optimizer.init(base), [], time.process_time()
  for step in range(steps):
    batch = batch_of(model, step, BATCH)
    base, average, state, value = update(base, average, state, batch, step)
    losses.append(value)
    if (step + 1) % 100 == 0:
      mean, seconds = np.mean(losses), time.process_time() - start
      print(f'step {step + 1}, loss {mean:.4f}, {seconds:.0f} s', flush=True)
      losses = []
  return average


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--steps', type=int, default=STEPS)
  options = parser.parse_args()
  if options.folder.exists():
    parser.error(f'{options.folder} is there already')
  model = new_model()
  weights = train(model, options.steps)
  save_pipeline(options.folder, model, base=weights)
  print(f'model: {options.folder}')


if __name__ == '__main__':
  main()
