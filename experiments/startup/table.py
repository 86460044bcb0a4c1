"""The measurements as a table."""

from experiments import results

NAMES = {
  'cold': 'lora_opt, nothing compiled yet',
  'warm': 'lora_opt, compiled by an earlier run',
  'peer': 'transformers + peft',
}


def table(rows: list[dict]) -> str:
  """Returns the table in Markdown."""
  return results.markdown(
    ['', 'until the first step began, s', 'until its end, s', 'a step, s'],
    [
      (
        NAMES[row['who']],
        f'{row["first"] - row["step"]:.1f}',
        f'{row["first"]:.1f}',
        f'{row["step"]:.1f}',
      )
      for row in rows
    ],
  )
