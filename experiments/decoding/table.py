"""The measurements as a table."""

from experiments import results

CASES = {'full': 'all {new} tokens', 'ending': 'to the end, at most {new}'}


def table(rows: list[dict]) -> str:
  """Returns the table in Markdown."""
  header = [
    'written', 'type', 'ours, s', "transformers', s", 'times as fast',
    'same tokens',
  ]  # fmt: skip
  lines = [
    (
      CASES[row['case']].format(new=int(row['new'])),
      row['dtype'],
      f'{row["ours"]:.1f} (first: {row["first"]:.1f})',
      f'{row["theirs"]:.1f}',
      f'**{row["ratio"]:.2f}** [{row["lowest"]:.2f}, {row["highest"]:.2f}]',
      f'{100 * row["same"]:.1f} %',
    )
    for row in rows
  ]
  return results.markdown(header, lines)
