"""A traced run says where its steps spent their time."""

import re

import pytest

import lora_opt
from lora_opt.training import profile
from lora_opt.training.loop import train


@pytest.mark.long
def test_the_page_names_the_parts_of_the_model_and_the_optimizer(
  tmp_path, model, task
):
  train(
    tmp_path,
    model,
    task,
    lora_opt.lora_rite(1e-2),
    train_steps=5,
    batch_size=2,
    task_feature_lengths={'targets': 32},
    profile_steps=2,
  )
  page = (tmp_path / 'profile' / profile.SUMMARY_FILE).read_text()
  rows = re.findall(r'^\| (.*) \| ([\d.]+) \| ([\d.]+) % \|$', page, re.M)
  parts = {name: float(ms) for name, ms, _ in rows}
  assert parts['optimizer'] > 0
  assert any(part.startswith('layers/') for part in parts)
  assert any(part.startswith('backward layers/') for part in parts)
  assert list(tmp_path.glob('profile/plugins/profile/*/*.xplane.pb'))


@pytest.mark.parametrize('steps', [0, 4])
def test_more_steps_than_there_are_cannot_be_traced(steps):
  with pytest.raises(ValueError, match='must be from 1 to 3'):
    profile.check(steps, 5)


def test_a_run_that_is_too_short_to_be_traced_is_told_so():
  with pytest.raises(ValueError, match='none of the 0 training steps'):
    profile.check(3, 0)


def test_shares_add_up_and_the_slowest_comes_first():
  ops = [
    profile.Op(*op) for op in (('a', 'x', 1), ('b', 'y', 2), ('c', 'x', 3))
  ]
  page = profile.summary(ops, steps=2)
  assert '| x | 2000.00 | 66.7 % |' in page
  assert page.index('c (x)') < page.index('b (y)') < page.index('a (x)')
