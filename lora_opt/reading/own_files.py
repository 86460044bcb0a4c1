"""Finds files shipped with lora_opt by the paths that its documents use."""

import pathlib

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# In a wheel configs/ is inside the package, in a checkout next to it.
_HOMES = (_PACKAGE, _PACKAGE.parent)


def home() -> pathlib.Path:
  """The folder that holds configs/.

  >>> (home() / 'configs/runs/quickstart.gin').is_file()
  True
  """
  for folder in _HOMES:
    if (folder / 'configs' / 'runs' / 'finetune.gin').is_file():
      return folder
  return _PACKAGE


def found(path: pathlib.Path) -> pathlib.Path:
  """The path, or that of our own file if configs/... exists only there.

  >>> found(pathlib.Path('configs/published/gemma_2b')).is_dir()
  True
  >>> found(pathlib.Path('elsewhere/gemma_2b')).as_posix()
  'elsewhere/gemma_2b'
  """
  ours = path.parts[:1] == ('configs',) and not path.exists()
  return home() / path if ours and (home() / path).exists() else path
