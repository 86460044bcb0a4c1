"""Reads the config.json of each part of a diffusers folder.

Every setting is used, or must have the only value that is supported here; the
error for any other value names the setting.
"""

import pathlib
from typing import Any

from lora_opt.models.diffusion.activations import ACTIVATIONS
from lora_opt.models.diffusion.clip_text_config import ClipTextConfig
from lora_opt.models.diffusion.unet_config import UNetConfig
from lora_opt.models.diffusion.vae_config import VaeConfig
from lora_opt.models.pretrained.config_file import ConfigFile
from lora_opt.reading import values

# Where a file comes from, and how weights were averaged during training.
HARMLESS = (
  '_class_name',
  '_diffusers_version',
  '_use_default_values',
  'decay',
  'inv_gamma',
  'min_decay',
  'optimization_step',
  'power',
  'update_after_step',
  'use_ema_warmup',
)
_DOWN = {'CrossAttnDownBlock2D': True, 'DownBlock2D': False}
_UP = {'CrossAttnUpBlock2D': True, 'UpBlock2D': False}
_MIDDLE = {'UNetMidBlock2DCrossAttn': 'cross', 'UNetMidBlock2D': 'plain'}
_NAMES = {name: name for name in ACTIVATIONS if name != 'quick_gelu'}
_CLIP_NAMES = {
  'quick_gelu': 'quick_gelu',
  'gelu': 'gelu',
  'relu': 'relu',
  'silu': 'silu',
  'swish': 'silu',
}
# Settings for what our UNet does not have: conditioning on classes, images or
# sizes (as in Stable Diffusion XL), and other kinds of blocks.
_ABSENT = (
  'addition_embed_type',
  'addition_time_embed_dim',
  'class_embed_type',
  'cross_attention_norm',
  'encoder_hid_dim',
  'encoder_hid_dim_type',
  'num_attention_heads',
  'num_class_embeds',
  'projection_class_embeddings_input_dim',
  'reverse_transformer_layers_per_block',
  'time_cond_proj_dim',
  'time_embedding_act_fn',
  'timestep_post_act',
)


def read_unet(file: pathlib.Path) -> UNetConfig:
  """Reads unet/config.json of diffusers' UNet2DConditionModel.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: A setting is damaged or not supported.
  """
  settings = _open(file, 'UNet2DConditionModel')
  for name in _ABSENT:
    settings.expect(name, None)
  for name, *allowed in (
    ('dropout', 0.0, 0),
    ('dual_cross_attention', False),
    ('time_embedding_type', 'positional'),
    ('attention_type', 'default'),
    ('class_embeddings_concat', False),
    ('resnet_skip_time_act', False),
    ('resnet_out_scale_factor', 1.0, 1),
    ('mid_block_only_cross_attention', None, False),
  ):
    settings.expect(name, *allowed)
  # Attention scores are always computed in float32 here.
  settings.boolean('upcast_attention', False, null=True)
  # Belongs to a kind of conditioning that is absent.
  settings.integer('addition_embed_type_num_heads', 64)
  channels = _levels(settings, 'block_out_channels', (320, 640, 1280, 1280))
  count = len(channels)

  def each(name, default):
    return _levels(settings, name, default, count)

  kinds = {}
  for ours, name, known, default in (
    ('down_cross', 'down_block_types', _DOWN, [*_DOWN][:1] * 3 + [*_DOWN][1:]),
    ('up_cross', 'up_block_types', _UP, [*_UP][1:] + [*_UP][:1] * 3),
  ):
    found = settings.items(name, default)
    place = f'{file}: {name}'
    kinds[ours] = tuple(
      known[values.one_of(kind, place, known)] for kind in found
    )
  middle = 'none'
  if not settings.is_null('mid_block_type'):
    middle = settings.choose(
      'mid_block_type', _MIDDLE, 'UNetMidBlock2DCrossAttn'
    )
  width = settings.integer('time_embedding_dim', 4 * channels[0], null=True)
  return _made(
    settings,
    UNetConfig,
    sample_size=_square(settings, 64),
    in_channels=settings.integer('in_channels', 4),
    out_channels=settings.integer('out_channels', 4),
    channels=channels,
    middle=middle,
    layers=each('layers_per_block', 2),
    heads=each('attention_head_dim', 8),
    depths=each('transformer_layers_per_block', 1),
    context_dims=each('cross_attention_dim', 1280),
    only_cross=_levels(
      settings, 'only_cross_attention', False, count, values.boolean
    ),
    linear_projection=settings.boolean(
      'use_linear_projection', False, null=True
    ),
    groups=settings.integer('norm_num_groups', 32),
    norm_eps=settings.number('norm_eps', 1e-5),
    activation=settings.choose('act_fn', _NAMES, 'silu'),
    scale_shift=settings.choose(
      'resnet_time_scale_shift',
      {'default': False, 'scale_shift': True},
      'default',
    ),
    middle_divisor=settings.number('mid_block_scale_factor', 1.0),
    downsample_padding=settings.integer('downsample_padding', 1, least=0),
    centre_input=settings.boolean('center_input_sample', False),
    cosine_first=settings.boolean('flip_sin_to_cos', True),
    frequency_shift=settings.number('freq_shift', 0.0, above=None),
    time_dim=width,
    conv_in_kernel=settings.integer('conv_in_kernel', 3),
    conv_out_kernel=settings.integer('conv_out_kernel', 3),
    **kinds,
  )


