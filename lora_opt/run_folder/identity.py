"""Records what a run is made of, so that a restart can report differences.

The first start writes it to MODEL_DIR/identity.json: checksums of the base
weights, the model's settings, the tokenizer, the training data and the
evaluated examples, and a copy of the run's settings. Every evaluation stores
the part it depends on (`made_of`), so that two evaluations are compared only if
these are the same.
"""

import dataclasses
import hashlib
import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax

from lora_opt.devices.checksums import checksums
from lora_opt.devices.finite import by_path
from lora_opt.reading import values
from lora_opt.reading.json_text import read_json
from lora_opt.run_folder import run_directory, run_files

BASE, MODEL, TOKENIZER = 'base weights', 'model settings', 'tokenizer'
TRAINING, EVALUATION = 'training data', 'evaluation data'
ADAPTER = 'initial adapter'
_FIELDS = (
  'prompt',
  'completion',
  'choices',
  'answer',
  'references',
  'texts',
  'number',
)
# Attributes of a tokenizer.
_TOKENS = ('bos_id', 'eos_id', 'pad_id', 'add_bos', 'end_ids')
_SHORT = 40  # a setting of up to so many characters is stored as it is

# Name of a part -> name of an array, setting or task -> its checksum as text.
Identity = dict[str, dict[str, str]]


def of_arrays(tree: Any) -> dict[str, str]:
  """The checksum of every array by path; all processes must call this."""
  sums = jax.device_get(checksums(by_path(tree)))
  return {name or 'array': f'{int(value):08x}' for name, value in sums.items()}


def of_settings(config: Any) -> dict[str, str]:
  """The settings of a model's config: they decide how its weights are used.

  >>> import dataclasses
  >>> Config = dataclasses.make_dataclass('Config', ['rope_theta'])
  >>> of_settings(Config(10000.0))
  {'rope_theta': '10000.0'}
  """
  if not dataclasses.is_dataclass(config):
    return {}
  found = {
    field.name: repr(getattr(config, field.name))
    for field in dataclasses.fields(config)
  }
  return {
    name: text if len(text) <= _SHORT else _digest(text)
    for name, text in found.items()
  }


def of_tokenizer(tokenizer: Any) -> dict[str, str]:
  """What decides how a tokenizer encodes texts, and where an answer ends."""
  parts = {}
  if digest := getattr(tokenizer, 'digest', None):
    parts['vocabulary'] = str(digest)[:16]
  if digest := getattr(tokenizer, 'rules_digest', None):
    parts['rules'] = str(digest)[:16]
  if template := getattr(tokenizer, 'chat_template', None):
    parts['chat template'] = _digest(str(template))
  for name in _TOKENS:
    if (value := getattr(tokenizer, name, None)) is not None:
      parts[name] = str(value)
  return parts


def of_examples(task: Any) -> dict[str, str]:
  """Count and checksum of the evaluation examples of each task in `task`."""
  found = {}
  for each in getattr(task, 'tasks', [task]):
    examples = each.examples('eval')
    digest = hashlib.sha256()
    for example in examples:
      digest.update(_content(example).encode('utf-8', 'surrogatepass'))
    found[each.name] = f'{len(examples)} examples, {digest.hexdigest()[:16]}'
  return found


def of_stream(batches: Any) -> dict[str, str]:
  """The checksum of a stream of training batches, {} if it has none."""
  state = batches.get_state()
  number = state.get('fingerprint') if isinstance(state, Mapping) else None
  return {} if number is None else {'stream': f'{number:08x}'}


def of_run(
  model: Any, base: Any, task: Any, batches: Any, initial: Any
) -> Identity:
  """The identity of a training run; all processes must call this.

  Args:
    model: the model, with its settings and tokenizer.
    base: frozen weights, placed on the devices.
    task: a task or mixture.
    batches: the iterator over the training batches.
    initial: the adapter that training starts from if it was read from files,
      None if it was initialised from the seed.
  """
  made = of_evaluation(model, base, task)
  if stream := of_stream(batches):
    made[TRAINING] = stream
  if initial is not None:
    made[ADAPTER] = of_arrays(initial)
  return made


def of_model(model: Any, base: Any) -> Identity:
  """The identity of a model, without data; arguments as in `of_run`."""
  return {
    BASE: of_arrays(base),
    MODEL: of_settings(getattr(model, 'config', None)),
    TOKENIZER: of_tokenizer(model.tokenizer),
  }


def of_evaluation(model: Any, base: Any, task: Any) -> Identity:
  """The identity of an evaluation; arguments as in `of_run`."""
  return {**of_model(model, base), EVALUATION: of_examples(task)}


