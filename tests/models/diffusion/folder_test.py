"""Diffusers folders: what is read, what is written, and what is refused."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_opt.models.diffusion.folder import from_diffusers, read_pipeline
from lora_opt.models.diffusion.part_settings import settings_of
from lora_opt.models.diffusion.random_pipeline import tiny
from lora_opt.models.diffusion.save import save_pipeline
from lora_opt.models.lora import LoraConfig
from tests.models.parity import diffusion, material

UNET = 'unet/diffusion_pytorch_model.safetensors'
TEXT = 'text_encoder/model.safetensors'
VAE = 'vae/diffusion_pytorch_model.safetensors'


@pytest.fixture(scope='module')
def good(tmp_path_factory):
  """A folder as diffusers saves it."""
  _, settings = material.read_golden('diffusion_sd1')
  folder = tmp_path_factory.mktemp('good')
  diffusion.write_folder(folder, settings)
  return folder


@pytest.fixture(scope='module')
def model(good):
  return from_diffusers(good, lora=LoraConfig(rank=2, target='unet/.*/to_q'))


@pytest.fixture
def folder(good, tmp_path):
  """A copy of it to be harmed."""
  return pathlib.Path(shutil.copytree(good, tmp_path / 'model'))


def change(file: pathlib.Path, **settings) -> None:
  found = json.loads(file.read_text()) | settings
  file.write_text(json.dumps(found))


def rewrite(file: pathlib.Path, function) -> None:
  """Saves what a function makes of the tensors of a file."""
  tensors = load_file(file)
  function(tensors)
  save_file(tensors, file)


def assert_same(found, expected) -> None:
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def move(old, new):
  """A function that renames a tensor."""

  def function(tensors):
    tensors[new] = tensors.pop(old)

  return function


def test_names_of_older_versions_are_read(model, folder):
  """As in Stable Diffusion's published files."""
  old = 'encoder.mid_block.attentions.0'
  rewrite(
    folder / VAE, move(f'{old}.to_out.0.weight', f'{old}.proj_attn.weight')
  )
  rewrite(folder / VAE, move(f'{old}.to_q.bias', f'{old}.query.bias'))

  def prefixed(tensors):
    for name in [*tensors]:
      tensors[f'text_model.{name}'] = tensors.pop(name)
    positions = np.arange(9, dtype=np.int64)[None]
    tensors['text_model.embeddings.position_ids'] = positions

  rewrite(folder / TEXT, prefixed)
  assert_same(from_diffusers(folder).base, model.base)


def test_a_variant_is_read_when_it_is_asked_for_or_alone(model, folder):
  file = folder / UNET
  tensors = {k: v.astype(np.float16) for k, v in load_file(file).items()}
  variant = file.with_name('diffusion_pytorch_model.fp16.safetensors')
  save_file(tensors, variant)
  rounded = jax.tree.map(
    lambda x: np.asarray(x).astype(np.float16).astype(np.float32),
    model.base['unet'],
  )
  assert_same(from_diffusers(folder).base, model.base)
  with pytest.raises(FileNotFoundError, match=r'no model\.fp16\.safetensors'):
    from_diffusers(folder, variant='fp16')
  file.unlink()
  assert_same(from_diffusers(folder).base['unet'], rounded)
  shutil.copy(
    variant, file.with_name('diffusion_pytorch_model.non_ema.safetensors')
  )
  with pytest.raises(ValueError, match=r'fp16, non_ema: say which by variant='):
    from_diffusers(folder)


def test_weights_in_several_files_are_read(model, folder):
  file = folder / UNET
  tensors, places = load_file(file), {}
  for number in (1, 2):
    name = f'diffusion_pytorch_model-0000{number}-of-00002.safetensors'
    part = dict(list(tensors.items())[number - 1 :: 2])
    save_file(part, file.with_name(name))
    places |= dict.fromkeys(part, name)
  file.unlink()
  index = file.with_name(f'{file.name}.index.json')
  index.write_text(json.dumps({'weight_map': places}))
  assert_same(from_diffusers(folder).base, model.base)


