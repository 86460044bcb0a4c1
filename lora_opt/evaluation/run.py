"""Run modes eval, infer and merge: what to do with an exported adapter."""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lora_opt.evaluation.evaluate import Evaluator
from lora_opt.evaluation.mixture import make_evaluator
from lora_opt.training import run_directory
from lora_opt.training.partitioning import DATA_PARALLEL, Partitioner, put
from lora_opt.training.processes import on_first
from lora_opt.training.run_directory import RunRecord

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
  """Scores an adapter on the evaluation split of a task.

  Args:
    model_dir: the run's folder; takes evaluation/<task>.json.
    model: a `lora_opt.models.CausalLM` or what offers the same.
    task: a task of `lora_opt.data.tasks` or what offers the same.
    partitioner: how arrays are split over devices.
    evaluator: makes the evaluation from (model, task, placement).
    adapter: folder of an exported adapter; None for the one in `model_dir`,
      'none' for the model without an adapter.
    record: unused; every run mode is given it.

  Returns:
    The file of the result, predictions included.

  Raises:
    FileNotFoundError: there is no adapter.
    ValueError: the adapter does not fit the model.
  """
  del record
  folder, lora, base, evaluate = _prepare(
    model_dir, model, task, partitioner, evaluator, adapter
  )
  result = evaluate(base, lora)
  path = folder / 'evaluation' / f'{task.name}.json'
  on_first(functools.partial(run_directory.write_json, path, result))
  low, high = result['interval']
  print(
    f'{task.name}: {result["metric"]} {result["score"]:.4f} '
    f'[{low:.4f}, {high:.4f}], loss {result["loss"]:.4f} on '
    f'{result["num_examples"]} examples\n{path}'
  )
  return path


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
  """Writes completions for the prompts of a task's evaluation split.

  Args: as of `score`.

  Returns:
    MODEL_DIR/inference/<task>.jsonl: prompt, reference, prediction and score,
    one example a line.

  Raises: as `score`.
  """
  del record
  folder, lora, base, evaluate = _prepare(
    model_dir, model, task, partitioner, evaluator, adapter
  )
  predictions = evaluate.generate(base, lora)
  path = folder / 'inference' / f'{task.name}.jsonl'
  on_first(functools.partial(_write_lines, path, predictions))
  for prediction in predictions[:_SHOWN]:
    print(f'> {prediction["prompt"]}\n{prediction["prediction"]}\n')
  print(f'{len(predictions)} completions: {path}')
  return path


def _write_lines(path: pathlib.Path, rows: Sequence[Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  )


def merge(
  model_dir: str | os.PathLike,
  model: Any,
  *,
  adapter: str | None = None,
  source: str | None = None,
  dtype: str | None = None,
  record: RunRecord | None = None,
) -> pathlib.Path:
  """Writes a model that contains an adapter, as a Hugging Face folder.

  Args:
    model_dir: the run's folder; takes merged/.
    model: a `lora_opt.models.CausalLM` or what offers the same.
    adapter: folder of an exported adapter; None for the one in `model_dir`.
    source: the Hugging Face folder the model came from, for config.json and
      tokenizer; None to write them anew, for a Llama-family model.
    dtype: 'float32' or 'bfloat16'; None for the type of the base.
    record: unused; every run mode is given it.

  Returns:
    MODEL_DIR/merged.

  Raises:
    FileExistsError: MODEL_DIR/merged is there already.
    FileNotFoundError: there is no adapter.
    ValueError: the adapter does not fit the model, or there are several
      processes.
  """
  del record
  if jax.process_count() > 1:
    raise ValueError('run_mode=merge needs one process that holds all weights')
  folder = pathlib.Path(model_dir)
  lora = model.load_adapter(adapter or folder / 'adapter')
  model.merge(folder / 'merged', lora, source=source, dtype=dtype)
  print(f'merged model: {folder / "merged"}')
  return folder / 'merged'


def _prepare(model_dir, model, task, partitioner, evaluator, adapter):
  folder = pathlib.Path(model_dir)
  task.validate(['eval'])
  if adapter == 'none':
    lora = None
  else:
    lora = model.load_adapter(adapter or folder / 'adapter')
  placement = partitioner.place(model)
  base = put(model.base, placement.base)
  if lora is not None:
    lora = put(lora, placement.trainable)
  evaluate = make_evaluator(evaluator, model, task, placement)
  return folder, lora, base, evaluate