def _content(example: Any) -> str:
  """The content of an example, without the row that it was made from."""
  fields = [getattr(example, name, None) for name in _FIELDS]
  # Only if it has one, so that the checksums of texts stay what they were.
  if (image := getattr(example, 'image', None)) is not None:
    fields.append(image.digest)
  if dialogues := getattr(example, 'dialogues', ()):
    fields += [dialogue._replace(place='') for dialogue in dialogues]
  return json.dumps(fields, default=str) + '\n'


def _digest(text: str) -> str:
  data = text.encode('utf-8', 'surrogatepass')
  return hashlib.sha256(data).hexdigest()[:16]


def made_of(identity: Identity) -> dict[str, str]:
  """The parts that decide what an evaluation measures, each summarised."""
  names = (BASE, MODEL, TOKENIZER, EVALUATION)
  return {name: summary(identity[name]) for name in names if name in identity}


def summary(part: Mapping[str, str]) -> str:
  """Summarises a part: its only value, or a checksum of all of them.

  >>> summary({'arc': '8 examples, 1a2b'})
  '8 examples, 1a2b'
  """
  if len(part) == 1:
    return next(iter(part.values()))
  return f'{zlib.crc32(json.dumps(sorted(part.items())).encode()):08x}'


def differences(there: Identity, here: Identity) -> list[str]:
  """A line for each part that both have but that differs.

  >>> there = {'tokenizer': {'vocabulary': 'aa'}}
  >>> differences(there, {'tokenizer': {'vocabulary': 'bb'}})
  ["tokenizer: there 'aa', here 'bb' ('vocabulary')"]
  """
  lines = []
  for name in sorted(there.keys() & here.keys()):
    old, new = there[name], here[name]
    other = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    if other:
      more = f' and {len(other) - 1} more' if other[1:] else ''
      both = _both(summary(old), summary(new))
      lines.append(f'{name}: {both} ({values.shown(other[0])}{more})')
  return lines


def _both(there: str, here: str) -> str:
  return f'there {values.shown(there)}, here {values.shown(here)}'


def read(folder: pathlib.Path) -> tuple[dict[str, str], Identity]:
  """Reads settings and identity of the run in a folder; empty if unknown.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is damaged.
  """
  path = folder / run_directory.IDENTITY
  if not path.exists():
    return {}, {}
  try:
    found = read_json(path)
    settings = run_files.texts(found.pop('settings', {}), f'{path}: settings')
    for name, part in found.items():
      run_files.texts(part, f'{path}: {values.shown(name)}')
  except ValueError as error:
    raise ValueError(
      f'{error}. The file says what the run in MODEL_DIR={folder} is made of. '
      'Restore it; or delete it if you know that base weights, tokenizer and '
      'data are those of that run: it is then written anew'
    ) from None
  return settings, found


def check(
  folder: pathlib.Path, settings: Mapping[str, str], here: Identity
) -> None:
  """Writes the identity of a new run, or checks that of an existing run.

  Args:
    folder: MODEL_DIR.
    settings: the settings of the run, stored as a copy.
    here: the identity of this start.

  Raises:
    ValueError: the existing run was made of something else; the message says
      what differs.
  """
  path = folder / run_directory.IDENTITY
  _, there = read(folder)
  if run_directory.has_results(folder):
    if not there:
      print(
        f'{path} is missing: whether base weights, tokenizer and data are '
        'those that the run began with cannot be checked. It is written now.',
        flush=True,
      )
    if lines := differences(there, here):
      raise ValueError(
        f'MODEL_DIR={folder} holds a run of something else:\n  '
        + '\n  '.join(lines)
        + '\nBring back what the run began with, or choose another MODEL_DIR. '
        'If the difference is meant (another machine may round the weights of '
        f'a quantized base otherwise), delete {path}'
      )
    here = here | there
  run_directory.write_json(path, {'settings': dict(settings), **here})


def check_evaluation(
  path: pathlib.Path, result: Mapping[str, Any], here: Mapping[str, str]
) -> None:
  """Raises ValueError if a stored evaluation is of something else.

  Args:
    path: the file of the evaluation.
    result: the content of the file.
    here: the `made_of` of this start.
  """
  there = result.get('made_of') or {}
  lines = [
    f'{name}: {_both(there[name], here[name])}'
    for name in sorted(there.keys() & here.keys())
    if there[name] != here[name]
  ]
  if lines:
    raise ValueError(
      f'{path} is an evaluation of something else:\n  '
      + '\n  '.join(lines)
      + '\nBring back what it was made with, choose another MODEL_DIR, or '
      'delete the file'
    )
