"""Gin: the one module that reads configuration files and builds objects.

Library code never imports gin. Configuration files name functions and classes
by dynamic registration (`from __gin__ import dynamic_registration`), so that
every argument of every public function can be set, and objects are passed, not
names: `OPTIMIZER = @lora_opt.lora_rite()`.
"""

import ast
import difflib
import pathlib
import re
import tokenize
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import gin

# What a binding on the command line may name: the same imports as in configs/.
_PREAMBLE = """
from __gin__ import dynamic_registration
import lora_opt
import optax
from lora_opt import models
from lora_opt.data import forms
from lora_opt.data import sources
from lora_opt.data import tasks
from lora_opt.evaluation import decoding
from lora_opt.evaluation import evaluate
from lora_opt.evaluation import metrics
from lora_opt.evaluation import run
from lora_opt.planning import chips
from lora_opt.planning import plan
from lora_opt.planning import timing
from lora_opt.training import loop
from lora_opt.training import partitioning
from lora_opt.training import schedules
"""

# What gin's parser raises for a mistake in a file or binding.
_GIN_ERRORS = (
  AttributeError,
  ImportError,
  NameError,
  OSError,
  RuntimeError,
  SyntaxError,
  TypeError,
  ValueError,
  tokenize.TokenError,
)

# `configs/...` is found from any working directory.
gin.add_config_file_search_path(
  str(pathlib.Path(__file__).parents[1].resolve())
)


class ConfigError(ValueError):
  """A mistake in a configuration file or in a --gin flag."""


def load(
  files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
) -> None:
  """Parses gin files, then bindings, and checks that nothing is left unset.

  Args:
    files: gin files, later ones override earlier ones; relative names are
      looked up in the working directory, `search_paths` and the project's root.
    bindings: `NAME = VALUE` strings; a value that gin could not read is taken
      as a string, so that `MODEL_DIR=runs/a` needs no quotes.
    search_paths: further folders for `files` and for their includes.

  Raises:
    ConfigError: a file is missing or malformed, a name is unknown, or a
      required macro is unset; the message names it.
  """
  gin.clear_config()
  for path in search_paths:
    gin.add_config_file_search_path(path)
  try:
    for file in files:
      gin.parse_config_file(file)
    known = set(re.findall(r'\b[A-Z][A-Z0-9_]*\b', gin.config_str()))
    for binding in bindings:
      if known:
        _check_macro_name(binding, known)
      _bind(binding)
    _check_required()
    gin.finalize()
  except ConfigError:
    raise
  except _GIN_ERRORS as error:
    raise ConfigError(str(error).strip()) from error


def _bind(binding: str) -> None:
  try:
    gin.parse_config([_PREAMBLE, _quoted(binding)])
  except _GIN_ERRORS as error:
    # Without gin's own place in a text that the user never saw.
    reason = re.sub(r'\n  In bindings string.*', '', str(error), flags=re.S)
    raise ConfigError(f'--gin.{binding}: {reason.strip()}') from error


def _check_macro_name(binding: str, known: Collection[str]) -> None:
  """Refuses `--gin.TRIAN_STEPS=5`, which gin takes for a new macro."""
  match = re.match(r'\s*([A-Z][A-Z0-9_]*)\s*=', binding)
  if match and match[1] not in known:
    near = difflib.get_close_matches(match[1], known, n=1)
    hint = f' Did you mean {near[0]}?' if near else ''
    raise ConfigError(
      f'--gin.{binding}: no gin file sets or uses the macro {match[1]}.{hint}'
    )


def _quoted(binding: str) -> str:
  """Quotes a value that can only be meant as a string."""
  match = re.fullmatch(r'\s*([\w./]+)\s*=\s*(.*?)\s*', binding, re.S)
  if not match:
    return binding
  name, value = match.groups()
  if value[:1] in ('@', '%'):
    return f'{name} = {value}'
  try:
    ast.literal_eval(value)
  except (ValueError, SyntaxError):
    # As a string each of them would count as true.
    if value in ('true', 'false', 'null'):
      raise ConfigError(f'--gin.{binding}: write True, False or None') from None
    # A list or dict of references, such as [@a(), @b()], is gin's to parse.
    if value[:1] not in '[({':
      return f'{name} = {value!r}'
  return f'{name} = {value}'


def _check_required() -> None:
  """Names all macros that are used and not set, not only the first."""
  lines = settings().items()
  unset = {name for name, value in lines if value == '%gin.REQUIRED'}
  used = {
    macro
    for _, value in lines
    for macro in re.findall(r'%([A-Z][A-Z0-9_]*)\b', value)
  }
  missing = sorted(unset | (used - settings().keys()))
  if missing:
    raise ConfigError(
      f'required and not set: {", ".join(missing)}. Set each by a --gin_file '
      f'that defines it or by --gin.{missing[0]}=VALUE.'
    )


def build(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `function` with its configured arguments filled in.

  >>> def area(width, height):
  ...   return width * height
  >>> build(area)(2, height=3)
  6
  """
  try:
    return gin.get_configurable(function)
  except (KeyError, ValueError):  # no file has bound any of its arguments
    return function


def text() -> str:
  """The whole configuration as gin text, set or not used."""
  return gin.config_str()


def operative_text() -> str:
  """The configuration that was really used so far, defaults included."""
  return gin.operative_config_str()


def settings() -> Mapping[str, str]:
  """Every binding as `name -> value text`, to compare two runs.

  >>> load([], ['BATCH_SIZE=8'])
  >>> settings()
  {'BATCH_SIZE': '8'}
  """
  found: dict[str, str] = {}
  name = ''
  for line in gin.config_str().splitlines():
    if not line or line.startswith(('#', 'import ', 'from ')):
      continue
    if line.startswith(' '):  # a value that goes on over several lines
      found[name] = f'{found[name]} {line.strip()}'.strip()
    else:
      name, _, value = line.partition(' =')
      found[name] = value.strip(' \\')
  return found
