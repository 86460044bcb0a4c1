"""Adapters of diffusers and kohya: spellings, scales, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lora_opt.models.diffusion.folder import from_diffusers
from lora_opt.models.diffusion.formats import DIFFUSERS
from lora_opt.models.diffusion.random_pipeline import tiny
from lora_opt.models.diffusion.text_to_image import TextToImage, abstract_base
from lora_opt.models.lora import LoraConfig
from tests.models.parity import diffusion, material

TARGET = (
  r'unet/.*(attn1/to_(q|out\.0)|conv1|proj_in)|text_encoder/.*/(k_proj|fc1)'
)
WEIGHTS = 'pytorch_lora_weights.safetensors'


@pytest.fixture(scope='module')
def model():
  """Of shapes: an adapter needs no more of its base."""
  config = tiny()
  base, lora = abstract_base(config), LoraConfig(TARGET, 4, 6.0)
  return TextToImage('tiny', config, None, base, DIFFUSERS, lora)


@pytest.fixture(scope='module')
def trainable(model):
  return diffusion.adapter(model)


def read(model, folder):
  return diffusion.by_name(model.load_adapter(folder), model)


def check(model, folder, trainable) -> None:
  found, expected = read(model, folder), diffusion.by_name(trainable, model)
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def with_lora(model, **settings):
  lora = dataclasses.replace(model.lora_config, **settings)
  return dataclasses.replace(model, lora_config=lora)


def test_the_file_is_that_of_diffusers(model, trainable, tmp_path):
  model.export(tmp_path, trainable)
  tensors = load_file(tmp_path / WEIGHTS)
  block = 'down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q'
  layer = 'text_model.encoder.layers.1.mlp.fc1'
  shapes = {name: x.shape for name, x in tensors.items()}
  assert shapes[f'unet.{block}.lora_A.weight'] == (4, 8)
  assert shapes[f'unet.{block}.lora_B.weight'] == (8, 4)
  conv = 'unet.down_blocks.0.resnets.0.conv1'
  assert shapes[f'{conv}.lora_A.weight'] == (4, 8, 3, 3)
  assert shapes[f'{conv}.lora_B.weight'] == (8, 4, 1, 1)
  assert shapes[f'text_encoder.{layer}.lora_A.weight'] == (4, 16)
  with safe_open(tmp_path / WEIGHTS, 'np') as file:
    said = json.loads(file.metadata()['lora_adapter_metadata'])
  assert (said['unet.r'], said['unet.lora_alpha']) == (4, 6)
  assert block in said['unet.target_modules']
  assert 'encoder.layers.1.mlp.fc1' in said['text_encoder.target_modules']


def kohya(tensors, alpha):
  """The tensors as kohya's trainer names them."""
  found = {}
  for name, tensor in tensors.items():
    module, _, factor = name.rpartition('.lora_')
    flat = module.replace('.', '_')
    flat = flat.replace('text_encoder_', 'te_', 1)
    place = {'A.weight': 'down', 'B.weight': 'up'}[factor]
    found[f'lora_{flat}.lora_{place}.weight'] = tensor
    found[f'lora_{flat}.alpha'] = np.array(alpha, np.float32)
  return found


def before(tensors, _):
  """As diffusers named them before PEFT."""
  return {
    name.replace('lora_A', 'lora.down').replace('lora_B', 'lora.up'): tensor
    for name, tensor in tensors.items()
  }


def at_first(tensors, _):
  """As its first files have the attention of a UNet and a text encoder."""
  found = {}
  for name, tensor in before(tensors, _).items():
    name = name.replace('.to_q.lora.', '.processor.to_q_lora.')
    name = name.replace('.to_out.0.lora.', '.processor.to_out_lora.')
    name = name.replace('.k_proj.lora.', '.to_k_lora.')
    name = name.replace('fc1.lora.', 'fc1.lora_linear_layer.')
    found[name] = tensor
  return found


def short(tensors, _):
  """Text encoders of today have no prefix of their own."""
  return {name.replace('text_model.', ''): x for name, x in tensors.items()}


@pytest.mark.parametrize('spelling', [kohya, before, at_first, short])
def test_other_spellings_are_read(model, trainable, tmp_path, spelling):
  model.export(tmp_path, trainable)
  tensors = load_file(tmp_path / WEIGHTS)
  (tmp_path / WEIGHTS).unlink()
  renamed = spelling(tensors, 6.0)
  assert renamed.keys() != tensors.keys()
  save_file(renamed, tmp_path / 'any.safetensors')
  # Only kohya's say an alpha; without it the change is not scaled.
  scaled = model if spelling is kohya else with_lora(model, alpha=4.0)
  check(scaled, tmp_path, trainable)
  check(scaled, tmp_path / 'any.safetensors', trainable)
  with pytest.raises(ValueError, match='set LoRA alpha to'):
    read(with_lora(model, alpha=5.0), tmp_path)