def test_shapes_need_settings_alone(good, model, tmp_path):
  for file in good.rglob('*.json'):
    if 'tokenizer' not in str(file):
      copy = tmp_path / file.relative_to(good)
      copy.parent.mkdir(exist_ok=True)
      shutil.copy(file, copy)
  planned = from_diffusers(tmp_path, weights=False, param_dtype='bfloat16')
  assert planned.tokenizer is None
  assert jax.tree.map(lambda x: x.shape, planned.base) == jax.tree.map(
    lambda x: x.shape, model.base
  )
  assert {x.dtype.name for x in jax.tree.leaves(planned.base)} == {'bfloat16'}


@pytest.mark.parametrize('part', ['unet', 'text_encoder', 'vae', 'tokenizer'])
def test_a_missing_part_is_named(folder, part):
  shutil.rmtree(folder / part)
  with pytest.raises(FileNotFoundError, match=f'{folder}/{part}'):
    from_diffusers(folder)


def test_a_missing_file_is_named(folder):
  (folder / UNET).unlink()
  with pytest.raises(FileNotFoundError, match=r'no diffusion_pytorch_model'):
    from_diffusers(folder)
  with pytest.raises(FileNotFoundError, match='no model folder at'):
    from_diffusers(folder / 'nothing')


@pytest.mark.parametrize('name', ['diffusion_pytorch_model.bin', 'sd.ckpt'])
def test_a_pickle_is_not_read(folder, name):
  (folder / UNET).rename(folder / 'unet' / name)
  with pytest.raises(ValueError, match=f'{name} is not a safetensors file'):
    from_diffusers(folder)


def test_bad_tensors_are_named(folder):
  good = (folder / UNET).read_bytes()
  for harm, message in (
    (
      lambda t: t.update({'conv_in.bias': np.zeros(9, np.float32)}),
      r'conv_in\.bias has shape \(9,\), the config calls for \(8,\)',
    ),
    (lambda t: t.pop('conv_in.bias'), r'unet lacks tensor.* conv_in\.bias'),
    (
      lambda t: t.update(more=np.zeros(1, np.float32)),
      r'unet has unknown tensor.* more',
    ),
    (
      lambda t: t.update({'conv_in.bias': np.full(8, np.nan, np.float32)}),
      r'conv_in\.bias has 8 values that are not finite',
    ),
  ):
    rewrite(folder / UNET, harm)
    with pytest.raises(ValueError, match=message):
      from_diffusers(folder)
    (folder / UNET).write_bytes(good)
  (folder / UNET).write_bytes(good[:-7])
  with pytest.raises(ValueError, match='cut short'):
    from_diffusers(folder)


