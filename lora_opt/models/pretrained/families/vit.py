"""ViT, and the vision towers of CLIP and SigLIP, as image classifiers."""

from typing import Any

from lora_opt.models.pretrained.besides import Buffer, Unused, is_range
from lora_opt.models.pretrained.config_file import ConfigFile, Settings
from lora_opt.models.pretrained.families.bert import linear_names, norm_names
from lora_opt.models.pretrained.family import Family, TensorName, linear
from lora_opt.models.pretrained.formats import HUGGING_FACE
from lora_opt.models.pretrained.image_processor import open_processor
from lora_opt.models.vision.classifier import (
  ImageClassifier,
  abstract_base,
  abstract_head,
)
from lora_opt.models.vision.config import CHANNELS, VisionConfig

# Maps transformers' names of activations to ours.
ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'quick_gelu': 'gelu_quick',
  'relu': 'relu',
  'silu': 'silu',
  'swish': 'silu',
  'tanh': 'tanh',
}
_WRITTEN = {
  'gelu': 'gelu',
  'gelu_tanh': 'gelu_pytorch_tanh',
  'gelu_quick': 'quick_gelu',
  'relu': 'relu',
  'silu': 'silu',
  'tanh': 'tanh',
}

# Dropout rates are settings of our model. The rest is used only in pretraining
# and by the pooler, which the classification head does not read.
HARMLESS = (
  'attention_dropout',
  'attention_probs_dropout_prob',
  'encoder_stride',
  'hidden_dropout_prob',
  'initializer_factor',
  'pooler_act',
  'pooler_output_size',
)
_UNREAD = 'a part that the head of labels does not read'


def read_vit(settings: ConfigFile) -> VisionConfig:
  """Reads the config.json of model_type vit."""
  return VisionConfig(
    **_sizes(settings, 'gelu', 1e-12, patch=16),
    qkv_bias=settings.boolean('qkv_bias', True),
  )


def write_vit(config: VisionConfig) -> dict[str, Any]:
  """The inverse of `read_vit`."""
  c = config
  return {
    'model_type': 'vit',
    'architectures': ['ViTForImageClassification'],
    'image_size': _written(c.image_height, c.image_width),
    'patch_size': _written(c.patch_height, c.patch_width),
    'num_channels': CHANNELS,
    'hidden_size': c.embed_dim,
    'num_hidden_layers': c.num_layers,
    'num_attention_heads': c.num_heads,
    'intermediate_size': c.mlp_dim,
    'hidden_act': _WRITTEN[c.activation],
    'layer_norm_eps': c.norm_eps,
    'qkv_bias': c.qkv_bias,
  }


def read_clip(settings: ConfigFile) -> VisionConfig:
  """Reads the image settings in the config.json of model_type clip."""
  return VisionConfig(
    **_tower(settings, 'quick_gelu', 1e-5, patch=32),
    patch_bias=False,
    input_norm=True,
    final_norm=False,
    pooling='mean',
  )


def read_siglip(settings: ConfigFile) -> VisionConfig:
  """Reads the image settings in the config.json of model_type siglip."""
  return VisionConfig(
    **_tower(settings, 'gelu_pytorch_tanh', 1e-6, patch=16),
    class_token=False,
    pooling='mean',
  )


def _tower(
  settings: ConfigFile, activation: str, norm_eps: float, patch: int
) -> dict[str, Any]:
  """Reads vision_config; the rest is about texts and similarities."""
  vision = settings.section('vision_config')
  vision.get('model_type')
  sizes = _sizes(vision, activation, norm_eps, patch)
  for key in (
    'text_config',
    'projection_dim',
    'logit_scale_init_value',
    'text_config_dict',
  ):
    settings.get(key)
  # Old files have the settings twice, the second time without defaults.
  again = settings.section('vision_config_dict')
  said = {key: again.get(key) for key in again.keys()}  # noqa: SIM118
  for key, value in said.items():
    if vision.get(key, value) != value:
      vision.refuse(key, vision.get(key), [value])
  vision.get('projection_dim')
  # Whether there is SigLIP's pooling head, which is not used here.
  vision.get('vision_use_head')
  vision.check_all_asked(HARMLESS)
  return sizes


def _sizes(
  settings: Settings, activation: str, norm_eps: float, patch: int
) -> dict[str, Any]:
  """Reads the settings that all of them share, with transformers' defaults."""
  settings.expect('num_channels', CHANNELS)
  height, width = _sides(settings, 'image_size', 224)
  patch_height, patch_width = _sides(settings, 'patch_size', patch)
  return {
    'image_height': height,
    'image_width': width,
    'patch_height': patch_height,
    'patch_width': patch_width,
    'embed_dim': settings.integer('hidden_size', 768),
    'num_layers': settings.integer('num_hidden_layers', 12),
    'num_heads': settings.integer('num_attention_heads', 12),
    'mlp_dim': settings.integer('intermediate_size', 3072),
    'activation': settings.choose('hidden_act', ACTIVATIONS, activation),
    'norm_eps': settings.number('layer_norm_eps', norm_eps),
  }


