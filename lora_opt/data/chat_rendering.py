"""Renders chat templates; runs in a process with limits, see `chat_template`.

Templates come with weights from elsewhere. They run in jinja's sandbox, with
the functions that transformers offers them. This module imports nothing from
this project.
"""

import datetime
import functools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox, utils

# Maximum number of characters of one rendered conversation.
MOST_CHARACTERS = 2**24
# Put around the text that a template marks as the assistant's words. These
# markers are private to this project, and only rendered if a caller asks for
# them.
OPENS, CLOSES = '\ue0a0\ue0a1', '\ue0a1\ue0a0'


def render(
  template: str,
  conversations: Sequence[tuple[Any, ...]],
  variables: dict[str, str],
  marked: bool,
) -> list[str]:
  """Renders conversations.

  Args:
    template: The text of the template.
    conversations: For each its messages, whether to open the assistant's turn
      at the end, and optionally the definitions of its tools.
    variables: Other variables for the template, such as eos_token.
    marked: Put `OPENS` and `CLOSES` around {% generation %} blocks.

  Raises:
    ValueError: The text becomes too long, or the template rejects the
      messages.
    jinja2.TemplateError: The template is invalid, or fails.
  """
  compiled = _compiled(template, marked)
  known = {'tools': None, 'documents': None, '_now': _now(), **variables}
  return [
    _bounded(
      compiled.generate(
        messages=messages,
        add_generation_prompt=open_turn,
        **known | ({'tools': tools[0]} if tools else {}),
      )
    )
    for messages, open_turn, *tools in conversations
  ]


def _bounded(parts: Iterator[str]) -> str:
  found, size = [], 0
  for part in parts:
    size += len(part)
    if size > MOST_CHARACTERS:
      raise ValueError(f'writes more than {MOST_CHARACTERS:,} characters')
    found.append(part)
  return ''.join(found)


@functools.lru_cache(maxsize=8)
def _compiled(template: str, marked: bool) -> jinja2.Template:
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Marked if marked else _Unmarked, ext.loopcontrols],
  )
  environment.filters['tojson'] = _to_json
  environment.globals.update(
    raise_exception=_refuse,
    strftime_now=_strftime_now,
    namespace=_Namespace,
    # Not the class itself: a template must not reach its attributes.
    dict=lambda *pairs, **named: dict(*pairs, **named),
  )
  return environment.from_string(template)


class _Unmarked(ext.Extension):
  """The tag {% generation %}, which encloses the assistant's words."""

  tags = frozenset({'generation'})
  around = ('', '')

  def parse(self, parser) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
    call = self.call_method('_around')
    return nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _around(self, caller) -> str:
    before, after = self.around
    return before + caller() + after


class _Marked(_Unmarked):
  around = (OPENS, CLOSES)


class _Namespace(utils.Namespace):
  """Jinja's namespace, without names that give access to Python internals."""

  def __init__(*arguments, **named):  # a template may use the name `self`
    self, *pairs = arguments
    found = dict(*pairs, **named)
    for name in found:
      _check_name(name)
    utils.Namespace.__init__(self, found)

  def __setitem__(self, name: str, value: Any) -> None:
    _check_name(name)
    super().__setitem__(name, value)


def _check_name(name: Any) -> None:
  if isinstance(name, str) and name.startswith('_'):
    raise sandbox.SecurityError(f'a namespace may not hold {name!r}')


def _refuse(message: Any) -> None:
  raise ValueError(f'refuses the messages: {message}')


def _to_json(
  value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
) -> str:
  """Uses plain `json`: jinja's own filter is for HTML and changes < and é."""
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


@jinja2.pass_context
def _strftime_now(context, layout: str) -> str:
  return context['_now'].strftime(layout)


def _now() -> datetime.datetime:
  """The current time, or the fixed time in SOURCE_DATE_EPOCH if it is set."""
  fixed = os.environ.get('SOURCE_DATE_EPOCH')
  if fixed is None:
    return datetime.datetime.now()
  return datetime.datetime.fromtimestamp(float(fixed), datetime.UTC)
