"""ImageClassification and its batches: labels, bad files, seeds, resuming."""

import json

import numpy as np
import pytest

from lora_opt.data import forms, sources, tasks
from lora_opt.data.images import Augmentation, Fit, ImageProcessor
from tests.data.image_files import class_folders, colours, save

CLASSES = ('ant', 'bee', 'cat')
PROCESSOR = ImageProcessor(Fit(8, 8))
DRAWN = Augmentation(crop='random_area', flip=0.5)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return class_folders(tmp_path_factory.mktemp('images'), CLASSES, 8, size=20)


def task_of(folder, **settings):
  split = {'eval_share': 0.25}
  return tasks.ImageClassification(
    name='animals',
    train=sources.ClassFolders(str(folder), 'train', **split),
    eval=sources.ClassFolders(str(folder), 'eval', **split),
    **settings,
  )


def stream(task, seed=3, batch_size=4, **settings):
  return task.train_batches(
    PROCESSOR,
    length=(8, 8),
    batch_size=batch_size,
    seed=seed,
    form='image',
    **settings,
  )


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def same(first, second):
  for one, two in zip(first, second, strict=True):
    assert one.keys() == two.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_examples_have_labels_and_images(folder):
  task = task_of(folder)
  task.validate()
  assert task.class_names == CLASSES
  examples = task.examples('train')
  assert len(examples) == 18 and len(task.examples('eval')) == 6
  example = examples[1]
  assert example.completion == CLASSES[example.answer] == 'bee'
  assert example.choices == CLASSES
  assert example.prompt.startswith('bee/') and example.image.height == 20
  assert task.overlap() == []


def test_batches_are_of_the_size_that_the_model_reads(folder):
  (batch,) = take(iter(stream(task_of(folder, augmentation=DRAWN))), 1)
  assert batch['images'].shape == (4, 8, 8, 3)
  assert batch['images'].dtype == np.uint8
  assert batch['labels'].shape == batch['weights'].shape == (4, 1)
  empty = forms.empty_batch('image', length=(8, 8), batch_size=4)
  for name, array in batch.items():
    assert (empty[name].shape, empty[name].dtype) == (array.shape, array.dtype)


def test_an_epoch_is_every_image_once_and_draws_anew(folder):
  task = task_of(folder, augmentation=DRAWN)
  first, second = (take(it, 9) for it in [iter(stream(task, batch_size=2))] * 2)
  for epoch in (first, second):
    labels = np.concatenate([batch['labels'] for batch in epoch])
    assert np.bincount(labels.ravel().astype(int)).tolist() == [6, 6, 6]
  images = [image for batch in first + second for image in batch['images']]
  assert len({image.tobytes() for image in images}) == 36


def test_the_same_seed_gives_the_same_pixels_from_any_place_on(folder):
  task = task_of(folder, augmentation=DRAWN)
  whole = iter(stream(task))
  before, state = take(whole, 3), whole.get_state()
  rest = take(whole, 6)  # over the end of the epoch
  again = iter(stream(task_of(folder, augmentation=DRAWN)))
  same(take(again, 3), before)
  resumed = iter(stream(task))
  resumed.set_state(json.loads(json.dumps(state)))
  same(take(resumed, 6), rest)
  other = take(iter(stream(task, seed=4)), 1)
  assert np.any(other[0]['images'] != before[0]['images'])


@pytest.mark.slow
def test_workers_give_the_same_pixels(folder):
  task = task_of(folder, augmentation=DRAWN)
  expected = take(iter(stream(task)), 7)
  iterator = iter(stream(task, workers=2))
  same(take(iterator, 7), expected)
  iterator.close()


def test_processes_keep_their_rows(folder):
  task = task_of(folder, augmentation=DRAWN)
  (whole,) = take(iter(stream(task)), 1)
  (part,) = take(iter(stream(task, rows=[1, 3])), 1)
  np.testing.assert_array_equal(part['images'], whole['images'][[1, 3]])


@pytest.mark.parametrize(
  'change',
  [
    {'augmentation': Augmentation(crop='random_area', flip=0.4)},
    {'augmentation': DRAWN, 'label_names': CLASSES[::-1]},
  ],
)
def test_another_stream_is_not_gone_on_with(folder, change):
  iterator = iter(stream(task_of(folder, augmentation=DRAWN)))
  other = iter(stream(task_of(folder, **change)))
  with pytest.raises(ValueError, match='belongs to another stream'):
    other.set_state(iterator.get_state())


def test_evaluation_reads_every_image_once_as_it_is(folder):
  task = task_of(folder, augmentation=DRAWN)
  batches = task.label_batches(PROCESSOR, batch_size=4, longest=0, form='image')
  assert len(batches) == 2
  first, second = batches
  assert first.example.tolist() == [0, 1, 2, 3]
  assert second.example.tolist() == [4, 5, -1, -1]
  assert second.arrays['weights'].ravel().tolist() == [1, 1, 0, 0]
  example = task.examples('eval')[4]
  np.testing.assert_array_equal(
    second.arrays['images'][0], PROCESSOR.fit(example.image.pixels())
  )
  (last,) = task.label_batches(
    PROCESSOR, batch_size=1, longest=0, form='image', indices=[4]
  )
  same([last.arrays], [{n: a[:1] for n, a in second.arrays.items()}])