def _sides(settings: Settings, key: str, default: int) -> tuple[int, int]:
  """Reads height and width; a single number stands for both."""
  found = settings.get(key)
  if isinstance(found, list):
    height, width = settings.items(key) if len(found) == 2 else (None, None)
    if type(height) is type(width) is int:
      return height, width
    settings.refuse(key, found, ['a number', '[height, width]'])
  side = settings.integer(key, default)
  return side, side


def _written(height: int, width: int) -> int | list[int]:
  return height if height == width else [height, width]


def _names(
  layer: str,
  maps: dict[str, str],
  norms: dict[str, str],
) -> dict[str, TensorName]:
  names = {}
  for ours, theirs in maps.items():
    names |= linear_names(f'layers/{ours}', f'{layer}.{theirs}')
  for ours, theirs in norms.items():
    names |= norm_names(f'layers/{ours}', f'{layer}.{theirs}')
  return names | linear_names('head/out', 'classifier')


def _tower_names() -> dict[str, TensorName]:
  maps = {f'attention/{name}': f'self_attn.{name}_proj' for name in 'qkv'}
  maps |= {'attention/o': 'self_attn.out_proj'}
  maps |= {'mlp/up': 'mlp.fc1', 'mlp/down': 'mlp.fc2'}
  norms = {'attention_norm': 'layer_norm1', 'mlp_norm': 'layer_norm2'}
  layer, embeddings = f'{TOWER}encoder.layers.{{}}', f'{TOWER}embeddings'
  return _names(layer, maps, norms) | {
    'class_token': TensorName(f'{embeddings}.class_embedding'),
    'positions': TensorName(f'{embeddings}.position_embedding.weight'),
    'patches/kernel': linear(f'{embeddings}.patch_embedding.weight'),
    'patches/bias': TensorName(f'{embeddings}.patch_embedding.bias'),
    **norm_names('input_norm', f'{TOWER}pre_layrnorm'),
    **norm_names('final_norm', f'{TOWER}post_layernorm'),
  }


TOWER = 'vision_model.'

VIT = Family(
  read_config=read_vit,
  harmless=HARMLESS,
  names=_names(
    'vit.encoder.layer.{}',
    {
      'attention/q': 'attention.attention.query',
      'attention/k': 'attention.attention.key',
      'attention/v': 'attention.attention.value',
      'attention/o': 'attention.output.dense',
      'mlp/up': 'intermediate.dense',
      'mlp/down': 'output.dense',
    },
    {'attention_norm': 'layernorm_before', 'mlp_norm': 'layernorm_after'},
  )
  | {
    'class_token': TensorName('vit.embeddings.cls_token', ones=2),
    'positions': TensorName('vit.embeddings.position_embeddings', ones=1),
    'patches/kernel': linear(
      'vit.embeddings.patch_embeddings.projection.weight'
    ),
    'patches/bias': TensorName(
      'vit.embeddings.patch_embeddings.projection.bias'
    ),
    **norm_names('final_norm', 'vit.layernorm'),
  },
  abstract_base=abstract_base,
  model=ImageClassifier,
  files=HUGGING_FACE,
  besides=lambda config: {
    r'(vit\.)?pooler\.dense\.(weight|bias)': Unused(_UNREAD),
    r'(vit\.)?embeddings\.mask_token': Unused(_UNREAD),
    r'decoder\.0\.(weight|bias)': Unused('head of pretraining'),
    r'classifier\.(weight|bias)': Unused('head of a task'),
  },
  prefix='vit.',
  write_config=write_vit,
  abstract_head=abstract_head,
  classifier='ViTForImageClassification',
  open_input=lambda folder, config: open_processor(folder),
  spelled={
    'vit.layers.': 'vit.encoder.layer.',
    '.attention.q_proj.': '.attention.attention.query.',
    '.attention.k_proj.': '.attention.attention.key.',
    '.attention.v_proj.': '.attention.attention.value.',
    '.attention.o_proj.': '.attention.output.dense.',
    '.mlp.fc1.': '.intermediate.dense.',
    '.mlp.fc2.': '.output.dense.',
  },
)

_NOT_OF_IMAGES = {
  r'text_model\..*': Unused('the tower of texts'),
  r'(text|visual)_projection\.weight': Unused('a map to what both share'),
  r'logit_(scale|bias)': Unused('how alike texts and images are'),
  r'vision_model\.embeddings\.position_ids': Buffer(
    is_range, 'the numbers of the positions'
  ),
  r'classifier\.(weight|bias)': Unused('head of a task'),
}

CLIP = VIT._replace(
  read_config=read_clip,
  names=_tower_names(),
  besides=lambda config: (
    _NOT_OF_IMAGES
    | {r'vision_model\.post_layernorm\.(weight|bias)': Unused(_UNREAD)}
  ),
  prefix=TOWER,
  write_config=None,
  classifier='CLIPForImageClassification',
  spelled={},
)

SIGLIP = CLIP._replace(
  read_config=read_siglip,
  besides=lambda config: (
    _NOT_OF_IMAGES | {r'vision_model\.head\..*': Unused(_UNREAD)}
  ),
  classifier='SiglipForImageClassification',
  bystanders=tuple(
    f'{TOWER}head.{name}'
    for name in ('attention.out_proj', 'mlp.fc1', 'mlp.fc2')
  ),
)
