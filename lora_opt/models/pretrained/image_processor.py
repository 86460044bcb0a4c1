"""Reads preprocessor_config.json, which says how to prepare images.

Every setting is used, known to have no effect, or refused.
"""

import pathlib
from typing import Any

from lora_opt.data.images import Fit, ImageProcessor
from lora_opt.data.images.fitting import RESAMPLES
from lora_opt.data.images.processor import FILE
from lora_opt.models.pretrained.config_file import ConfigFile, Settings
from lora_opt.reading import values

_STRETCHED = {
  'size': {'height': 224, 'width': 224},
  'crop': False,
  'resample': 2,
  'mean': (0.5, 0.5, 0.5),
  'std': (0.5, 0.5, 0.5),
}
_CUT = {
  'size': {'shortest_edge': 224},
  'crop': True,
  'resample': 3,
  'mean': (0.48145466, 0.4578275, 0.40821073),
  'std': (0.26862954, 0.26130258, 0.27577711),
}
# The defaults of transformers' classes for absent settings.
_DEFAULTS = {
  'CLIP': _CUT,
  'Siglip': _STRETCHED | {'resample': 3},
  'ViT': _STRETCHED,
}
_CLASSES = {
  f'{kind}{end}': defaults
  for kind, defaults in _DEFAULTS.items()
  for end in (
    'FeatureExtractor',
    'ImageProcessor',
    'ImageProcessorFast',
    'ImageProcessorPil',
  )
}
# Settings for other ways to do the same, and for what is always done here.
_HARMLESS = (
  'data_format',
  'device',
  'disable_grouping',
  'do_convert_rgb',
  'input_data_format',
  'processor_class',
  'return_tensors',
)


def open_processor(folder: pathlib.Path) -> ImageProcessor:
  """Reads the preprocessor_config.json of a folder.

  Raises:
    FileNotFoundError: The folder has no such file.
    ValueError: It is not JSON, or has a setting that is not supported.
  """
  file = folder / FILE
  if not file.exists():
    raise FileNotFoundError(
      f'no {FILE} in {folder}: it says how the weights want images. Take the '
      'one that was published with them'
    )
  settings = ConfigFile(file)
  key = 'image_processor_type'
  if key not in settings:
    key = 'feature_extractor_type'
  defaults = settings.choose(key, _CLASSES)
  processor = ImageProcessor(
    _fit(settings, defaults), **_normalisation(settings, defaults)
  )
  settings.check_all_asked(
    (*_HARMLESS, 'image_processor_type', 'feature_extractor_type')
  )
  return processor


def _fit(settings: Settings, defaults: dict[str, Any]) -> Fit:
  settings.expect('do_resize', True)
  settings.expect('do_pad', False, None)
  place, cut = settings.place, defaults is _CUT
  number = settings.integer('resample', defaults['resample'], least=0)
  names = {int(method): name for name, method in RESAMPLES.items()}
  if number not in names:
    settings.refuse('resample', number, sorted(names))
  crops = settings.boolean('do_center_crop', defaults['crop'], null=True)
  size = _size(settings, 'size', defaults['size'], square=not cut)
  shorter = size.get('shortest_edge')
  if crops:
    height, width = _sides(
      _size(settings, 'crop_size', {'height': 224, 'width': 224}, square=True),
      f'{place}: crop_size',
    )
  else:
    settings.get('crop_size')  # without effect
    height, width = _sides(size, f'{place}: size (without do_center_crop)')
  if crops and shorter is None and _sides(size, '') != (height, width):
    settings.refuse('size', size, ['shortest_edge', 'that of crop_size'])
  try:
    return Fit(height, width, shorter if crops else None, names[number])
  except ValueError as error:
    raise ValueError(f'{place}: {error}') from None


def _size(
  settings: Settings, key: str, default: dict[str, int], square: bool
) -> dict[str, int]:
  """Reads a size; one number is the shorter side, or both sides of a square."""
  found = settings.get(key, default)
  if isinstance(found, int) and not isinstance(found, bool):
    names = ('height', 'width') if square else ('shortest_edge',)
    found = dict.fromkeys(names, found)
  found = values.table(found, f'{settings.place}: {key}')
  if found.keys() not in ({'height', 'width'}, {'shortest_edge'}):
    settings.refuse(key, found, ['height and width', 'shortest_edge'])
  for name, side in found.items():
    values.integer(side, f'{settings.place}: {key}: {name}', 1, 2**13)
  return found


def _sides(size: dict[str, int], what: str) -> tuple[int, int]:
  if 'shortest_edge' in size:
    raise ValueError(
      f'{what} is a shortest_edge, which leaves images of any proportions: '
      'the network reads one size'
    )
  return size['height'], size['width']


def _normalisation(
  settings: Settings, defaults: dict[str, Any]
) -> dict[str, Any]:
  scale = settings.number('rescale_factor', 1 / 255)
  if not settings.boolean('do_rescale', True, null=True):
    scale = 1.0
  means, stds = (
    settings.items(f'image_{name}', list(defaults[name]), null=True)
    for name in ('mean', 'std')
  )
  if not settings.boolean('do_normalize', True, null=True):
    means, stds = [0.0] * 3, [1.0] * 3
  for name, found in (('mean', means), ('std', stds)):
    what = f'{settings.place}: image_{name}'
    for one in values.items(found, what, size=3):
      values.number(one, what, above=0 if name == 'std' else None)
  return {'scale': scale, 'mean': means, 'std': stds}
