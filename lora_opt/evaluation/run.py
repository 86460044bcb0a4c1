"""The run modes eval, infer and merge, which use a trained adapter."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from lora_opt import writing
from lora_opt.buckets.outbox import output_folder
from lora_opt.buckets.paths import as_path
from lora_opt.devices import finite
from lora_opt.devices.partitioning import DATA_PARALLEL, Partitioner, put
from lora_opt.devices.together import on_first
from lora_opt.evaluation import picture_files, results
from lora_opt.evaluation.classify import named_for
from lora_opt.evaluation.evaluate import Evaluator
from lora_opt.evaluation.mixture import make_evaluator
from lora_opt.evaluation.pictures import Strip
from lora_opt.reading import parts
from lora_opt.reading.values import printable
from lora_opt.run_folder import identity
from lora_opt.run_folder.checkpoint_files import is_checkpoint, read_trainable
from lora_opt.run_folder.run_directory import RunRecord

_SHOWN = 3


def score(
  model_dir: str | os.PathLike,
  model: Any,
  task: Any,
  *,
  partitioner: Partitioner = DATA_PARALLEL,
  evaluator: Callable[..., Evaluator] = Evaluator,
  adapter: str | None = None,
  record: RunRecord | None = None,
) -> pathlib.Path:
  """Scores an adapter on the evaluation split of one or several tasks.

  Args:
    model_dir: the run's folder. Written to it are
      evaluation/scores/<task>.json, the predictions as <task>.jsonl next to it,
      and a report of all of them.
    model: a `lora_opt.models.CausalLM`, or a model with the same interface.
    task: a task of `lora_opt.data.tasks`, or one with the same interface; or a
      list of tasks.
    partitioner: how arrays are split over devices.
    evaluator: makes the evaluation from (model, task, placement).
    adapter: folder of an exported adapter, or a checkpoint of a run such as
      MODEL_DIR/checkpoints/step_40; None for MODEL_DIR/adapter, 'none' for the
      model without an adapter.
    record: unused; every run mode receives it.

  Returns:
    The folder of the results.

  Raises:
    FileNotFoundError: there is no adapter.
    ValueError: the adapter does not fit the model, weights are not finite, or
      the files in `model_dir` are of another model, other base weights or
      another tokenizer.
  """
  del record
  folder = as_path(model_dir)
  found = []
  for each, (base, lora, evaluate) in zip(
    _as_list(task),
    _evaluators(folder, model, task, partitioner, evaluator, adapter),
    strict=True,
  ):
    made = identity.of_evaluation(model, base, each)
    on_first(functools.partial(_check_company, folder, made))
    result = {**evaluate(base, lora), 'made_of': identity.made_of(made)}
    on_first(functools.partial(results.write_result, folder, result))
    found.append(result)
  print(printable(f'\n{results.format_results(found)}\n'))
  print(f'results: {folder / results.FOLDER}')
  on_first(functools.partial(_report, folder))
  return folder / results.FOLDER


def infer(
  model_dir: str | os.PathLike,
  model: Any,
  task: Any,
  *,
  partitioner: Partitioner = DATA_PARALLEL,
  evaluator: Callable[..., Evaluator] = Evaluator,
  adapter: str | None = None,
  record: RunRecord | None = None,
) -> pathlib.Path:
  """Writes completions for the prompts of the evaluation split of tasks.

  A text-to-image model draws pictures of the task's sample_prompts instead.

  Args: as for `score`.

  Returns:
    MODEL_DIR/inference with a <task>.jsonl for each task, which has one example
    per line with prompt, reference, prediction and score. For pictures each
    line has prompt and file; the files are in a folder named after the task.

  Raises: as `score`.
  """
  del record
  folder = as_path(model_dir)
  said = False
  for (base, lora, evaluate), each in zip(
    _evaluators(folder, model, task, partitioner, evaluator, adapter),
    _as_list(task),
    strict=True,
  ):
    if not said:
      said = True
      here = identity.of_model(model, base)
      on_first(functools.partial(_say_other_base, folder, adapter, here))
    if hasattr(evaluate, 'pictures'):
      strips = evaluate.pictures(base, lora)
      on_first(functools.partial(_write_pictures, folder, each.name, strips))
      continue
    predictions = evaluate.generate(base, lora)
    name = writing.file_name(each.name)
    path = folder / 'inference' / f'{name}.jsonl'
    on_first(functools.partial(results.write_lines, path, predictions))
    for prediction in predictions[:_SHOWN]:
      prompt, answer = prediction['prompt'], prediction['prediction']
      print(printable(f'> {prompt}\n{answer}\n'))
    print(f'{len(predictions)} completions: {path}')
  return folder / 'inference'


def _write_pictures(
  folder: pathlib.Path, task: str, strips: Sequence[Strip]
) -> None:
  """Writes each picture to a file, and lists the files with their texts."""
  name = writing.file_name(task)
  rows = []
  for number, strip in enumerate(strips):
    for place, picture in enumerate(strip.pictures):
      file = f'{name}/{number}_{place}.png'
      path = folder / 'inference' / file
      writing.write_bytes(path, picture_files.png(picture))
      rows.append({'prompt': strip.prompt, 'file': file})
  results.write_lines(folder / 'inference' / f'{name}.jsonl', rows)
  print(f'{len(rows)} pictures: {folder / "inference" / name}')


def merge(
  model_dir: str | os.PathLike,
  model: Any,
  *,
  adapter: str | None = None,
  source: str | None = None,
  dtype: str | None = None,
  labels: Sequence[str] | None = None,
  record: RunRecord | None = None,
) -> pathlib.Path:
  """Writes a model that contains an adapter, as a Hugging Face folder.

  Args:
    model_dir: the run's folder, in which merged/ is written.
    model: a `lora_opt.models.CausalLM`, or a model with the same interface.
    adapter: as for `score`.
    source: the Hugging Face folder the model came from, for config.json and
      tokenizer; None to generate these files, which works for decoders and
      encoder-decoders.
    dtype: 'float32' or 'bfloat16'; None for the type of the base.
    labels: for a classifier, the names of its labels; None for those that the
      adapter was trained for.
    record: unused; every run mode receives it.

  Returns:
    MODEL_DIR/merged.

  Raises:
    FileExistsError: MODEL_DIR/merged already exists.
    FileNotFoundError: there is no adapter.
    ValueError: the adapter does not fit the model, or there are several
      processes.
  """
  del record
  if jax.process_count() > 1:
    raise ValueError('run_mode=merge needs one process that holds all weights')
  parts.check(model=model)
  folder = as_path(model_dir)
  if hasattr(model, 'named'):
    # The head was trained with this order of labels, whatever the source has.
    there = model.read_labels(_labels_folder(folder, adapter))
    model = model.named(there) if there else model
  lora = _load(model, folder, adapter)
  finite.check({'base weights': model.base, 'adapter': lora})
  _say_other_base(folder, adapter, identity.of_model(model, model.base))
  named = {} if labels is None else {'labels': labels}
  with output_folder(folder / 'merged', new=True) as local:
    model.merge(local, lora, source=source, dtype=dtype, **named)
  print(f'merged model: {folder / "merged"}')
  return folder / 'merged'


def _evaluators(
  folder: pathlib.Path,
  model: Any,
  task: Any,
  partitioner: Partitioner,
  evaluator: Callable[..., Evaluator],
  adapter: str | None,
) -> Iterator[tuple[Any, Any, Evaluator]]:
  """Yields frozen weights, adapter and evaluation, one task after the other."""
  for each in _as_list(task):
    parts.check(model=model, task=each)
    each.validate(['eval'])
  placement = partitioner.place(model)
  base = put(model.base, placement.base)
  loaded: dict[Any, Any] = {}
  for each in _as_list(task):
    named = named_for(model, each)
    # Only an encoder's adapter depends on the task, by the order of labels.
    labels = tuple(getattr(named, 'labels', ()))
    if labels not in loaded:
      lora = _load(named, folder, adapter)
      loaded[labels] = lora and put(lora, placement.trainable)
      finite.check({'base weights': base, 'adapter': loaded[labels]})
    evaluate = make_evaluator(evaluator, named, each, placement)
    yield base, loaded[labels], evaluate


def _check_company(folder: pathlib.Path, made: identity.Identity) -> None:
  """Raises ValueError if the folder is of another base, model or tokenizer."""
  _, run = identity.read(folder)
  names = (identity.BASE, identity.MODEL, identity.TOKENIZER)
  if lines := identity.differences(
    {k: run[k] for k in names if k in run}, made
  ):
    raise ValueError(
      f'MODEL_DIR={folder} holds a run of something else:\n  '
      + '\n  '.join(lines)
      + '\nChoose another MODEL_DIR for the results, and say by ADAPTER which '
      'adapter they are to be of'
    )
  here = identity.made_of(made)
  del here[identity.EVALUATION]  # it differs from file to file
  for file in results.result_files(folder):
    identity.check_evaluation(file, results.read_result(file), here)


def _say_other_base(
  folder: pathlib.Path, adapter: str | None, here: identity.Identity
) -> None:
  """Prints a notice if the adapter was trained on another base."""
  if adapter == 'none':
    return
  _, there = identity.read(folder)
  for line in identity.differences(there, here):
    print(f'The run in {folder} was trained on another model: {line}')


def _load(model: Any, folder: pathlib.Path, adapter: str | None) -> Any:
  if adapter == 'none':
    return None
  path = as_path(adapter or folder / 'adapter', 'ADAPTER')
  if is_checkpoint(path):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    trainable = read_trainable(path, shapes)
    if hasattr(model, 'in_order'):
      labels = model.read_labels(_labels_folder(folder, adapter))
      trainable = model.in_order(trainable, labels)
    return trainable
  return model.load_adapter(path)


def _labels_folder(folder: pathlib.Path, adapter: str | None) -> pathlib.Path:
  """The folder that has the names of an adapter's outputs."""
  path = as_path(adapter or folder / 'adapter', 'ADAPTER')
  # For MODEL_DIR/checkpoints/step_40 it is the run's folder.
  return path.parent.parent if is_checkpoint(path) else path


def _report(folder: pathlib.Path) -> None:
  # Imported here, since matplotlib adds half a second to the start-up.
  from lora_opt.evaluation.report import write_report

  print(f'report:  {write_report(folder)}')


def _as_list(task: Any) -> Sequence[Any]:
  return task if isinstance(task, list | tuple) else [task]
