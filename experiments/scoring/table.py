"""The measurements as a table."""

from experiments import results
from experiments.zero_shot import questions


def table(rows: list[dict]) -> str:
  """Returns the table in Markdown."""
  return results.markdown(
    [
      'set', 'type', 'questions', 'choices', 'ours, s', "lm-eval's, s",
      'times as fast', 'products, theirs / needed', 'largest difference, nats',
    ],
    [
      (
        questions.TITLES[row['set']],
        row['dtype'],
        row['questions'],
        row['choices'],
        f'{row["ours"]:.1f} (first: {row["first"]:.1f})',
        f'{row["theirs"]:.1f}',
        f'**{row["ratio"]:.2f}** [{row["lowest"]:.2f}, {row["highest"]:.2f}]',
        f'{row["saved"]:.2f}',
        f'{row["apart"]:.1g}',
      )
      for row in rows
    ],
  )  # fmt: skip
