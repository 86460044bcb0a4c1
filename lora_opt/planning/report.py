"""Formats a plan as a page of text and as JSON."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from lora_opt.planning.costs import Collective
from lora_opt.planning.cycles import Cycles
from lora_opt.planning.outcome import Plan
from lora_opt.planning.search import Tried
from lora_opt.planning.timing import Utilisation

GB = 10**9
_COLUMNS = ('part', 'kind', 'times', 'elements', 'bytes', 'sent')


def as_text(plan: Plan, utilisation: Utilisation) -> str:
  """The plan in Markdown that is also readable on a terminal."""
  parts = [
    f'# {plan.model} on {plan.topology.name}',
    _setting(plan),
    _compiler(plan),
    '## Memory of a device',
    _memory(plan),
    '## Work of a step',
    _work(plan, utilisation),
    '## Collectives of a step',
    _collectives(plan.program.costs.collectives),
  ]
  if plan.tried:
    parts += ['## Smallest mesh', _search(plan)]
  if plan.command:
    parts += ['## Command', f'```\n{plan.command}\n```']
  return '\n\n'.join(parts) + '\n'


def as_json(plan: Plan) -> dict[str, Any]:
  """All numbers of the plan, in bytes, seconds and operations."""
  costs, time = plan.program.costs, plan.time
  return {
    'command': plan.command,
    'compiler': plan.target.compiler,
    'estimate': not plan.target.real,
    'compile_seconds': round(plan.program.seconds, 2),
    'model': plan.model,
    'parameters': dict(zip(('base', 'trained'), plan.parameters, strict=True)),
    'chip': dataclasses.asdict(plan.topology.chip),
    'devices': plan.topology.devices,
    'mesh': dict(plan.mesh),
    'batch': {name: list(sizes) for name, sizes in plan.batch.items()},
    plan.unit: plan.tokens,
    'bytes_per_device': plan.program.memory,
    'total_bytes_per_device': plan.program.total,
    'peak_bytes_per_device': plan.program.peak,
    'usable_bytes_per_device': plan.usable,
    'fits': plan.fits,
    'flops_per_device': costs.flops,
    'product_bytes_per_device': costs.product_bytes,
    'cycles': plan.program.cycles and plan.program.cycles._asdict(),
    'collectives': [
      dict(zip(_COLUMNS, row, strict=True))
      for row in _summed(costs.collectives)
    ],
    'seconds': time
    and dataclasses.asdict(time)
    | {'hidden': time.hidden, 'exposed': time.exposed},
    'smallest': plan.smallest and plan.smallest.devices,
    'tried': [
      {
        'devices': each.devices,
        'fsdp': each.fsdp,
        'tensor': each.tensor,
        'held_bytes_per_device': each.held,
        'total_bytes_per_device': each.program and each.program.total,
      }
      for each in plan.tried
    ],
  }


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A Markdown table; all columns but the first are numbers.

  >>> print(table(['what', 'GB'], [['base weights', '0.27']]))
  | what         |   GB |
  | ------------ | ---: |
  | base weights | 0.27 |
  """
  rows = [list(head), *map(list, rows)]
  widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]

  def line(cells):
    first, *others = (
      cell.ljust(width) if i == 0 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return f'| {" | ".join([first, *others])} |'

  rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
  return '\n'.join([line(rows[0]), line(rule), *map(line, rows[1:])])


def _setting(plan: Plan) -> str:
  base, trained = plan.parameters
  mesh = ', '.join(f'{axis}={size}' for axis, size in plan.mesh.items())
  rows = next(iter(plan.batch.values()))[0]
  return (
    f'{base:,} frozen parameters, {trained:,} trained; {plan.topology.devices} '
    f'devices: {mesh};\nbatches of {rows} rows, {plan.tokens:,} {plan.unit} '
    'with padding.'
  )


def _compiler(plan: Plan) -> str:
  target, chip = plan.target, plan.topology.chip
  text = f'Compiled by {target.compiler}, in {plan.program.seconds:,.0f} s.'
  if target.real or chip.name == 'cpu':
    return text
  text += f' AN ESTIMATE: this is not the compiler of {chip.name}.'
  if target.missing:
    text += (
      f' That one needs no {chip.platform.upper()}, only its package:\n'
      f'pip install "lora_opt[{target.missing}]" -c constraints.txt'
    )
  return text


def _memory(plan: Plan) -> str:
  memory = plan.program.memory
  rows = [[name, _gb(size)] for name, size in memory.items()]
  rows.append(['all', _gb(plan.program.total)])
  if plan.program.peak is not None:
    rows.append(['in use at one time', _gb(plan.program.peak)])
  chip = plan.topology.chip
  share = plan.program.total / chip.memory
  verdict = 'It fits' if plan.fits else 'It does NOT fit'
  return (
    f'{table(["", "GB"], rows)}\n\n{verdict}: {share:.0%} of the '
    f'{_gb(chip.memory)} GB of {chip.name}, of which '
    f'{_gb(plan.usable)} GB may be used.'
  )


def _work(plan: Plan, utilisation: Utilisation) -> str:
  costs, time, chip = plan.program.costs, plan.time, plan.topology.chip
  devices = plan.topology.devices
  text = (
    f'{costs.flops / 1e12:,.2f} TFLOP on each device, '
    f'{costs.flops * devices / 1e12:,.1f} in all (matrix products).'
  )
  if time is None:
    return f'{text} No time: {chip.name} has no published speeds.'
  rows = [
    [name, peak, f'{share:.0%}', f'{seconds * 1e3:,.1f}']
    for name, peak, share, seconds in (
      (
        'compute',
        f'{chip.flops / 1e12:,.0f} TFLOP/s',
        utilisation.compute,
        time.compute,
      ),
      (
        'memory',
        f'{chip.bandwidth / GB:,.0f} GB/s',
        utilisation.memory,
        time.memory,
      ),
      (
        'network',
        f'{chip.network / GB:,.0f} GB/s',
        utilisation.network,
        time.network,
      ),
    )
  ]
  head = ['', 'published peak', 'assumed share', 'ms']
  return (
    f'{text}\n\n{table(head, rows)}\n\n'
    f'A step: {time.hidden * 1e3:,.0f} ms if collectives run behind the '
    f'computation, {time.exposed * 1e3:,.0f} ms if none does;\n'
    f'{plan.tokens / time.hidden:,.0f} to {plan.tokens / time.exposed:,.0f} '
    f'{plan.unit}/s. Longest: {time.bound}. An estimate, not a promise.'
    f'{_cycles(plan.program.cycles)}'
  )


def _cycles(cycles: Cycles | None) -> str:
  """The TPU compiler's own estimate, shown beside the roofline."""
  if cycles is None:
    return ''
  text = f'\n\nThe compiler expects {cycles.least:,} cycles'
  if cycles.most > cycles.least:
    text += f' (up to {cycles.most:,} where branches are taken that cost more)'
  text += ', waiting for other devices not counted'
  if cycles.uncounted:
    calls = ', '.join(
      f'{name} {times:,} times' for name, times in cycles.uncounted.items()
    )
    text += f', nor these kernels: {calls}'
  return text + '.'


def _collectives(collectives: Iterable[Collective]) -> str:
  rows = _summed(collectives)
  if not rows:
    return 'None.'
  return table(
    ['', 'kind', 'times', 'largest array', 'MB', 'MB sent by a device'],
    [
      [
        *(part, kind, f'{times:,}', f'{elements:,}'),
        *(f'{n / 1e6:,.3f}' for n in sizes),
      ]
      for part, kind, times, elements, *sizes in rows
    ],
  )


def _summed(
  collectives: Iterable[Collective],
) -> list[tuple[str, str, int, int, float, float]]:
  """Sums over a step as rows of `_COLUMNS`; elements: of the largest array."""
  sums: dict[tuple[str, str], list[float]] = {}
  for each in collectives:
    part = 'optimizer' if each.optimizer else 'model'
    row = sums.setdefault((part, each.kind), [0, 0, 0, 0.0])
    row[0] += each.times
    row[1] = max(row[1], each.elements)
    row[2] += each.times * each.bytes
    row[3] += each.sent
  return [(*key, *row) for key, row in sorted(sums.items())]


def _search(plan: Plan) -> str:
  rows = []
  for each in plan.tried:
    total = '' if each.program is None else _gb(each.program.total)
    fits = each is plan.smallest
    rows.append(
      [
        str(each.devices),
        str(each.fsdp),
        str(each.tensor),
        _gb(each.held),
        total,
        'yes' if fits else 'no',
      ]
    )
  head = ['devices', 'fsdp', 'tensor', 'GB held', 'GB in a step', 'fits']
  return f'{table(head, rows)}\n\n{_advice(plan.smallest, plan)}'


def _advice(smallest: Tried | None, plan: Plan) -> str:
  if smallest is None:
    return (
      'None of these fits: more devices, a smaller BATCH_SIZE, more '
      "MICROBATCHES, remat='full' or a quantized base make room."
    )
  return (
    f'{smallest.devices} of {plan.topology.chip.name} suffice: '
    f'--gin.FSDP={smallest.fsdp} --gin.TENSOR={smallest.tensor}.'
  )


def _gb(size: float) -> str:
  return f'{size / GB:,.2f}' if size >= 0.005 * GB else '< 0.01'
