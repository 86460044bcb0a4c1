"""Random small diffusion models that between them use every option."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.diffusion import adapter_file
from lora_opt.models.diffusion.folder import from_diffusers, read_pipeline
from lora_opt.models.diffusion.names import tensor_names
from lora_opt.models.diffusion.text_to_image import abstract_base
from lora_opt.models.diffusion.weights import PARTS
from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.assemble import assemble, disassemble
from lora_opt.models.pretrained.family import slots
from tests.models.parity import material
from tests.models.pretrained.checkpoint_files import in_memory

TEXT = {
  'vocab_size': 262,
  'hidden_size': 12,
  'intermediate_size': 20,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'max_position_embeddings': 9,
  'bos_token_id': 256,
  'eos_token_id': 257,
  'pad_token_id': 258,
}
UNET = {
  'sample_size': 4,
  'block_out_channels': [8, 16],
  'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
  'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
  'layers_per_block': 1,
  'attention_head_dim': 2,
  'norm_num_groups': 4,
  'cross_attention_dim': 12,
}
VAE = {
  'sample_size': 8,
  'block_out_channels': [4, 8],
  'down_block_types': ['DownEncoderBlock2D'] * 2,
  'up_block_types': ['UpDecoderBlock2D'] * 2,
  'norm_num_groups': 2,
}
# As in Stable Diffusion's files.
NOISE = {
  'beta_schedule': 'scaled_linear',
  'beta_start': 0.00085,
  'beta_end': 0.012,
}
STEPS, GUIDANCE = 4, 3.0
SEEDS = np.array([3, 4], np.uint32)


@dataclasses.dataclass(frozen=True)
class Case:
  """One pipeline of diffusers.

  Attributes:
    unet, text, vae: Settings besides the above; vae None for pixels.
    scheduler: Class and settings, besides `NOISE`.
    size: Height and width of an image.
    target: What has an adapter, our regular expression.
    peft: The same for PEFT, by part.
  """

  unet: dict[str, Any]
  text: dict[str, Any]
  vae: dict[str, Any] | None
  scheduler: tuple[str, dict[str, Any]]
  size: tuple[int, int]
  target: str
  peft: dict[str, Any]


CASES = {
  'sd1': Case(
    {},
    {},
    {},
    (
      'DDIMScheduler',
      {'clip_sample': False, 'set_alpha_to_one': False, 'steps_offset': 1},
    ),
    (8, 8),
    r'unet/.*/attn[12]/to_(q|k|v|out\.0)',
    {'unet': ['to_q', 'to_k', 'to_v', 'to_out.0']},
  ),
  'sd2': Case(
    {
      'use_linear_projection': True,
      'attention_head_dim': [1, 2],
      'transformer_layers_per_block': [2, 1],
      'upcast_attention': True,
    },
    {'hidden_act': 'gelu', 'num_hidden_layers': 1},
    {
      'use_quant_conv': False,
      'use_post_quant_conv': False,
      'mid_block_add_attention': False,
      'shift_factor': 0.1,
      'scaling_factor': 0.7,
      'layers_per_block': 2,
      'act_fn': 'relu',
    },
    (
      'EulerDiscreteScheduler',
      {'prediction_type': 'v_prediction', 'timestep_spacing': 'trailing'},
    ),
    (8, 12),
    r'unet/.*(attn1/to_q|conv1|conv_shortcut|downsamplers\.0/conv|ff/net\.2'
    r'|conv_in|time_emb_proj|proj_in)|text_encoder/.*/(q_proj|fc1)',
    {
      'unet': r'.*(attn1\.to_q|conv1|conv_shortcut|downsamplers\.0\.conv'
      r'|ff\.net\.2|conv_in|time_emb_proj|proj_in)',
      'text_encoder': ['q_proj', 'fc1'],
    },
  ),
  'options': Case(
    {
      'in_channels': 3,
      'out_channels': 3,
      'block_out_channels': [4, 8, 8],
      'down_block_types': [
        'DownBlock2D',
        'CrossAttnDownBlock2D',
        'CrossAttnDownBlock2D',
      ],
      'up_block_types': [
        'CrossAttnUpBlock2D',
        'CrossAttnUpBlock2D',
        'UpBlock2D',
      ],
      'mid_block_type': 'UNetMidBlock2D',
      'mid_block_scale_factor': 1.4,
      'layers_per_block': [1, 2, 1],
      'attention_head_dim': [1, 4, 2],
      'only_cross_attention': [False, True, False],
      'center_input_sample': True,
      'flip_sin_to_cos': False,
      'freq_shift': 1,
      'downsample_padding': 0,
      'act_fn': 'mish',
      'norm_num_groups': 2,
      'norm_eps': 1e-3,
      'resnet_time_scale_shift': 'scale_shift',
      'time_embedding_dim': 10,
      'conv_in_kernel': 5,
      'conv_out_kernel': 1,
    },
    {},
    None,
    (
      'DPMSolverMultistepScheduler',
      {'prediction_type': 'v_prediction', 'rescale_betas_zero_snr': True},
    ),
    (7, 10),
    r'unet/.*(to_out\.0|conv2|proj_out|upsamplers\.0/conv|conv_out|linear_1)',
    {
      'unet': r'.*(to_out\.0|conv2|proj_out|upsamplers\.0\.conv|conv_out'
      r'|linear_1)'
    },
  ),
}


def inputs(case: Case) -> dict[str, np.ndarray]:
  """What the networks are given."""
  random = np.random.default_rng(0)
  factor = 1 if case.vae is None else 2
  channels = case.unet.get('in_channels', 4)
  height, width = (x // factor for x in case.size)
  latents = random.standard_normal((2, height, width, channels))
  return {
    'tokens': random.integers(0, 256, (2, 9)).astype(np.int32),
    'negative': random.integers(0, 256, (2, 9)).astype(np.int32),
    'latents': latents.astype(np.float32),
    'noise': random.standard_normal(latents.shape).astype(np.float32),
    'images': random.integers(0, 256, (2, *case.size, 3)).astype(np.uint8),
    'timesteps': np.array([11, 903], np.int32),
  }


def write_folder(folder: pathlib.Path, settings: str) -> None:
  """Writes a model with the weights of `material.weight`.

  Args:
    folder: Where to.
    settings: JSON, the content of each file of settings.
  """
  for name, content in json.loads(settings).items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content), encoding='utf-8')
  shapes = abstract_base(read_pipeline(folder))
  for part in PARTS:
    if part.name in shapes:
      tree = shapes[part.name]
      tensors = {
        name: material.weight(f'{part.name}.{name}', slot.shape)
        for name, slot in slots(tree, tensor_names(tree)).items()
      }
      save_file(tensors, folder / part.name / f'{part.stem}.safetensors')
  (folder / 'tokenizer').mkdir()
  Tokenizer.byte_level().save(folder / 'tokenizer')


def our_model(case: Case, folder: pathlib.Path, settings: str):
  """Our model of a case, read from a folder that is written first."""
  write_folder(folder, settings)
  lora = LoraConfig(
    rank=material.RANK, alpha=material.ALPHA, target=case.target
  )
  return from_diffusers(folder, lora=lora)


def adapter(model):
  """An adapter with the weights of `material.weight`."""
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  spread = jax.eval_shape(lambda x: adapter_file.spread_out(x, model), abstract)
  names = adapter_file.adapter_names(spread)
  tensors = {
    name: material.weight(name, slot.shape)
    for name, slot in slots(spread, names).items()
  }
  read = assemble('adapter', spread, names, in_memory(tensors), 'float32')
  return jax.tree.map(lambda x, like: x.reshape(like.shape), read, abstract)


def by_name(tree, model) -> dict[str, np.ndarray]:
  """An adapter or its gradient by the names of diffusers."""
  spread = adapter_file.spread_out(tree, model)
  return disassemble(spread, adapter_file.adapter_names(spread))


def batch_of(case: Case) -> dict[str, np.ndarray]:
  """Rows whose noise is that of `SEEDS`."""
  given = inputs(case)
  names = ('tokens', 'timesteps', 'images' if case.vae is None else 'latents')
  weights = np.ones((2, 1), np.float32)
  return {name: given[name] for name in names} | {
    'weights': weights,
    'noise_seeds': SEEDS,
  }


def noise_of_seeds(shape: tuple[int, ...]) -> np.ndarray:
  """The noise that a loss has by `SEEDS`, of `shape` for each row."""
  rows = [
    jax.random.normal(jax.random.split(jax.random.key(seed), 3)[0], shape)
    for seed in SEEDS
  ]
  return np.stack(rows)


def our_arrays(case: Case, model) -> dict[str, np.ndarray]:
  """What `reference` computes, by our model."""
  given, lora = inputs(case), adapter(model)
  batch = batch_of(case)

  @jax.jit
  def compute(base, lora):
    context = model._apply(base, None, 'encode_text', given['tokens'])
    found = {
      'context': context,
      'unet': model._apply(
        base, None, 'predict', given['noise'], given['timesteps'], context
      ),
    }
    if case.vae is not None:
      mean, deviation = model._apply(
        base, None, 'encode', given['images'] / np.float32(127.5) - 1
      )
      found |= {'mean': mean, 'deviation': deviation}
      found['decoded'] = model._apply(base, None, 'decode', given['latents'])

    def loss(lora):
      losses = model.token_losses(base, lora, batch)
      return losses.sum(), losses

    gradient, losses = jax.grad(loss, has_aux=True)(lora)
    return found | {'losses': losses[:, 0]}, gradient

  found, gradient = compute(model.base, lora)
  named = by_name(gradient, model)
  found |= {f'gradient/{name}': value for name, value in named.items()}
  return {name: np.asarray(value) for name, value in found.items()}


def our_sample(case: Case, model) -> np.ndarray:
  """Images of our model, with the adapter."""
  given = inputs(case)
  images = model.sample(
    model.base,
    adapter(model),
    given['tokens'],
    given['negative'],
    steps=STEPS,
    guidance_scale=GUIDANCE,
    noise=jnp.asarray(given['noise']),
  )
  return np.asarray(images)


@functools.cache
def pipeline(name: str) -> dict[str, Any]:
  """The parts of a case in diffusers, filled."""
  import diffusers
  import torch
  import transformers

  case = CASES[name]
  made = {
    'unet': diffusers.UNet2DConditionModel(**UNET | case.unet),
    'text_encoder': transformers.CLIPTextModel(
      transformers.CLIPTextConfig(**TEXT | case.text)
    ),
  }
  if case.vae is not None:
    made['vae'] = diffusers.AutoencoderKL(**VAE | case.vae)
  with torch.no_grad():
    for part, module in made.items():
      for key, parameter in module.named_parameters():
        value = material.weight(f'{part}.{key}', tuple(parameter.shape))
        parameter.copy_(torch.tensor(value))
      module.eval()
  kind, settings = case.scheduler
  made['scheduler'] = getattr(diffusers, kind)(**NOISE | settings)
  return made


def settings_of(parts: dict[str, Any], case: Case) -> str:
  """The files of settings that diffusers writes of these parts."""
  files = {
    f'{part}/config.json': json.loads(module.config.to_json_string())
    if part == 'text_encoder'
    else json.loads(module.to_json_string())
    for part, module in parts.items()
    if part != 'scheduler'
  }
  scheduler = json.loads(parts['scheduler'].to_json_string())
  files['scheduler/scheduler_config.json'] = scheduler
  files['model_index.json'] = {
    '_class_name': 'StableDiffusionPipeline',
    'unet': ['diffusers', 'UNet2DConditionModel'],
    'text_encoder': ['transformers', 'CLIPTextModel'],
    'tokenizer': ['transformers', 'PreTrainedTokenizerFast'],
    'scheduler': ['diffusers', case.scheduler[0]],
    'vae': ['diffusers', 'AutoencoderKL']
    if case.vae is not None
    else [None] * 2,
    'safety_checker': [None, None],
    'feature_extractor': [None, None],
  }
  return json.dumps(files)


def add_adapters(parts: dict[str, Any], case: Case) -> dict[str, Any]:
  """Gives UNet and text encoder filled adapters; returns their factors."""
  import peft
  import torch

  factors = {}
  for part, targets in case.peft.items():
    parts[part].add_adapter(
      peft.LoraConfig(
        r=material.RANK, lora_alpha=material.ALPHA, target_modules=targets
      )
    )
    for key, parameter in parts[part].named_parameters():
      if '.lora_' in key:
        key = key.replace('.default', '')
        prefix = 'text_model.' if part == 'text_encoder' else ''
        name = f'{part}.{prefix}{key}'
        value = material.weight(name, tuple(parameter.shape))
        with torch.no_grad():
          parameter.copy_(torch.tensor(value))
        factors[name] = parameter
      else:
        parameter.requires_grad_(False)
  return factors


def reference(case: Case):
  """The parts, arrays by name, and the settings' files as JSON."""
  import torch

  [name] = [key for key, each in CASES.items() if each is case]
  pipeline.cache_clear()
  parts = pipeline(name)
  settings = settings_of(parts, case)
  given = inputs(case)
  timesteps = torch.tensor(given['timesteps'], dtype=torch.int64)

  def tensor(key):
    return torch.tensor(given[key]).permute(0, 3, 1, 2)

  def image(x):
    return x.detach().permute(0, 2, 3, 1).numpy()

  def text(key):
    tokens = torch.tensor(given[key], dtype=torch.int64)
    return parts['text_encoder'](tokens).last_hidden_state

  found = {}
  with torch.no_grad():
    context = text('tokens')
    found['context'] = context.numpy()
    answer = parts['unet'](tensor('noise'), timesteps, context).sample
    found['unet'] = image(answer)
    if case.vae is not None:
      vae = parts['vae']
      scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
      drawn = vae.encode(tensor('images') / 127.5 - 1).latent_dist
      found['mean'] = image((drawn.mean - shift) * scale)
      found['deviation'] = image(drawn.std * scale)
      decoded = vae.decode(tensor('latents') / scale + shift).sample
      found['decoded'] = image(decoded)

  factors = add_adapters(parts, case)
  clean = (
    tensor('images') / 127.5 - 1 if case.vae is None else tensor('latents')
  )
  noise = torch.tensor(noise_of_seeds(tuple(clean.shape[i] for i in (2, 3, 1))))
  noise = noise.permute(0, 3, 1, 2)
  # Of all schedulers only DDPM's is for training.
  import diffusers

  schedule = diffusers.DDPMScheduler.from_config(parts['scheduler'].config)
  noisy = schedule.add_noise(clean, noise, timesteps)
  answer = parts['unet'](noisy, timesteps, text('tokens')).sample
  target = noise
  if schedule.config.prediction_type == 'v_prediction':
    target = schedule.get_velocity(clean, noise, timesteps)
  losses = (answer - target).square().mean((1, 2, 3))
  losses.sum().backward()
  found['losses'] = losses.detach().numpy()
  for key, parameter in factors.items():
    found[f'gradient/{key}'] = parameter.grad.numpy()
  found['sampled'] = sampled(case, parts)
  return parts, found, settings


def sampled(case: Case, parts: dict[str, Any]) -> np.ndarray:
  """Images of diffusers' scheduler, step after step."""
  import torch

  given, scheduler = inputs(case), parts['scheduler']
  tokens = np.concatenate([given['negative'], given['tokens']])
  with torch.no_grad():
    context = parts['text_encoder'](
      torch.tensor(tokens, dtype=torch.int64)
    ).last_hidden_state
    scheduler.set_timesteps(STEPS)
    x = torch.tensor(given['noise']).permute(0, 3, 1, 2)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
      both = scheduler.scale_model_input(torch.cat([x, x]), t)
      away, towards = parts['unet'](both, t, context).sample.chunk(2)
      answer = away + GUIDANCE * (towards - away)
      x = scheduler.step(answer, t, x).prev_sample
    if case.vae is not None:
      vae = parts['vae']
      shift = vae.config.shift_factor or 0.0
      x = vae.decode(x / vae.config.scaling_factor + shift).sample
  return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
