"""The study of a small language model, on texts of a few lines."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_opt
from experiments import results
from experiments.small_lm import (
  corpus,
  finetune,
  measures,
  network,
  plan,
  pretrain,
  report,
  run,
  text,
)
from experiments.small_lm.methods import METHODS
from lora_opt.models import causal_lm

WIDTH = 32
SMALL = plan.Setting(
  'adamw', width=WIDTH, rank=2, alpha=4.0, batch=4, steps=finetune.CHUNK
)


@pytest.fixture(autouse=True)
def compile_fast():
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def rows_of(name, fields, count):
  words = ['red', 'green', 'one', 'two', 'cat', 'dog', 'walks', 'sleeps']
  random = np.random.default_rng(len(name))
  for _ in range(count):
    said = {f: ' '.join(random.choice(words, 9)) for f in fields}
    if 'choices' in said:
      said['choices'] = said['choices'].split()
    yield json.dumps(said)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A folder of sets of a few rows; one has a line separator in a string."""
  folder = tmp_path_factory.mktemp('data')
  sets = text.PRETRAINING | {'gsm8k': ('question', 'answer')}
  for name, fields in sets.items():
    (folder / name).mkdir()
    lines = [*rows_of(name, fields, 40)]
    lines.append(json.dumps(dict.fromkeys(fields, 'a\u2028b'), ensure_ascii=0))
    for split in ('train', 'test'):
      file = folder / name / f'{split}.jsonl'
      file.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  (folder / 'super_ni').mkdir()
  for task in text.SUPER_NI:
    for split in ('train', 'test'):
      file = folder / 'super_ni' / f'{task}.{split}.jsonl'
      file.write_text('\n'.join(rows_of(task, ('input', 'output'), 40)))
  return folder


@pytest.fixture(scope='module')
def work(data, tmp_path_factory):
  """Vocabulary, windows, and weights that were not trained."""
  folder = tmp_path_factory.mktemp('work')
  # The sources of the standard library take longer than all the rest.
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(text.DOMAINS, 'python', text.gsm8k)
    corpus.build(data, folder)
  key = jax.random.key(0)
  base = causal_lm.init_base(network.config(WIDTH), key, 'float32')
  network.write_base(network.weights_file(folder, WIDTH), base)
  return folder


def test_windows_follow_from_the_texts(data, work, tmp_path, monkeypatch):
  monkeypatch.setitem(text.DOMAINS, 'python', text.gsm8k)
  again = corpus.build(data, tmp_path)
  first = corpus.load(work)
  for name in ('pretraining', 'gsm8k', 'super_ni', 'python'):
    assert corpus.digest(again[name]) == corpus.digest(first[name])
    assert first[name].train.shape[1] == corpus.LENGTH + 1
  for name in ('tokenizer.json', 'corpus.json'):
    assert (tmp_path / name).read_bytes() == (work / name).read_bytes()
  train = first['gsm8k'].train
  # A window ends with the first id of the next.
  np.testing.assert_array_equal(train[:-1, -1], train[1:, 0])


def test_what_is_held_out_is_not_trained_on(data):
  for split in (text.pretraining(data), text.super_ni(data)):
    train, held_out = split
    assert train
    assert held_out
    assert not set(train) & set(held_out)


def test_a_folder_without_sets_is_said(tmp_path):
  with pytest.raises(FileNotFoundError, match='arc_challenge: no such set'):
    text.pretraining(tmp_path)


def test_sources_of_the_standard_library_are_there():
  train, held_out = text.python(None)
  assert len(train) > 5 * len(held_out) > 0


def test_a_stopped_pretraining_comes_to_the_same_bits(work, monkeypatch):
  monkeypatch.setattr(pretrain, 'CHUNK', 2)
  monkeypatch.setattr(pretrain, 'SAVED', 2)
  windows, state = corpus.load(work)['pretraining'].train, work / 'state.npz'
  whole = pretrain.pretrain(windows, WIDTH, 6, work / 'whole.npz')
  write = pretrain.write_state

  def write_and_stop(*arguments):
    write(*arguments)
    raise KeyboardInterrupt

  monkeypatch.setattr(pretrain, 'write_state', write_and_stop)
  with pytest.raises(KeyboardInterrupt):
    pretrain.pretrain(windows, WIDTH, 6, state)
  monkeypatch.setattr(pretrain, 'write_state', write)
  resumed = pretrain.pretrain(windows, WIDTH, 6, state)
  assert network.weights_digest(resumed) == network.weights_digest(whole)


