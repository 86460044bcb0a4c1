"""The measurements as a table."""

from experiments import results


def table(rows: list[dict]) -> str:
  """Speed, memory and the first step of both sides, in Markdown."""
  header = [
    'rows', 'type', 'tokens/s, ours', 'theirs', 'speed, ours / theirs',
    'memory, ours / theirs', 'first step, ours (nothing compiled yet)',
    'theirs',
  ]  # fmt: skip
  return results.markdown(header, map(_line, rows))


def _line(row: dict) -> tuple[str, ...]:
  mine, other = row['tokens_per_second'].values()
  ours, theirs = row['peak_bytes'].values()
  first = row['seconds_to_first_step']
  low, high = row['quartiles']
  return (
    row['case'],
    row['dtype'],
    f'{mine:.0f}',
    f'{other:.0f}',
    f'**{row["speed_ratio"]:.2f}** [{low:.2f}, {high:.2f}]',
    f'{ours / 2**30:.2f} / {theirs / 2**30:.2f} GiB = {ours / theirs:.2f}',
    f'{first["lora_opt"]:.1f} '
    f'({first["lora_opt, nothing compiled yet"]:.1f}) s',
    f'{first["transformers + peft"]:.1f} s',
  )
