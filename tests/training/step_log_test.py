"""What the log of a run says of its steps."""

import io

import pytest

from lora_opt.training import metrics
from lora_opt.training.step_log import LOST_UPDATES, StepLog

STEP = {'loss': 1.0, 'grad_norm': 1.0, 'target_tokens': 8.0}


@pytest.mark.parametrize(
  ('lost', 'said'), [([0.0, 0.01, 0.1], 0), ([0.0, 0.4, 0.5], 1)]
)
def test_updates_that_rounding_takes_are_said_once_with_the_number(lost, said):
  stream = io.StringIO()
  with metrics.ProgressBar(len(lost), 0, stream=stream) as progress:
    log = StepLog(
      metrics.NoWriter(), progress, 1e-4, tokens_per_batch=8, period=1
    )
    for step, part in enumerate(lost, 1):
      log.push(step, STEP | {LOST_UPDATES: part})
    log.flush()
  text = stream.getvalue()
  assert text.count('warning: ') == said
  if said:
    assert '40% of the update of step 2 were lost' in text
    assert 'float32_masters' in text
