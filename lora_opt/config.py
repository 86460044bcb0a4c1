"""Gin: the only module that reads configuration files and builds objects.

A gin file is a program: whatever it imports and calls is executed. Do not run a
stranger's gin file that you have not read.

Other library code never imports gin. Configuration files name functions and
classes by dynamic registration (`from __gin__ import dynamic_registration`).
So every argument of every public function can be set, and objects are passed
instead of names: `OPTIMIZER = @lora_opt.lora_rite()`.
"""

import ast
import difflib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import gin

from lora_opt import gin_types
from lora_opt.gin_text import ConfigError, Sources, brief, check, macros_in
from lora_opt.reading import own_files
from lora_opt.reading.values import shown

# Modules that a command-line binding may name: the same imports as in configs/.
_PREAMBLE = """
from __gin__ import dynamic_registration
import lora_opt
import optax
from lora_opt import models
from lora_opt.data import forms
from lora_opt.data import images
from lora_opt.data import sources
from lora_opt.data import tasks
from lora_opt.evaluation import decoding
from lora_opt.evaluation import evaluate
from lora_opt.evaluation import metrics
from lora_opt.evaluation import pictures
from lora_opt.evaluation import run
from lora_opt.planning import ahead
from lora_opt.planning import chips
from lora_opt.planning import plan
from lora_opt.planning import timing
from lora_opt.training import loop
from lora_opt.training import objective
from lora_opt.training import partitioning
from lora_opt.training import schedules
from lora_opt.training import trackers
"""

# `configs/...` is found from any working directory.
_HOME = str(own_files.home())


def load(
  files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
  called: Sequence[Callable[..., Any]] = (),
) -> None:
  """Parses gin files, then bindings, and checks that nothing is left unset.

  Args:
    files: gin files; later ones override earlier ones. Relative names are
      looked up in the working directory, in `search_paths` and in the folder
      that has lora_opt's own configs/.
    bindings: `NAME = VALUE` strings; a value that gin cannot parse is taken as
      a string, so that `MODEL_DIR=runs/a` needs no quotes.
    search_paths: further folders for `files` and for their includes.
    called: the functions that will be built. The values configured for them,
      and for the functions passed to them, must match the annotated types.

  Raises:
    ConfigError: a file is missing or malformed, a name is unknown, a required
      macro is unset, or a value has the wrong type; the message names it.
  """
  gin.clear_config()
  try:
    sources = Sources(['', *search_paths, _HOME])
    _read(files, sources)
    known = set(re.findall(r'\b[A-Z][A-Z0-9_]*\b', gin.config_str()))
    for binding in bindings:
      if known:
        _check_macro_name(binding, known)
      _bind(binding)
    _check_required()
    _check_circles()
    _check_types(called, lambda name: _place(name, sources, bindings))
    gin.finalize()
  except ConfigError as error:
    # Drop the places gin appends, which say where each file was included.
    raise ConfigError(str(error).split('\n  In ')[0]) from error
  except Exception as error:
    listed = ', '.join(map(str, files))
    raise ConfigError(f'{listed}: {brief(str(error))}') from error


def _read(files: Sequence[str], sources: Sources) -> None:
  # These replace gin's own file readers, of which the second takes the folders
  # in a file's name for packages and imports them.
  ways, folders = gin.config._FILE_READERS, gin.config._LOCATION_PREFIXES
  before = ways[:], folders[:]
  ways[:], folders[:] = [(sources.open, os.path.isfile)], sources.folders
  try:
    for file in files:
      sources.find(file)
      gin.parse_config_file(file)
  finally:
    ways[:], folders[:] = before


