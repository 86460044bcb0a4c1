"""Diffusers' settings files of each part: the inverse of `part_files`."""

from typing import Any

from lora_opt.models.diffusion.pipeline_config import PipelineConfig
from lora_opt.models.diffusion.unet_config import UNetConfig


def settings_of(config: PipelineConfig) -> dict[str, dict[str, Any]]:
  """Returns the content of the settings files of a diffusers folder.

  Returns:
    The content of each file, by its path within the folder.
  """
  files = {
    'unet/config.json': _unet(config.unet),
    'text_encoder/config.json': _text(config),
    'scheduler/scheduler_config.json': _scheduler(config),
  }
  if config.vae is not None:
    files['vae/config.json'] = _vae(config)
  scheduler = files['scheduler/scheduler_config.json']['_class_name']
  return files | {
    'model_index.json': {
      '_class_name': 'StableDiffusionPipeline',
      'unet': ['diffusers', 'UNet2DConditionModel'],
      'text_encoder': ['transformers', 'CLIPTextModel'],
      'tokenizer': ['transformers', 'PreTrainedTokenizerFast'],
      'scheduler': ['diffusers', scheduler],
      'vae': ['diffusers', 'AutoencoderKL'] if config.vae else [None, None],
      'safety_checker': [None, None],
      'feature_extractor': [None, None],
      'requires_safety_checker': False,
    }
  }


def _unet(c: UNetConfig) -> dict[str, Any]:
  down = {True: 'CrossAttnDownBlock2D', False: 'DownBlock2D'}
  up = {True: 'CrossAttnUpBlock2D', False: 'UpBlock2D'}
  middle = {'cross': 'UNetMidBlock2DCrossAttn', 'plain': 'UNetMidBlock2D'}
  return {
    '_class_name': 'UNet2DConditionModel',
    'sample_size': c.sample_size,
    'in_channels': c.in_channels,
    'out_channels': c.out_channels,
    'block_out_channels': list(c.channels),
    'down_block_types': [down[cross] for cross in c.down_cross],
    'up_block_types': [up[cross] for cross in c.up_cross],
    'mid_block_type': middle.get(c.middle),
    'layers_per_block': list(c.layers),
    'attention_head_dim': list(c.heads),
    'transformer_layers_per_block': list(c.depths),
    'cross_attention_dim': list(c.context_dims),
    'only_cross_attention': list(c.only_cross),
    'use_linear_projection': c.linear_projection,
    'norm_num_groups': c.groups,
    'norm_eps': c.norm_eps,
    'act_fn': c.activation,
    'resnet_time_scale_shift': 'scale_shift' if c.scale_shift else 'default',
    'mid_block_scale_factor': c.middle_divisor,
    'downsample_padding': c.downsample_padding,
    'center_input_sample': c.centre_input,
    'flip_sin_to_cos': c.cosine_first,
    'freq_shift': c.frequency_shift,
    'time_embedding_dim': c.time_dim,
    'conv_in_kernel': c.conv_in_kernel,
    'conv_out_kernel': c.conv_out_kernel,
  }


def _text(config: PipelineConfig) -> dict[str, Any]:
  c = config.text
  return {
    'architectures': ['CLIPTextModel'],
    'model_type': 'clip_text_model',
    'vocab_size': c.vocab_size,
    'hidden_size': c.embed_dim,
    'num_hidden_layers': c.num_layers,
    'num_attention_heads': c.num_heads,
    'intermediate_size': c.mlp_dim,
    'max_position_embeddings': c.max_length,
    'hidden_act': c.activation,
    'layer_norm_eps': c.norm_eps,
  }


def _vae(config: PipelineConfig) -> dict[str, Any]:
  c = config.vae
  return {
    '_class_name': 'AutoencoderKL',
    'sample_size': c.sample_size,
    'in_channels': c.in_channels,
    'out_channels': c.in_channels,
    'latent_channels': c.latent_channels,
    'block_out_channels': list(c.channels),
    'down_block_types': ['DownEncoderBlock2D'] * len(c.channels),
    'up_block_types': ['UpDecoderBlock2D'] * len(c.channels),
    'layers_per_block': c.layers,
    'norm_num_groups': c.groups,
    'act_fn': c.activation,
    'mid_block_add_attention': c.middle_attention,
    'use_quant_conv': c.quant_conv,
    'use_post_quant_conv': c.post_quant_conv,
    'scaling_factor': c.scaling_factor,
    'shift_factor': c.shift_factor or None,
  }


def _scheduler(config: PipelineConfig) -> dict[str, Any]:
  n, s = config.noise, config.sampler
  common = {
    'num_train_timesteps': n.timesteps,
    'beta_start': n.beta_start,
    'beta_end': n.beta_end,
    'beta_schedule': n.beta_schedule,
    'trained_betas': list(n.betas) or None,
    'rescale_betas_zero_snr': n.zero_terminal,
    'prediction_type': n.prediction,
    'timestep_spacing': s.spacing,
    'steps_offset': s.offset,
  }
  if s.kind == 'ddim':
    return common | {
      '_class_name': 'DDIMScheduler',
      'clip_sample': s.clip is not None,
      'clip_sample_range': 1.0 if s.clip is None else s.clip,
      'set_alpha_to_one': s.end_at_image,
    }
  common |= {
    'final_sigmas_type': 'zero' if s.zero_end else 'sigma_min',
    'use_karras_sigmas': s.karras,
  }
  if s.kind == 'euler':
    return common | {
      '_class_name': 'EulerDiscreteScheduler',
      'interpolation_type': 'log_linear' if s.log_linear else 'linear',
    }
  written = common | {
    '_class_name': 'DPMSolverMultistepScheduler',
    'algorithm_type': 'dpmsolver++',
    'solver_order': s.order,
    'solver_type': 'heun' if s.heun else 'midpoint',
    'lower_order_final': s.first_order_end,
    'euler_at_final': s.euler_end,
  }
  if s.least_log_snr is not None:
    written['lambda_min_clipped'] = s.least_log_snr
  return written
