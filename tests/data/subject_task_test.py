"""DreamBooth's task: which pictures share a batch, and what is refused."""

import itertools
import json

import numpy as np
import pytest

from lora_opt.data import forms, tasks
from lora_opt.data.images import Augmentation
from lora_opt.data.tokenizer import Tokenizer
from tests.data.image_files import colours, save

LENGTH = (8, 8, 24)
TOKENIZER = Tokenizer.byte_level()


def folder_of(path, count, seed=0, captions=()):
  for number in range(count):
    save(path / f'{number}.png', colours(10, 12, seed + number))
  lines = [
    json.dumps({'file_name': f'{number}.png', 'text': text}) + '\n'
    for number, text in enumerate(captions)
  ]
  if lines:
    (path / 'metadata.jsonl').write_text(''.join(lines))
  return str(path)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  path = tmp_path_factory.mktemp('pictures')
  return {
    'subject': folder_of(path / 'subject', 3),
    'class': folder_of(path / 'class', 5, seed=50),
    'others': folder_of(path / 'others', 2, seed=90),
  }


def make(folders, **settings):
  with_class = {'class_images': folders['class'], 'class_count': 5}
  with_class['class_prompt'] = 'a dog'
  return tasks.SubjectGeneration(
    **{
      'name': 'dog',
      'train': folders['subject'],
      'eval': folders['others'],
      'prompt': 'sks dog',
      **with_class,
      **settings,
    }
  )


def stream(task, batch_size=4, **settings):
  return task.train_batches(
    TOKENIZER,
    length=LENGTH,
    batch_size=batch_size,
    seed=7,
    form='text_to_image',
    **settings,
  )


def taken(batches, count):
  return list(itertools.islice(iter(batches), count))


def text_of(tokens):
  ids = [int(i) for i in tokens if i >= 0]
  return TOKENIZER.decode(ids[1 : ids.index(TOKENIZER.eos_id, 1)])


def test_every_other_row_is_of_the_class(folders):
  batch = taken(stream(make(folders, class_weight=0.5)), 1)[0]
  assert batch['images'].shape == (4, 8, 8, 3)
  assert batch['weights'][:, 0].tolist() == [1, 0.5, 1, 0.5]
  assert batch['counts'][:, 0].tolist() == [1, 0, 1, 0]
  said = [text_of(row) for row in batch['tokens']]
  assert said == ['sks dog', 'a dog'] * 2
  alone = stream(make(folders, class_prompt=None, class_images=None))
  assert taken(alone, 1)[0]['counts'][:, 0].tolist() == [1] * 4


def test_a_picture_comes_again_once_all_of_its_kind_have_come(folders):
  whole = Augmentation()  # nothing is drawn, so that pictures can be told
  batches = taken(stream(make(folders, augmentation=whole)), 15)
  rows = np.concatenate([batch['images'] for batch in batches])
  for part, count in ((rows[::2], 3), (rows[1::2], 5)):
    seen = [row.tobytes() for row in part]
    for start in range(0, len(seen) // count * count, count):
      assert len(set(seen[start : start + count])) == count
    firsts = {tuple(seen[i : i + count]) for i in range(0, 15, count)}
    assert len(firsts) > 1  # in another order


def test_a_stream_goes_on_exactly_and_with_any_number_of_workers(folders):
  task = make(folders)
  whole = taken(stream(task), 6)
  walk = iter(stream(task))
  for _ in range(3):
    next(walk)
  again = iter(stream(make(folders)))
  again.set_state(walk.get_state())
  for batch in whole[3:]:
    found = next(again)
    assert all(np.array_equal(found[name], batch[name]) for name in batch)
  again.close()
  kept = taken(stream(task, rows=[1, 2]), 2)
  assert np.array_equal(kept[1]['images'], whole[1]['images'][1:3])


@pytest.mark.parametrize(
  'settings',
  [
    {'class_weight': 2.0},
    {'prompt': 'sks cat'},
    {'class_prompt': 'a cat'},
    {'augmentation': Augmentation()},
    {'size': 16},
  ],
)
def test_a_place_of_another_stream_is_refused(folders, settings):
  state = iter(stream(make(folders))).get_state()
  with pytest.raises(ValueError, match='another stream'):
    iter(stream(make(folders, **settings))).set_state(state)


def test_noise_and_times_are_the_same_at_every_call(folders):
  settings = {'length': LENGTH, 'draws': 4, 'timesteps': 1000, 'seed': 3}
  task = make(folders)
  first = list(task.noise_batches(TOKENIZER, batch_size=3, **settings))
  again = list(task.noise_batches(TOKENIZER, batch_size=8, **settings))
  assert [len(batch.example) for batch in first] == [3, 3, 3]
  numbers = np.concatenate([batch.example for batch in first])
  assert numbers.tolist() == [0] * 4 + [1] * 4 + [-1]
  for name in ('noise_seeds', 'timesteps', 'images'):
    rows = np.concatenate([batch.arrays[name] for batch in first])[:8]
    assert np.array_equal(rows, again[0].arrays[name])
  seeds, times = (again[0].arrays[n] for n in ('noise_seeds', 'timesteps'))
  assert len(set(seeds.tolist())) == 8
  assert times.dtype == np.int32
  # One in each quarter of the times.
  assert np.array_equal(times // 250, [0, 1, 2, 3] * 2)


def test_captions_come_from_metadata(tmp_path):
  folder = folder_of(tmp_path / 'a', 2, captions=['sks on red', 'sks on blue'])
  task = tasks.SubjectGeneration(name='dog', train=folder, prompt='{text}!')
  task.validate()
  assert task.drawn_prompts() == ['sks on red!', 'sks on blue!']
  assert task.overlap() == []
  assert task.facts()['train']['examples'] == 2
  # Without pictures for validation those of train are.
  assert [e.prompt for e in task.examples('eval')] == task.drawn_prompts()


def test_facts_say_where_pictures_are_from(folders, tmp_path):
  task = make(folders, class_count=7)
  assert task.missing_class_images() == 2
  made = folder_of(tmp_path / 'made', 2, seed=70)
  task = task.with_made_images(made)
  facts = task.facts()['class']
  assert (facts['examples'], facts['made']) == (7, 2)
  assert len(task.examples('class')) == 7
  # Of a folder of more, as many as are missing.
  fewer = make(folders, class_count=6).with_made_images(made)
  assert len(fewer.examples('class')) == 6
  (tmp_path / 'empty').mkdir()
  empty = make(folders, class_images=str(tmp_path / 'empty'))
  assert empty.missing_class_images() == 5
  assert make(folders, class_prompt=None, class_images=None).facts().keys() >= {
    'train',
    'eval',
  }


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'prompt': ' '}, "task 'dog': prompt is empty"),
    ({'class_prompt': ''}, 'class_prompt is empty'),
    ({'sample_prompts': ['a', '']}, 'sample_prompts: 1 is empty'),
    ({'sample_prompts': 'a dog'}, 'sample_prompts must be a list'),
    ({'class_prompt': None}, 'without class_prompt'),
    ({'class_weight': 0}, 'class_weight: expected a finite number above 0'),
    ({'class_count': 0}, 'class_count: expected a whole number'),
    ({'size': 3}, 'size: expected a whole number'),
    ({'too_long': 'cut'}, "too_long='cut' must be one of"),
    ({'metrics': [len]}, 'metrics are those of texts'),
    ({'prompt': '{text'}, 'template'),
  ],
)
def test_settings_that_cannot_be_are_refused(folders, settings, message):
  with pytest.raises(ValueError, match=message):
    make(folders, **settings)


