"""Where a training step spends its time: a trace, and a page about it."""

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
SKIPPED = 2  # steps before the first that is traced: compiling, warming up
_SHOWN = 12  # rows of a table
# Ops that only hold others, whose time is counted for themselves.
_CONTAINERS = ('while', 'call', 'conditional')
# What JAX and Flax write around the names of modules.
_AROUND = re.compile(r'jit\([^()]*\)|(?:transpose|jvp|vmap)\(|\)')
_NOT_MODULES = re.compile(
  r'while|body|cond|branch_.*|checkpoint|remat\w*|closed_call|custom_.*'
  r'|eval_jaxpr|[A-Z].*|.*[^\w].*|'
)


class Op(NamedTuple):
  """What was executed, over all traced steps and threads."""

  name: str  # in the compiled program
  scope: str  # of the model's code
  seconds: float


def traced(
  train_step: Callable[..., Any], folder: pathlib.Path, steps: int
) -> Callable[..., Any]:
  """The same step; some of its first calls are traced.

  Args:
    train_step: jitted.
    folder: takes the trace (`plugins/profile/...`, for xprof or Perfetto) and
      `summary.md`, as soon as the last traced step is done.
    steps: calls that are traced, after `SKIPPED` others.

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
  """Raises ValueError unless a run is long enough for so many traced steps."""
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
  """Name of every op in a compiled program: where its code comes from.

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
  """The modules of an op's path, behind 'backward' if it is of that pass.

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
  """What a trace says of the ops of a program.

  Args:
    folder: of the trace.
    scopes: of the program's ops; others are left out.
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
