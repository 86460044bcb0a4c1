"""Profiles training steps: writes a trace, and a page that summarises it."""

import collections
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from lora_opt import writing
from lora_opt.buckets.outbox import Outbox
from lora_opt.devices.together import is_first

SUMMARY_FILE = 'summary.md'
SKIPPED = 2  # steps before the first traced one: compilation, warm-up
_SHOWN = 12  # rows of a table
# Ops that only contain others; the time of those is counted separately.
_CONTAINERS = ('while', 'call', 'conditional')
# What JAX and Flax add around the names of modules.
_AROUND = re.compile(r'jit\([^()]*\)|(?:transpose|jvp|vmap)\(|\)')
_NOT_MODULES = re.compile(
  r'while|body|cond|branch_.*|checkpoint|remat\w*|closed_call|custom_.*'
  r'|eval_jaxpr|[A-Z].*|.*[^\w].*|'
)


class Op(NamedTuple):
  """An op of the compiled program, with its total time in the trace."""

  name: str  # in the compiled program
  scope: str  # the part of the model's code it comes from
  seconds: float  # over all traced steps and threads


def traced(
  train_step: Callable[..., Any], folder: pathlib.Path, steps: int
) -> Callable[..., Any]:
  """Wraps a training step so that some of its first calls are traced.

  Args:
    train_step: the jitted step.
    folder: gets the trace (`plugins/profile/...`, for xprof or Perfetto) and
      `summary.md` as soon as the last traced step is done.
    steps: number of calls to trace, after the first `SKIPPED`.

  Returns:
    A function of the same arguments.
  """
  outbox = Outbox(folder)
  calls = 0
  scopes: dict[str, str] = {}

  def step(*args):
    nonlocal calls, scopes
    calls += 1
    if calls == SKIPPED + 1:
      program = train_step.lower(*jax.tree.map(_described, args)).compile()
      scopes = scopes_of(program.as_text())
      jax.block_until_ready(args)
      jax.profiler.start_trace(outbox.folder)
    result = train_step(*args)
    if calls == SKIPPED + steps:
      jax.block_until_ready(result)
      jax.profiler.stop_trace()
      if is_first():
        ops = read_ops(outbox.folder, scopes)
        text = summary(ops, steps)
        writing.write_text(outbox.folder / SUMMARY_FILE, text)
      outbox.close()
    return result

  return step


def check(steps: int, train_steps: int) -> None:
  """Raises ValueError unless a run is long enough to trace so many steps."""
  if train_steps <= SKIPPED:
    raise ValueError(
      f'profile_steps={steps}: none of the {train_steps} training steps can be '
      f'traced, since the first {SKIPPED} are not; train longer'
    )
  if not 0 < steps <= train_steps - SKIPPED:
    raise ValueError(
      f'profile_steps={steps} must be from 1 to {train_steps - SKIPPED}: the '
      f'first {SKIPPED} of the {train_steps} training steps are not traced'
    )


def _described(x: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def scopes_of(program: str) -> dict[str, str]:
  """Maps the ops of a compiled program to the modules they come from.

  >>> scopes_of('%dot.1 = f32[] dot(%a), metadata={op_name="jit(f)/mlp/dot"}')
  {'dot.1': 'mlp'}
  """
  found = re.findall(
    r'^\s*(?:ROOT )?%?([\w.-]+) = .*?\s([a-z][\w-]*)\(.*op_name="([^"]*)"',
    program,
    re.MULTILINE,
  )
  return {
    name: _scope(path) for name, op, path in found if op not in _CONTAINERS
  }


def _scope(path: str) -> str:
  """The modules in an op's path, after 'backward' if it is of that pass.

  >>> _scope('jit(step)/while/body/transpose(jvp(Decoder))/layers/mlp/up/dot')
  'backward layers/mlp/up'
  >>> _scope('jit(step)/jvp(Decoder)/while/body/eval_jaxpr/layers/mlp/up/dot')
  'layers/mlp/up'
  """
  *parts, _ = _AROUND.sub('', path).split('/')
  parts = [part for part in parts if not _NOT_MODULES.fullmatch(part)]
  scope = '/'.join(parts[:3]) or 'other'
  return f'backward {scope}' if 'transpose(' in path else scope


def read_ops(folder: pathlib.Path, scopes: dict[str, str]) -> list[Op]:
  """Reads the total times of a program's ops from a trace.

  Args:
    folder: the folder of the trace.
    scopes: op name -> scope, from `scopes_of`; other ops are left out.
  """
  (trace,) = sorted(folder.glob('plugins/profile/*/*.xplane.pb'))[-1:]
  data = jax.profiler.ProfileData.from_file(str(trace))
  seconds = collections.Counter()
  for plane in data.planes:
    for line in plane.lines:
      for event in line.events:
        name = event.name.split(' ')[0].lstrip('%')
        if name in scopes:
          seconds[name] += event.duration_ns * 1e-9
  return [Op(name, scopes[name], spent) for name, spent in seconds.items()]


def summary(ops: Iterable[Op], steps: int) -> str:
  """A page in Markdown: time by part of the model, and the slowest ops."""
  ops = list(ops)
  total = sum(op.seconds for op in ops) or 1.0
  parts = collections.Counter()
  for op in ops:
    parts[op.scope] += op.seconds

  def table(title, rows):
    lines = [f'| {title} | ms a step | share |', '| --- | --- | --- |']
    for name, spent in rows:
      share = 100 * spent / total
      lines.append(f'| {name} | {1e3 * spent / steps:.2f} | {share:.1f} % |')
    return '\n'.join(lines)

  slowest = sorted(ops, key=lambda op: -op.seconds)[:_SHOWN]
  return (
    f'# Where {steps} training steps spent their time\n\n'
    'Time of all ops, added up over devices and threads: '
    f'{1e3 * total / steps:.1f} ms a step. The trace beside this page opens in '
    'xprof or, its .json.gz, in Perfetto.\n\n'
    + table('part', parts.most_common(_SHOWN))
    + '\n\n'
    + table('op', [(f'{op.name} ({op.scope})', op.seconds) for op in slowest])
    + '\n'
  )