@pytest.mark.parametrize('method', ['adamw', 'full adamw'])
def test_a_run_learns_and_repeats(work, method):
  setting = SMALL._replace(method=method, schedule='constant')
  base, windows = network.load_base(work, WIDTH), corpus.load(work)
  tuned = [
    finetune.finetune(
      setting, rate, 0, base, windows['gsm8k'], windows['pretraining'].held_out
    )
    for rate in (1e-9, 1e-2, 1e-2)
  ]
  assert tuned[1] == tuned[2]
  assert tuned[1]['loss'] < tuned[0]['loss'] - 0.1
  assert len(tuned[1]['curve']) == len(finetune.curve_steps(setting))


def test_an_average_is_what_is_evaluated(work):
  base, windows = network.load_base(work, WIDTH), corpus.load(work)
  setting = SMALL._replace(schedule='constant')

  def tuned(method):
    return finetune.finetune(
      setting._replace(method=method),
      1e-2,
      0,
      base,
      windows['gsm8k'],
      windows['pretraining'].held_out,
    )

  start, advance, evaluate = finetune.programs('averaged(adamw)', WIDTH, 2, 4.0)
  table = jnp.asarray(finetune.rate_table('constant', finetune.CHUNK, 1e-2))
  rows = np.random.default_rng(0).integers(
    len(windows['gsm8k'].train), size=(finetune.CHUNK, setting.batch)
  )
  batches = jnp.asarray(windows['gsm8k'].train[rows])
  (params, state), _ = advance(start(base, 0, table), base, table, batches)
  held_out = windows['gsm8k'].held_out
  at_end = evaluate(params, base, held_out)
  averaged = evaluate(lora_opt.average_of(state, params), base, held_out)
  assert tuned('averaged(adamw)')['loss'] == pytest.approx(float(averaged))
  assert tuned('adamw')['loss'] == pytest.approx(float(at_end))
  assert abs(float(averaged) - float(at_end)) > 1e-4


def test_divergence_is_infinite(work):
  base, windows = network.load_base(work, WIDTH), corpus.load(work)
  setting = SMALL._replace(method='full adamw')
  found = finetune.finetune(
    setting, 1e30, 0, base, windows['gsm8k'], windows['pretraining'].held_out
  )
  assert found['loss'] == np.inf


def test_steps_that_do_not_fit_are_said(work):
  setting = SMALL._replace(steps=finetune.CHUNK + 1)
  with pytest.raises(ValueError, match='take a multiple of 25'):
    finetune.finetune(setting, 1e-3, 0, None, None, None)


def test_plan_has_known_methods_and_no_cell_twice():
  cells = plan.cells()
  assert len(set(cells)) == len(cells)
  settings = [cell.setting for cell in cells]
  parts = [plan.part_of(cells, part, 3) for part in range(3)]
  assert sorted(itertools.chain(*parts)) == sorted(cells)
  for own, other in itertools.combinations(parts, 2):
    assert not {c.setting for c in own} & {c.setting for c in other}
  assert {s.method for s in settings} <= METHODS.keys()
  assert all(s.steps % finetune.CHUNK == 0 for s in settings)


def all_runs(cell, loss, start):
  found = {}
  while missing := plan.next_run(cell, found, start):
    found[missing] = loss(*missing)
  return found


def test_a_sweep_finds_its_way_from_where_all_diverge():
  cell = plan.Cell(SMALL, seeds=3)
  found = all_runs(cell, lambda p, s: abs(p + 9.2) if p < 0 else np.inf, 6)
  assert {(-9, 1), (-9, 2), (-8, 0), (-10, 0)} <= found.keys()
  assert all(np.isinf(found[p, 0]) for p in (0, 2, 4, 6))


def test_a_wide_sweep_ends_beyond_the_good_range():
  cell = plan.Cell(SMALL, seeds=1, wide=True)
  found = all_runs(cell, lambda p, s: plan.GOOD / 24 * (p + 10) ** 2, -10)
  powers = [p for p, _ in found]
  assert (min(powers), max(powers)) == (-15, -5)


def test_a_sweep_without_a_best_rate_ends():
  found = all_runs(plan.Cell(SMALL), lambda p, s: float(p), 0)
  assert min(p for p, _ in found) == -plan.FARTHEST