def _bind(binding: str) -> None:
  place = f'--gin.{brief(binding)}'
  try:
    binding.encode()
    statement = _quoted(binding)
    if (count := check(statement + '\n', place)) != 1:
      what = 'sets nothing' if count == 0 else 'is more than one setting'
      raise ConfigError(f'{place}: {what}; write NAME=VALUE')
    gin.parse_config([_PREAMBLE, statement])
  except ConfigError:
    raise
  except UnicodeEncodeError:
    raise ConfigError(
      f'{place}: has letters that are not text in this locale; set '
      'PYTHONUTF8=1 in the environment'
    ) from None
  except Exception as error:
    # Drop gin's position in the bindings string, which the user never saw.
    reason = error.msg if isinstance(error, SyntaxError) else str(error)
    reason = re.sub(r'\n  In bindings string.*', '', reason, flags=re.S)
    raise ConfigError(f'{place}: {brief(reason)}') from error


def _check_macro_name(binding: str, known: Collection[str]) -> None:
  """Rejects `--gin.TRIAN_STEPS=5`, which gin would take for a new macro."""
  match = re.match(r'\s*([A-Z][A-Z0-9_]*)\s*=', binding)
  if match and match[1] not in known:
    near = difflib.get_close_matches(match[1], known, n=1)
    hint = f' Did you mean {near[0]}?' if near else ''
    raise ConfigError(
      f'--gin.{brief(binding)}: no gin file sets or uses the macro '
      f'{match[1]}.{hint}'
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
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    # As strings all of these would count as true.
    if value in ('true', 'false', 'null'):
      raise ConfigError(f'--gin.{binding}: write True, False or None') from None
    # Gin can parse a list or dict of references, such as [@a(), @b()].
    if value[:1] not in '[({':
      return f'{name} = {value!r}'
  return f'{name} = {value}'


def _check_required() -> None:
  """Raises ConfigError, naming all macros that are used but not set."""
  lines = settings().items()
  unset = {name for name, value in lines if value == '%gin.REQUIRED'}
  used = {macro for _, value in lines for macro in macros_in(value)}
  used.discard('gin.REQUIRED')
  missing = sorted(unset | (used - settings().keys()))
  if missing:
    raise ConfigError(
      f'required and not set: {brief(", ".join(missing))}. Set each by a '
      f'--gin_file that defines it or by --gin.{brief(missing[0])}=VALUE.'
    )


def _check_circles() -> None:
  """Raises ConfigError for a macro that refers to itself, and so never ends."""
  needs = {
    name: macros_in(value)
    for name, value in settings().items()
    if '.' not in name
  }
  done: set[str] = set()
  for start in needs:
    way = [start]
    # Depth first: follow one branch to its end, then backtrack.
    branches = [iter(needs[start])]
    while branches:
      name = next(branches[-1], None)
      if name is None:
        branches.pop()
        done.add(way.pop())
      elif name in way:
        circle = ' = %'.join([*way[way.index(name) :], name])
        raise ConfigError(f'{circle}: the value needs itself')
      elif name in needs and name not in done:
        way.append(name)
        branches.append(iter(needs[name]))


def _check_types(
  called: Sequence[Callable[..., Any]], place: Callable[[str], str]
) -> None:
  """Raises ConfigError for a value whose type does not match its argument.

  Values for functions that are not used, because a later file has replaced
  them, are not checked.

  Args:
    called: the functions that will be called.
    place: returns where a macro or an argument was set last.
  """
  for scope, selector, name, value in _settings_of(called):
    takes = gin_types.hints(gin.config._REGISTRY[selector].wrapped)
    if name not in takes or gin_types.fits(_plain(value), takes[name]):
      continue
    full = f'{scope}/{selector}.{name}'.lstrip('/')
    wanted = gin_types.described(takes[name])
    macro = _last_macro(value)
    where, said = (
      (place(full), full)
      if macro is None
      else (place(macro), f'{macro}, the value of {full}')
    )
    raise ConfigError(
      f'{where}: {said}: expected {wanted}, found {_shown(_plain(value))}'
    )


def _settings_of(
  called: Sequence[Callable[..., Any]],
) -> Iterator[tuple[str, str, str, Any]]:
  """All settings that calls of these functions use, nested calls included.

  Yields:
    Scope, function, argument and value.
  """
  known = [gin.config._inverse_lookup(function) for function in called]
  waiting = [((), found.selector) for found in known if found is not None]
  seen = set()
  while waiting:
    call = scopes, selector = waiting.pop()
    if call in seen:
      continue
    seen.add(call)
    # As in gin, values set for an inner scope take precedence.
    effective = {}
    for depth in range(len(scopes) + 1):
      scope = '/'.join(scopes[:depth])
      for name, value in gin.config._CONFIG.get((scope, selector), {}).items():
        effective[name] = scope, value
    for name, (scope, value) in effective.items():
      yield scope, selector, name, value
      waiting += _calls_in(value, scopes)


def _calls_in(
  value: Any, scopes: tuple[str, ...]
) -> list[tuple[tuple[str, ...], str]]:
  """The functions that a value or its macros name, with their scopes."""
  if isinstance(value, list | tuple):
    return [call for one in value for call in _calls_in(one, scopes)]
  if isinstance(value, dict):
    return _calls_in([*value, *value.values()], scopes)
  if not isinstance(value, gin.config.ConfigurableReference):
    return []
  inside = tuple(value.scopes) or scopes
  macro = _macro(value)
  if macro is not None:
    return _calls_in(gin.config._CONFIG[macro, 'gin.macro']['value'], inside)
  return [(inside, value.config_key[1])]


def _plain(value: Any) -> Any:
  """A value with macros replaced by values, and functions by placeholders."""
  if isinstance(value, list | tuple):
    return type(value)(map(_plain, value))
  if isinstance(value, dict):
    return {_plain(k): _plain(v) for k, v in value.items()}
  if not isinstance(value, gin.config.ConfigurableReference):
    return value
  macro = _macro(value)
  if macro is not None:
    return _plain(gin.config._CONFIG[macro, 'gin.macro']['value'])
  if value.evaluate:
    return gin_types.Unknown()
  return gin_types.Function(value.scoped_selector)


def _macro(value: Any) -> str | None:
  """The name of the macro that a value refers to; None unless it is set."""
  if isinstance(value, gin.config.ConfigurableReference):
    scope, selector = value.config_key
    if selector == 'gin.macro' and (scope, selector) in gin.config._CONFIG:
      return scope
  return None


def _last_macro(value: Any) -> str | None:
  """The macro that has the value itself: macros may stand for macros."""
  last = None
  while (macro := _macro(value)) is not None:
    last, value = macro, gin.config._CONFIG[macro, 'gin.macro']['value']
  return last


def _shown(value: Any) -> str:
  if isinstance(value, gin_types.Function):
    return f'the function @{value.name}; @{value.name}() calls it'
  return shown(value)


def _place(name: str, sources: Sources, bindings: Sequence[str]) -> str:
  """Where a macro or an argument was set last."""
  for binding in reversed(bindings):
    said = binding.partition('=')[0].strip()
    if said and (name == said or name.endswith((f'.{said}', f'/{said}'))):
      return f'--gin.{brief(binding)}'
  return sources.place(name)


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
  """The whole configuration as gin text, whether it is used or not."""
  return gin.config_str()


def operative_text() -> str:
  """The part of the configuration used so far, defaults included."""
  return gin.operative_config_str()


def settings() -> Mapping[str, str]:
  """Every binding as name -> text of the value, to compare two runs.

  >>> load([], ['BATCH_SIZE=8'])
  >>> settings()
  {'BATCH_SIZE': '8'}
  """
  found: dict[str, str] = {}
  name = ''
  for line in gin.config_str().splitlines():
    if not line or line.startswith(('#', 'import ', 'from ')):
      continue
    if line.startswith(' '):  # continuation of a multi-line value
      found[name] = f'{found[name]} {line.strip()}'.strip()
    else:
      name, _, value = line.partition(' =')
      found[name] = value.strip(' \\')
  return found