@pytest.mark.parametrize(
  ('file', 'settings', 'message'),
  [
    ('unet', {'wings': 2}, 'settings unknown here.*wings=2'),
    ('unet', {'block_out_channels': []}, r'block_out_channels=\[\] is not'),
    ('unet', {'dropout': 0.1}, 'dropout=0.1 is not supported'),
    ('unet', {'addition_embed_type': 'text_time'}, "'text_time' is not sup"),
    ('unet', {'down_block_types': ['DownBlock2D'] * 3}, r'3\s+entries'),
    (
      'unet',
      {'up_block_types': ['UpBlock2D', 'AttnUpBlock2D']},
      "up_block_types: expected one of .*, found 'AttnUpBlock2D'",
    ),
    ('unet', {'norm_num_groups': 3}, 'channels=8 must be a multiple of'),
    ('unet', {'attention_head_dim': 3}, 'must be a multiple of heads=3'),
    ('unet', {'sample_size': [4, 8]}, 'sample_size=.*equal height and width'),
    ('unet', {'in_channels': 9}, 'in_channels=9, and what it denoises has 4'),
    ('unet', {'cross_attention_dim': 16}, 'texts of width 16 .* writes 12'),
    ('unet', {'act_fn': 'selu'}, "act_fn='selu' is not supported"),
    ('unet', {'_class_name': 'UNet2DModel'}, "'UNet2DModel' is not supported"),
    ('vae', {'latents_mean': [0.0]}, 'latents_mean=.* is not supported'),
    ('vae', {'out_channels': 4}, 'out_channels=4 is not supported'),
    ('vae', {'down_block_types': ['A', 'B']}, 'down_block_types=.* is not'),
    ('vae', {'_class_name': 'AutoencoderTiny'}, "'AutoencoderTiny' is not"),
    ('text_encoder', {'hidden_act': 'tanh'}, "hidden_act='tanh' is not"),
    ('text_encoder', {'model_type': 't5'}, "model_type='t5' is not supported"),
    ('text_encoder', {'vocab_size': 9}, 'tokenizer and model disagree'),
  ],
)
def test_a_setting_that_is_not_supported_is_named(
  folder, file, settings, message
):
  file = folder / file / 'config.json'
  change(file, **settings)
  with pytest.raises(ValueError, match=message):
    from_diffusers(folder)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'_class_name': 'StableDiffusionXLPipeline'}, "'StableDiffusionXLPipe"),
    ({'controlnet': ['diffusers', 'X']}, 'parts unknown here.*controlnet'),
    ({'unet': ['diffusers', 'UNetFlat']}, "found 'UNetFlat'"),
    ({'text_encoder': [None, None]}, 'has no text_encoder'),
  ],
)
def test_another_pipeline_is_refused(folder, settings, message):
  change(folder / 'model_index.json', **settings)
  with pytest.raises(ValueError, match=message):
    from_diffusers(folder)


@pytest.mark.parametrize(
  'config',
  [
    tiny(),
    tiny(pixels=True),
    tiny(prediction='v_prediction', zero_terminal=True),
  ],
)
def test_settings_are_written_and_read_back(config, tmp_path):
  for name, content in settings_of(config).items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(content))
  assert read_pipeline(tmp_path) == config


@pytest.mark.parametrize('name', diffusion.CASES)
def test_settings_of_diffusers_mean_the_same_when_written(name, tmp_path):
  _, text = material.read_golden(f'diffusion_{name}')

  def read(side, files):
    folder = tmp_path / side
    for file, content in files.items():
      (folder / file).parent.mkdir(exist_ok=True, parents=True)
      (folder / file).write_text(json.dumps(content))
    return read_pipeline(folder)

  theirs = read('theirs', json.loads(text))
  assert read('ours', settings_of(theirs)) == theirs


@pytest.mark.parametrize('copied', [True, False])
def test_merging_adds_the_change_of_the_adapter(model, good, tmp_path, copied):
  adapter = diffusion.adapter(model)
  path = tmp_path / 'merged'
  model.merge(path, adapter, source=good if copied else None)
  merged = from_diffusers(path)
  assert merged.config == model.config
  site = 'down_blocks.0/attentions.0/transformer_blocks.0/attn1/to_q'
  a, before, after = adapter['unet'], model.base['unet'], merged.base['unet']
  for name in site.split('/'):
    a, before, after = a[name], before[name], after[name]
  expected = before['kernel'] + model.lora_config.scale * (
    a['lora_a'] @ a['lora_b']
  )
  np.testing.assert_allclose(after['kernel'], expected, atol=1e-6)
  assert_same(merged.base['vae'], model.base['vae'])
  text = 'A cat, again'
  np.testing.assert_array_equal(
    merged.encode_texts([text]), model.encode_texts([text])
  )
  with pytest.raises(FileExistsError, match='merge into a new folder'):
    save_pipeline(path, model)


def test_half_a_model_is_never_left(model, good, tmp_path):
  broken = diffusion.adapter(model)
  broken = jax.tree.map(lambda x: x * np.float32(np.inf), broken)
  with pytest.raises(ValueError, match='values that are not finite'):
    model.merge(tmp_path / 'merged', broken, source=good)
  assert not [*tmp_path.iterdir()]