def test_rank_stabilised_adapters_come_back(model, trainable, tmp_path):
  stable = with_lora(model, rslora=True)
  stable.export(tmp_path, trainable)
  check(stable, tmp_path, trainable)
  # The same scale by another rule.
  check(with_lora(model, alpha=12.0), tmp_path, trainable)
  with pytest.raises(ValueError, match=r'multiplied by 3, the model has 1\.5'):
    read(model, tmp_path)


def test_an_adapter_of_another_model_is_refused(model, trainable, tmp_path):
  model.export(tmp_path, trainable)
  for settings, message in (
    ({'rank': 2}, 'the rank of .* is 4, the model has 2'),
    ({'target': f'{TARGET}|.*/v_proj'}, 'does not adapt text_enc.*v_proj'),
    ({'target': 'unet/.*/to_q'}, r'adapts .* LoRA target='),
  ):
    with pytest.raises(ValueError, match=message):
      read(with_lora(model, **settings), tmp_path)
  plain = dataclasses.replace(model, lora_config=None)
  for use in (plain.load_adapter, lambda path: plain.export(path, trainable)):
    with pytest.raises(ValueError, match='has no adapter'):
      use(tmp_path)


def test_bad_files_are_refused(model, trainable, tmp_path):
  with pytest.raises(FileNotFoundError, match=f'no {WEIGHTS} in'):
    read(model, tmp_path)
  with pytest.raises(FileNotFoundError, match='no safetensors file or folder'):
    read(model, tmp_path / 'lora.bin')
  model.export(tmp_path, trainable)
  tensors = load_file(tmp_path / WEIGHTS)
  name = next(name for name in tensors if 'conv1.lora_A' in name)

  def lora_of(metadata):
    return {'lora_adapter_metadata': json.dumps(metadata)}

  for harm, metadata, message in (
    ({name: tensors[name][:, :1]}, {}, r'conv1\.lora_A\.weight has shape'),
    ({name: None}, {}, r'lacks tensor.*conv1\.lora_A'),
    ({name: tensors[name] * np.nan}, {}, 'not finite'),
    ({'unet.conv_in.bias': np.ones(8)}, {}, 'conv_in.bias is not a factor'),
    (
      {name.replace('lora_A', 'lora.down'): tensors[name]},
      {},
      'are names of the same tensor',
    ),
    ({}, {'unet.use_dora': True}, 'unet.use_dora=True is not supported'),
    ({}, {'unet.bias': 'all'}, 'biases were trained too'),
    ({}, {'unet.lora_alpha': 0}, 'unet.lora_alpha: expected a finite number'),
    ({}, {'unet.alpha_pattern': {'conv1': 9}}, 'conv1 is multiplied by 2.25'),
  ):
    changed = {k: v for k, v in (tensors | harm).items() if v is not None}
    said = {'unet.lora_alpha': 6, 'text_encoder.lora_alpha': 6} | metadata
    save_file(changed, tmp_path / WEIGHTS, lora_of(said))
    with pytest.raises(ValueError, match=message):
      read(model, tmp_path)
  save_file(tensors, tmp_path / 'a.safetensors', lora_of([3]))
  with pytest.raises(ValueError, match='expected an object'):
    read(model, tmp_path / 'a.safetensors')


@pytest.mark.long
def test_an_adapter_changes_a_model_as_its_merged_weights_do(
  tmp_path, fast_compile
):
  """Convolutions too; read from the folder that merging writes."""
  _, settings = material.read_golden('diffusion_sd1')
  diffusion.write_folder(tmp_path, settings)
  lora = LoraConfig(rank=2, target='unet/.*conv.*|unet/.*/to_k')
  model = from_diffusers(tmp_path, lora=lora)
  adapter = diffusion.adapter(model)
  model.merge(tmp_path / 'merged', adapter, source=tmp_path)
  merged = from_diffusers(tmp_path / 'merged')
  batch = diffusion.batch_of(diffusion.CASES['sd1'])
  losses = jax.jit(model.token_losses)(model.base, adapter, batch)
  again = jax.jit(model.token_losses)(merged.base, None, batch)
  np.testing.assert_allclose(losses, again, rtol=1e-5)
