"""Published models by their config.json and the names of their tensors.

Each file of `published/` is a model: its number of parameters, the names in its
checkpoint (how many layers each occurs in), and where they are from. Its
config.json is in configs/published/. No weights: everything is shapes.
"""

import collections
import importlib.util
import json
import math
import pathlib

import numpy as np
import pytest

from lora_opt.models.pretrained.assemble import check_tensors, parameter_names
from lora_opt.models.pretrained.family import slots
from lora_opt.models.pretrained.files import StoredTensor
from lora_opt.models.pretrained.huggingface import read_config
from lora_opt.models.quantized import leaves_by_path

# Ends of names that checkpoints have besides: buffers, copies of a table, and
# a bias of the first T5 files that nothing reads.
NO_PARAMETERS = (
  'rotary_emb.inv_freq',
  '.attn.bias',
  'lm_head.weight',
  'embed_tokens.weight',
  'EncDecAttention.relative_attention_bias.weight',
)
CONFIGS = pathlib.Path(__file__).parents[2] / 'configs/published'
FILES = sorted((pathlib.Path(__file__).parent / 'published').glob('*.json'))


@pytest.fixture(scope='module', params=FILES, ids=lambda file: file.stem)
def published(request):
  """The file, the family, the config and the abstract weights of a model."""
  published = json.loads(request.param.read_text())
  file = CONFIGS / request.param.stem / 'config.json'
  family, config = read_config(file)
  published['config'] = json.loads(file.read_text())
  return published, family, config, family.abstract_base(config)


def names_of(tensors: dict[str, int]) -> list[str]:
  """Every name; a template with {} stands for so many layers."""
  return [
    template.replace('{}', str(layer))
    for template, count in tensors.items()
    for layer in range(count)
  ]


def test_parameter_count(published):
  file, _, _, base = published
  leaves = leaves_by_path(base).values()
  assert sum(math.prod(leaf.shape) for leaf in leaves) == file['parameters']


def test_every_name_is_a_parameter_and_back(published):
  file, family, config, base = published
  names = names_of(file['tensors'])
  stored = parameter_names(family, config, names)
  expected = slots(base, family.names)
  assert stored.keys() == expected.keys()
  # No two tensors are the same part, and every part of every array is one.
  parts = collections.Counter((s.path, s.layer) for s in expected.values())
  assert set(parts.values()) == {1}
  layers = collections.Counter(path for path, _ in parts)
  for path, leaf in leaves_by_path(base).items():
    stacked = (path, None) not in parts
    assert layers[path] == (leaf.shape[0] if stacked else 1), path
  # What the file has besides them is not a parameter.
  assert all(
    name.endswith(NO_PARAMETERS) for name in set(names) - set(stored.values())
  )


def test_config_can_be_written_and_read_back(published, tmp_path):
  _, family, config, _ = published
  long = getattr(config, 'long_rope_divisors', ())
  if long or len(set(getattr(config, 'rope_divisors', ()))) > 1:
    with pytest.raises(ValueError, match='rope_divisors .*have no config.json'):
      family.write_config(config)
    return
  if family.write_config is not None:
    settings = json.dumps(family.write_config(config))
    (tmp_path / 'config.json').write_text(settings)
    assert read_config(tmp_path / 'config.json') == (family, config)


if importlib.util.find_spec('torch') and importlib.util.find_spec('peft'):

  def test_shapes_are_those_of_transformers(published):
    import torch
    import transformers

    file, family, config, base = published
    kinds = {
      'CAUSAL_LM': transformers.AutoModelForCausalLM,
      'SEQ_2_SEQ_LM': transformers.AutoModelForSeq2SeqLM,
    }
    # What an encoder is for is said by its head alone.
    kind = kinds.get(
      family.model.task_type, transformers.AutoModelForSequenceClassification
    )
    if family.model.batch_form == 'image':
      kind = transformers.AutoModelForImageClassification
    kept = {
      key: value
      for key, value in file['config'].items()
      if key not in ('architectures', 'torch_dtype', 'transformers_version')
    }
    with torch.device('meta'):
      model = kind.from_config(transformers.AutoConfig.for_model(**kept))
    # With the copies: transformers ties what such a checkpoint may have apart.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensors = {
      name: StoredTensor(
        '-', name, tuple(parameters[key].shape), np.dtype('float32'), None
      )
      for name, key in parameter_names(family, config, parameters).items()
    }
    check_tensors('transformers', slots(base, family.names), tensors)