def test_bad_files_are_refused_or_left_out_and_counted(tmp_path):
  folder = class_folders(tmp_path, CLASSES, 8)
  # Drawn for training by their names.
  names = [row['image'] for row in task_of(folder).train]
  for name, data in zip(names, (b'', b'GIF89a broken'), strict=False):
    with open(name, 'wb') as file:
      file.write(data)
  with pytest.raises(ValueError, match=r'ant/\d+\.png: an empty file'):
    task_of(folder).validate()
  task = task_of(folder, on_bad='skip')
  task.validate()
  facts = task.facts()
  assert facts['train']['bad_rows'] == 2 and facts['train']['examples'] == 16
  assert 'an empty file' in facts['train']['first_bad_rows'][0]
  assert facts['train']['image_bytes'] > 1000
  limited = task_of(folder, on_bad='skip', max_image_pixels=16)
  with pytest.raises(ValueError, match='none can be used'):
    limited.validate()


def test_the_same_bytes_in_both_splits_are_an_overlap(tmp_path):
  for split in ('train', 'eval'):
    class_folders(tmp_path / split, 'ab', 2, seed=len(split))
    save(tmp_path / split / 'a' / f'{split}.png', colours())
  task = task_of(tmp_path)
  assert [task.examples('eval')[i].prompt for i in task.overlap()] == [
    'a/eval.png'
  ]
  assert task_of(tmp_path, leave_out_overlap=True).overlap() == []


def test_labels_in_a_field_of_metadata(tmp_path):
  rows = [{'file_name': f'{i}.png', 'kind': 'ba'[i % 2]} for i in range(4)]
  for row in rows:
    save(tmp_path / row['file_name'], colours())
  (tmp_path / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  source = sources.ImageFolder(str(tmp_path))
  task = tasks.ImageClassification(
    name='kinds', train=source, eval=source, label='kind'
  )
  task.validate()
  assert task.class_names == ('a', 'b')
  assert [e.answer for e in task.examples('eval')] == [1, 0, 1, 0]


@pytest.mark.parametrize(
  ('label', 'settings', 'message'),
  [
    ('dog', {}, "'label' must be a label, one of 'ant, bee', found 'dog'"),
    (0, {}, 'numbers of labels need label_names'),
    (2, {'label_names': ('ant', 'bee')}, 'is 2: numbers .* from 0 to 1'),
    (None, {'label_names': ('ant', 'bee')}, 'must be a label'),
  ],
)
def test_labels_that_are_none_are_named(tmp_path, label, settings, message):
  path = str(save(tmp_path / 'a.png', colours()))
  train = [{'image': path, 'label': name} for name in ('ant', 'bee')]
  bad = [{'image': path, 'label': label}]
  task = tasks.ImageClassification(name='x', train=train, eval=bad, **settings)
  with pytest.raises(ValueError, match=rf'eval row 0: field .*{message}'):
    task.validate()


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'prompt': '{text}'}, 'prompt and texts are for models that read text'),
    ({'label_names': ('a',)}, 'two or more different labels'),
    ({'label_names': ('a', 'a')}, 'two or more different labels'),
    ({'max_image_pixels': 0}, 'max_image_pixels: expected a whole number'),
  ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    tasks.ImageClassification(name='x', train=[], eval=[], **settings)


def test_texts_and_images_do_not_go_with_each_other_s_models(folder):
  from lora_opt.data.tokenizer import Tokenizer

  task = task_of(folder)
  settings = {'length': 64, 'batch_size': 2, 'seed': 0}
  for form, message in (
    ('decoder', 'is one of images, which models of texts do not see'),
    ('encoder', 'is of kind image_classification, and an encoder'),
  ):
    with pytest.raises(ValueError, match=message):
      task.train_batches(Tokenizer.byte_level(), form=form, **settings)
  text = tasks.Classification(
    name='text',
    train=[{'label': 'a'}],
    eval=[{'label': 'a'}],
    prompt='x',
    label_names=('a', 'b'),
  )
  with pytest.raises(ValueError, match='of kind classification has no images'):
    stream(text)


def test_mixtures_of_images_are_served(folder, tmp_path):
  other = task_of(class_folders(tmp_path, CLASSES, 8, seed=5))
  mixture = tasks.Mixture(
    name='both',
    tasks=(task_of(folder), tasks.dataclasses.replace(other, name='other')),
    rates='equal',
  )
  batches = mixture.train_batches(
    PROCESSOR, form='image', length=(8, 8), batch_size=4, seed=0
  )
  assert [part['rate'] for part in batches.summary] == [0.5, 0.5]
  assert next(iter(batches))['images'].shape == (4, 8, 8, 3)
