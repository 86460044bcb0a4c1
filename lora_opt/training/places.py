"""Checks the buckets that a configuration names before anything is loaded."""

import ast
import re
from collections.abc import Iterator, Mapping

from lora_opt.buckets import access
from lora_opt.buckets.paths import as_path, is_bucket

# Arguments that may name a place in a bucket: the functions that take them can
# read from a bucket, or make a local copy.
ARGUMENTS = (
  'adapter',
  'class_images',
  'data_dir',
  'file',
  'folder',
  'images',
  'initial_adapter',
  'model_dir',
  'path',
  'source',
)
_MACRO = re.compile(r'%([A-Z][A-Z0-9_]*)')


def check(
  settings: Mapping[str, str], read: Mapping[str, str | None] | None = None
) -> None:
  """Raises an error unless every bucket that is named can be used.

  Args:
    settings: the settings of a configuration; see `config.settings`.
    read: further folders that will be read: the flag's name -> folder or None.

  Raises:
    OSError: MODEL_DIR cannot be written, or another place cannot be read.
    ValueError: a package is missing, a name is not that of a bucket, or a
      bucket is given to an argument that takes only local paths.
  """
  for name, value in (read or {}).items():
    if is_bucket(value):
      access.check_reading(as_path(value, name), name)
  found: dict[str, str] = {}
  for name, argument, value in _texts(settings):
    if is_bucket(value) or (argument == 'model_dir' and '://' in value):
      if argument not in ARGUMENTS:
        raise ValueError(
          f'{name}={value}: a local path is needed here, not one in a bucket'
        )
      path = as_path(value, name)
      if found.get(value) != 'model_dir':
        found[value] = argument
        if argument == 'model_dir':
          access.check_writing(path, name)
        else:
          access.check_reading(path, name)


def _texts(settings: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
  """Yields name, argument and value of every setting that is a string."""
  for full, text in settings.items():
    argument = full.rpartition('.')[2]
    if '.' not in full:
      continue  # a macro; it is checked where it is used
    macro = _MACRO.fullmatch(text)
    name = macro[1] if macro else full
    try:
      value = ast.literal_eval(settings.get(name, '') if macro else text)
    except (ValueError, SyntaxError):
      continue
    if isinstance(value, str):
      yield name, argument, value
