"""Random small vision transformers that between them use every option."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np

from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.families import FAMILIES
from lora_opt.models.pretrained.huggingface import from_folder
from lora_opt.models.pretrained.peft_names import unspelled
from tests.models.batches import jitted
from tests.models.parity import material

SIZES = {
  'hidden_size': 16,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 24,
  'image_size': 12,
  'patch_size': 4,
}
MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.25, 0.3]
TOWER = ('q_proj', 'k_proj', 'v_proj', 'out_proj', 'fc1', 'fc2')
VIT = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'fc1', 'fc2')


@dataclasses.dataclass(frozen=True)
class Case:
  """One model of transformers.

  Attributes:
    model_type: Of its config.
    settings: Of its config, or of its vision_config, besides `SIZES`.
    modules: What PEFT adapts, a list of ends or an expression.
    target: The same as our regular expression.
    outputs: Labels.
  """

  model_type: str
  settings: dict[str, Any]
  modules: tuple[str, ...] | str = TOWER
  target: str = '.*layers/.*'
  outputs: int = 3

  @property
  def sides(self) -> tuple[int, int]:
    """Height and width of an image."""
    size = (SIZES | self.settings)['image_size']
    return tuple(size) if isinstance(size, list) else (size, size)


CASES = {
  'vit': Case('vit', {}, VIT),
  # Of 13 rows of pixels, 12 are read.
  'vit_wide': Case(
    'vit',
    {
      'image_size': [13, 20],
      'patch_size': [4, 5],
      'qkv_bias': False,
      'hidden_act': 'relu',
    },
    ('q_proj', 'v_proj'),
    '.*/(q|v)',
  ),
  'clip': Case('clip', {}),
  # Not those of the head for pooling, which labels are not read from.
  'siglip': Case(
    'siglip',
    {'hidden_act': 'gelu'},
    r'.*\.encoder\.layers\.\d+\..*(_proj|fc\d)',
  ),
}


def batch_of(case: Case) -> dict[str, np.ndarray]:
  """Four images with labels."""
  random = np.random.default_rng(0)
  return {
    'images': random.integers(0, 256, (4, *case.sides, 3), dtype=np.uint8),
    'labels': np.array([[0], [2], [1], [1]], np.float32),
    'weights': np.ones((4, 1), np.float32),
  }


def config_of(case: Case):
  """The config of transformers."""
  import transformers

  settings = SIZES | case.settings
  if case.model_type != 'vit':
    text = {
      'hidden_size': 16,
      'num_hidden_layers': 1,
      'num_attention_heads': 2,
      'intermediate_size': 8,
      'vocab_size': 16,
    }
    settings = {'vision_config': settings, 'text_config': text}
  return transformers.AutoConfig.for_model(
    case.model_type, num_labels=case.outputs, **settings
  )


def reference(case: Case):
  """Logits and gradients of transformers and peft; needs torch.

  Returns:
    The adapted torch model; arrays by name; and the text of config.json.
  """
  import torch
  import transformers

  from tests.models.parity import reference as torch_side

  family = FAMILIES[case.model_type]
  config = config_of(case)
  model = transformers.AutoModelForImageClassification.from_config(
    config, attn_implementation='eager'
  )
  targets = case.modules
  targets = targets if isinstance(targets, str) else list(targets)
  adapted = torch_side.adapt(
    model, targets, None, modules_to_save=['classifier']
  )
  trained = {}
  with torch.no_grad():
    for name, parameter in adapted.named_parameters():
      saved = name.replace('.modules_to_save.default', '')
      plain = saved.replace('.base_layer', '').replace('.default', '')
      if saved == name and '.lora_' not in name:
        plain = unspelled(family, plain.removeprefix('base_model.model.'))
      else:
        trained[plain] = parameter
      shape = tuple(parameter.shape)
      parameter.copy_(torch.tensor(material.weight(plain, shape)))
  logits = torch_logits(adapted, case)
  labels = torch.tensor(batch_of(case)['labels'][:, 0]).long()
  torch.nn.functional.cross_entropy(logits, labels, reduction='sum').backward()
  arrays = {'logits': logits.detach().numpy()}
  arrays |= {f'gradient/{n}': p.grad.numpy() for n, p in trained.items()}
  return adapted, arrays, config.to_json_string()


def torch_logits(model, case: Case):
  """Logits of a torch model on the images of a case."""
  import torch

  images = batch_of(case)['images'].astype(np.float64)
  pixels = ((images / 255 - MEAN) / STD).astype(np.float32)
  return model(pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2))).logits


def our_model(case: Case, folder, config: str):
  """Our model of a case, from a checkpoint that is written to a folder."""
  material.write_folder(folder, config, case.outputs)
  height, width = case.sides
  settings = {
    'image_processor_type': 'ViTImageProcessor',
    'size': {'height': height, 'width': width},
    'image_mean': MEAN,
    'image_std': STD,
  }
  (folder / 'preprocessor_config.json').write_text(
    json.dumps(settings), encoding='utf-8'
  )
  lora = LoraConfig(case.target, material.RANK, material.ALPHA)
  return from_folder(folder, lora=lora, outputs=case.outputs, remat='none')


def our_arrays(case: Case, model) -> dict[str, np.ndarray]:
  """What `reference` returns."""
  trainable, batch = material.adapter(model), batch_of(case)
  logits = jitted(model, 'predict')(model.base, trainable, batch)

  def total(trainable):
    return model.token_losses(model.base, trainable, batch).sum()

  gradient = material.by_peft_name(jax.jit(jax.grad(total))(trainable), model)
  arrays = {'logits': np.asarray(logits)[:, 0]}
  return arrays | {f'gradient/{name}': x for name, x in gradient.items()}