@pytest.fixture
def pretended(monkeypatch):
  """Runs that take no time, with losses of which the best rates are known."""
  best = {'adamw': -10, 'lora_rite': -12, 'lora_rite, clip: none': -12}
  cells = [
    plan.Cell(plan.Setting('none', width=WIDTH, steps=0), 1),
    *(plan.Cell(plan.Setting(m, width=WIDTH), 3, wide=True) for m in best),
    *(
      plan.Cell(plan.Setting(m, width=WIDTH, schedule='constant'), 3)
      for m in ('adamw', 'lora_rite')
    ),
  ]
  calls = []

  def pretend(setting, rate, seed, base, domain, kept):
    calls.append((setting, rate, seed))
    off = np.log(rate) / np.log(plan.STEP) - best.get(setting.method, 0)
    loss = 2 + 0.01 * off**2 + 0.1 * seed - 0.05 * ('rite' in setting.method)
    steps = np.asarray(finetune.curve_steps(setting))
    return {
      'loss': loss,
      'kept': 3.0,
      'curve': loss + (1 - steps / setting.steps if len(steps) else steps),
    }

  monkeypatch.setattr(run, 'finetune', pretend)
  monkeypatch.setattr(plan, 'cells', lambda: cells)
  return calls


def test_runs_are_kept_and_not_done_again(work, tmp_path, pretended):
  flags = [str(work), '--out', str(tmp_path)]
  run.main([*flags, '--methods', 'adamw', 'none'])
  done = len(pretended)
  run.main([*flags, '--part', '0/2'])
  run.main([*flags, '--part', '1/2'])
  assert len(set(pretended)) == len(pretended) > done
  lines = (tmp_path / 'results.jsonl').read_bytes()
  run.main(flags)
  assert (tmp_path / 'results.jsonl').read_bytes() == lines
  rows = results.load_rows(tmp_path / 'results.jsonl')
  own = ('power', 'rate', 'seed', 'loss', 'kept', 'curve', 'seconds')
  names = (*plan.Setting._fields, *own, 'base', 'text')
  assert {tuple(row) for row in rows} == {names}


def test_other_weights_are_not_mixed_in_silently(work, tmp_path, pretended):
  flags = [str(work), '--out', str(tmp_path)]
  run.main([*flags, '--methods', 'none'])
  file = tmp_path / 'results.jsonl'
  [row] = results.load_rows(file)
  results.save_rows(file, [row | {'base': 'others'}])
  with pytest.raises(ValueError, match='in the results others'):
    run.main([*flags, '--methods', 'adamw'])
  run.main([*flags, '--methods', 'adamw', '--other_weights'])
  assert 'Runs of different base' in report.state(report.load(tmp_path))


def test_the_report_says_what_is_in_the_runs(work, tmp_path, pretended):
  run.main([str(work), '--out', str(tmp_path)])
  found = report.load(tmp_path)
  groups = report.groups(report.done(found))
  assert len(groups) == 2
  cosine, constant = groups
  methods = groups[cosine]
  change = measures.paired(methods['lora_rite'], methods['adamw'])
  np.testing.assert_allclose(change, -0.05, atol=1e-5)
  # 0.01 off^2 is GOOD at the square root of two powers from the best.
  width, whole = measures.good_range(methods['adamw'])
  assert whole
  assert 2 < width / measures.OCTAVES < 2 * 1.5
  # The curve falls by one in 300 steps, so 0.05 earlier.
  steps = measures.steps_ratio(constant, *map(groups[constant].get, (
    'lora_rite', 'adamw')))  # fmt: skip
  np.testing.assert_allclose(steps, 0.95, atol=1e-4)
  assert '**-0.0500**' in report.across(groups)
  assert '**0.95 [0.95, 0.95]**' in report.steps(groups)
  assert report.table_of(methods, {'kept': 2.5}).count('+0.500') == 3
  before = plan.Setting('adamw', width=WIDTH)
  first = {plan.Setting('adamw'): groups[before]}
  assert 'clip: none' in report.variants(first)


def test_pictures_are_drawn(work, tmp_path, pretended, monkeypatch):
  cells = [
    cell._replace(setting=cell.setting._replace(width=128))
    for cell in plan.cells()
  ]
  more = plan.Setting('adamw', rank=2, alpha=4.0)
  cells.append(plan.Cell(more, 2))
  monkeypatch.setattr(plan, 'cells', lambda: cells)
  monkeypatch.setattr(run.Bench, 'base', lambda self, width: (None, 'none'))
  run.main([str(work), '--out', str(tmp_path)])
  report.draw(tmp_path)
  names = {file.name for file in tmp_path.glob('*.png')}
  wanted = ('sweeps', 'variants', 'steps', 'transfer')
  assert names == {f'{name}.png' for name in wanted}


@pytest.mark.parametrize('name', METHODS)
def test_every_method_can_be_made(name):
  params = {'lora_a': jnp.ones((4, 2)), 'lora_b': jnp.ones((2, 4))}
  state = METHODS[name].optimizer(lambda count: 1e-3, 2.0).init(params)
  assert jax.tree.leaves(state)
