"""A run goes on only as what it was."""

import dataclasses
import json
import types

import jax.numpy as jnp
import pytest
import tokenizers

from lora_opt.run_folder import identity, run_directory
from lora_opt.run_folder.run_directory import RunRecord

BASE = {'up': jnp.arange(6.0).reshape(2, 3), 'down': jnp.ones(3, jnp.bfloat16)}


def made(model, task, base=BASE):
  return identity.of_evaluation(model, base, task)


@pytest.fixture
def folder(tmp_path, model, task):
  identity.check(tmp_path, {'SEED': '0'}, made(model, task))
  (tmp_path / 'checkpoints').mkdir()
  return tmp_path


def test_the_same_may_go_on(folder, model, task):
  identity.check(folder, {'SEED': '0'}, made(model, task))


def test_other_weights_are_named(folder, model, task):
  other = BASE | {'up': BASE['up'].at[0, 0].set(1.0)}
  with pytest.raises(
    ValueError, match="base weights: there '.{8}', here '.{8}' \\('up'\\)"
  ):
    identity.check(folder, {}, made(model, task, other))


def test_other_examples_are_named_with_both_counts(folder, model, task):
  other = dataclasses.replace(task, eval=task.eval[:3])
  with pytest.raises(ValueError, match=r"there '6 examples.*here '3 examples"):
    identity.check(folder, {}, made(model, other))


def test_another_tokenizer_is_named(folder, model, task):
  class Other:
    digest, chat_template = 'ff' * 32, None

  other = types.SimpleNamespace(config=model.config, tokenizer=Other)
  with pytest.raises(ValueError, match="tokenizer: there .*here 'ffff"):
    identity.check(folder, {}, made(other, task))


@pytest.mark.parametrize(
  ('settings', 'named'),
  [({'end_ids': (5,)}, 'end_ids'), ({'bos_id': None}, 'bos_id')],
)
def test_other_special_tokens_are_named(folder, model, task, settings, named):
  tokenizer = dataclasses.replace(model.tokenizer, **settings)
  other = dataclasses.replace(model, tokenizer=tokenizer)
  with pytest.raises(ValueError, match=f"tokenizer: there .*'{named}'"):
    identity.check(folder, {}, made(other, task))


def test_other_rules_of_the_tokenizer_are_named(folder, model, task):
  core = tokenizers.Tokenizer.from_str(model.tokenizer.core.to_str())
  core.normalizer = tokenizers.normalizers.Lowercase()
  tokenizer = dataclasses.replace(model.tokenizer, core=core)
  other = dataclasses.replace(model, tokenizer=tokenizer)
  with pytest.raises(ValueError, match="tokenizer: there .*'rules'"):
    identity.check(folder, {}, made(other, task))


def test_other_settings_of_the_model_are_named(folder, model, task):
  """The same weights, and another config.json."""
  config = dataclasses.replace(model.config, rope_theta=500.0)
  other = dataclasses.replace(model, config=config)
  with pytest.raises(ValueError, match="model settings: .*'rope_theta'"):
    identity.check(folder, {}, made(other, task))


def test_an_evaluation_of_other_examples_is_not_taken_for_this_one(
  tmp_path, model, task
):
  here = identity.made_of(made(model, task))
  there = here | {identity.EVALUATION: '8 examples, ab'}
  with pytest.raises(ValueError, match='(?s)before.json is .*8 examples, ab'):
    identity.check_evaluation(
      tmp_path / 'before.json', {'made_of': there}, here
    )


def test_what_is_damaged_is_named(folder, model, task):
  path = folder / run_directory.IDENTITY
  path.write_bytes(path.read_bytes()[:40])
  with pytest.raises(ValueError, match='identity.json.*written anew'):
    identity.check(folder, {}, made(model, task))
  path.unlink()
  identity.check(folder, {}, made(model, task))


@pytest.mark.parametrize('damage', ['cut', 'gone'])
def test_settings_have_a_copy(folder, capsys, damage):
  path = folder / run_directory.SETTINGS
  if damage == 'cut':
    path.write_text('{"SEED": ')
  with pytest.raises(ValueError, match='SEED: there 0, here 1'):
    run_directory.claim(folder, RunRecord(settings={'SEED': '1'}))
  assert 'settings.json is' in capsys.readouterr().out
  run_directory.claim(folder, RunRecord(settings={'SEED': '0'}))
  assert json.loads(path.read_text()) == {'SEED': '0'}


def test_settings_without_a_copy_are_asked_for(folder):
  (folder / run_directory.IDENTITY).unlink()
  (folder / run_directory.SETTINGS).write_text('{"SEED": ')
  with pytest.raises(ValueError, match='settings.json is damaged.*config.gin'):
    run_directory.claim(folder, RunRecord(settings={'SEED': '0'}))