def read_clip_text(file: pathlib.Path) -> ClipTextConfig:
  """Reads text_encoder/config.json of transformers' CLIPTextModel.

  Raises the same errors as `read_unet`.
  """
  settings = ConfigFile(file)
  settings.expect('model_type', 'clip_text_model')
  settings.expect('architectures', ['CLIPTextModel'], None)
  settings.expect('attention_dropout', 0.0, 0)
  settings.expect('dropout', 0.0, 0)
  return _made(
    settings,
    ClipTextConfig,
    vocab_size=settings.integer('vocab_size', 49_408),
    embed_dim=settings.integer('hidden_size', 512),
    num_layers=settings.integer('num_hidden_layers', 12),
    num_heads=settings.integer('num_attention_heads', 8),
    mlp_dim=settings.integer('intermediate_size', 2048),
    max_length=settings.integer('max_position_embeddings', 77),
    activation=settings.choose('hidden_act', _CLIP_NAMES, 'quick_gelu'),
    norm_eps=settings.number('layer_norm_eps', 1e-5),
    harmless=('initializer_factor', 'projection_dim'),
  )


def read_vae(file: pathlib.Path) -> VaeConfig:
  """Reads vae/config.json of diffusers' AutoencoderKL.

  Raises the same errors as `read_unet`.
  """
  settings = _open(file, 'AutoencoderKL')
  channels = _levels(settings, 'block_out_channels', (64,))
  for name, kind in (
    ('down_block_types', 'DownEncoderBlock2D'),
    ('up_block_types', 'UpDecoderBlock2D'),
  ):
    found = settings.items(name, [kind])
    if found != [kind] * len(channels):
      settings.refuse(name, found, [[kind] * len(channels)])
  colours = settings.integer('in_channels', 3)
  settings.expect('out_channels', colours)
  settings.expect('latents_mean', None)
  settings.expect('latents_std', None)
  # It is about float16, in which nothing is computed here.
  settings.boolean('force_upcast', True)
  return _made(
    settings,
    VaeConfig,
    sample_size=_square(settings, 32),
    in_channels=colours,
    latent_channels=settings.integer('latent_channels', 4),
    channels=channels,
    layers=settings.integer('layers_per_block', 1),
    groups=settings.integer('norm_num_groups', 32),
    activation=settings.choose('act_fn', _NAMES, 'silu'),
    middle_attention=settings.boolean('mid_block_add_attention', True),
    quant_conv=settings.boolean('use_quant_conv', True),
    post_quant_conv=settings.boolean('use_post_quant_conv', True),
    scaling_factor=settings.number('scaling_factor', 0.18215),
    shift_factor=settings.number('shift_factor', 0.0, above=None, null=True),
  )


def _open(file: pathlib.Path, kind: str) -> ConfigFile:
  settings = ConfigFile(file)
  settings.choose('_class_name', {kind: kind})
  return settings


def _made(
  settings: ConfigFile, kind: type, *, harmless: tuple = (), **fields: Any
) -> Any:
  """Checks that all settings of the file were read, and makes the config."""
  settings.check_all_asked((*HARMLESS, *harmless))
  try:
    return kind(**fields)
  except ValueError as error:
    raise ValueError(f'{settings.place}: {error}') from error


def _levels(settings, name, default, count=None, check=None) -> tuple:
  """Reads a setting that has one value, or one for each resolution."""
  check = check or (lambda value, place: values.integer(value, place, 1))
  place = f'{settings.place}: {name}'
  found = settings.list_or_one(name)
  if not found and name in settings:
    settings.refuse(name, [], ['a value or more'])
  found = found or default
  if isinstance(found, list | tuple):
    found = tuple(check(one, place) for one in found)
  else:
    found = (check(found, place),)
  if count is not None and len(found) == 1:
    found *= count
  if count not in (None, len(found)):
    raise ValueError(
      f'{place}: {list(found)} has {len(found)} entries, block_out_channels '
      f'has {count}'
    )
  return found


def _square(settings: ConfigFile, default: int) -> int:
  """Reads sample_size: a number, or twice the same number."""
  found = set(_levels(settings, 'sample_size', default))
  if len(found) > 1:
    settings.refuse('sample_size', sorted(found), ['equal height and width'])
  return found.pop()