def test_pictures_that_are_not_there_are_refused_by_name(folders, tmp_path):
  missing = make(folders, train=str(tmp_path / 'none'))
  with pytest.raises(FileNotFoundError, match='there is no folder .*none'):
    missing.validate()
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match='empty has no image'):
    make(folders, train=str(tmp_path / 'empty')).validate()
  (tmp_path / 'bad').mkdir()
  (tmp_path / 'bad/a.png').write_bytes(b'no picture')
  with pytest.raises(ValueError, match='bad/a.png: no image of the formats'):
    make(folders, train=str(tmp_path / 'bad')).validate()
  with pytest.raises(ValueError, match="no field 'text'"):
    make(folders, prompt='{text}').validate()
  named = make(folders, class_prompt='a {text}', class_images=None)
  with pytest.raises(ValueError, match="has the field 'text', which no"):
    named.missing_class_images()


def test_captions_that_are_too_long_are_refused_or_cut(folders):
  long = 'a photo of sks dog on a hill'
  with pytest.raises(ValueError, match=r'has 30 tokens .* reads 24: shorten'):
    stream(make(folders, prompt=long))
  batch = taken(stream(make(folders, prompt=long, too_long='truncate')), 1)[0]
  assert text_of(batch['tokens'][0]) == long[:22]
  with pytest.raises(ValueError, match='every caption of split train'):
    stream(make(folders, prompt=long, too_long='drop'))
  with pytest.raises(ValueError, match=r'sample_prompts: the text .* has 30'):
    make(folders).check_captions([long], TOKENIZER, 24)


def test_a_batch_with_a_class_has_two_halves(folders):
  with pytest.raises(ValueError, match=r'batch_size=3 .* must be even'):
    stream(make(folders), batch_size=3)


def test_a_task_of_texts_and_a_model_of_pictures_do_not_go_together(folders):
  rows = [{'question': 'a', 'answer': 'b'}]
  text = tasks.Generation(name='say', train=rows, eval=rows)
  with pytest.raises(ValueError, match='is of kind generation, and the model'):
    stream(text)
  with pytest.raises(ValueError, match='teaches a model to draw a subject'):
    make(folders).train_batches(TOKENIZER, length=64, batch_size=2, seed=0)
  two = tasks.Mixture(name='two', tasks=(make(folders), text))
  with pytest.raises(ValueError, match='is of kind mixture, and the model'):
    stream(two)


def test_a_batch_to_plan_with_has_the_shapes(folders):
  empty = forms.empty_batch('text_to_image', length=LENGTH, batch_size=4)
  batch = taken(stream(make(folders)), 1)[0]
  shapes = {name: (x.shape, x.dtype) for name, x in batch.items()}
  assert {name: (x.shape, x.dtype) for name, x in empty.items()} == shapes
