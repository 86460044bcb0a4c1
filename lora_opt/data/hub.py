"""Models, adapters and data sets by their name on the Hugging Face Hub.

What is fetched lies in the hub's own cache (HF_HOME) and is fetched once; a
token comes from HF_TOKEN or `hf auth login`, and HF_HUB_OFFLINE=1 asks nobody.
A download that was cut off goes on where it stopped.
"""

import os
import pathlib
import re
from collections.abc import Sequence

from lora_opt import progress
from lora_opt.buckets.paths import is_bucket
from lora_opt.reading import own_files
from lora_opt.reading.copies import local_copy

_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?')
# Of a folder itself; the same in folders below are other forms of a model.
SETTINGS = ('*.json', '*.jinja', '*.txt', '*.model')
SAFETENSORS = ('*.safetensors',)
PICKLES = ('pytorch_model*.bin', 'adapter_model.bin')
_WEIGHTS = {
  'unet': 'diffusion_pytorch_model',
  'vae': 'diffusion_pytorch_model',
  'text_encoder': 'model',
}
_PARTS = (*_WEIGHTS, 'scheduler', 'tokenizer')
_ENDS = ('.parquet', '-*.parquet')
_OTHER_FORMS = ('*/*', 'consolidated*')


def model_folder(path: str | os.PathLike) -> pathlib.Path:
  """The local folder of a model or an adapter.

  Args:
    path: a folder, or org/name on the hub; org/name@revision for a branch, a
      tag or a commit. A folder comes first, then our own configs/. One in a
      bucket, gs:// or s3://, is copied.

  Raises:
    FileNotFoundError: there is no such folder, nor such a name.
    OSError: the hub or the bucket cannot be reached, and the cache does not
      have it.
  """
  if is_bucket(path):
    return local_copy(path, what='folder')
  path = own_files.found(pathlib.Path(path))
  if not is_name(path):
    return path
  folder = fetch(path, 'model', (*SETTINGS, *SAFETENSORS), _OTHER_FORMS)
  if not any(folder.glob(SAFETENSORS[0])):
    folder = fetch(path, 'model', (*SETTINGS, *PICKLES), _OTHER_FORMS)
  return folder


def pipeline_folder(
  path: str | os.PathLike, variant: str | None
) -> pathlib.Path:
  """The local folder of a text-to-image model, which has folders of parts.

  Args:
    path: as of `model_folder`.
    variant: of the weights, such as 'fp16'; None for those without such a word.

  Raises: as `model_folder`.
  """
  if is_bucket(path):
    return local_copy(path, what='folder')
  path = own_files.found(pathlib.Path(path))
  if not is_name(path):
    return path
  end = '.safetensors' if variant is None else f'.{variant}.safetensors'
  weights = [f'{part}/{name}{end}' for part, name in _WEIGHTS.items()]
  settings = [f'{part}/{name}' for part in _PARTS for name in SETTINGS]
  return fetch(path, 'model', ('model_index.json', *settings, *weights))


def plain_name(path: str | os.PathLike) -> str:
  """What a model is called: its path, or its name without a revision.

  >>> plain_name('org/name@v1'), plain_name('/models/a@b')
  ('org/name', '/models/a@b')
  """
  text = os.fspath(path)
  return text.partition('@')[0] if is_name(pathlib.Path(path)) else text


def data_folder(path: pathlib.Path, split: str) -> pathlib.Path:
  """The local folder of a data set, of which the hub has parquet files.

  Args:
    path: a folder, or a name as of `model_folder`.
    split: whose files are needed; their names begin with it.

  Raises: as `model_folder`.
  """
  if not is_name(path):
    return path
  files = [f'{folder}{split}{end}' for folder in ('', 'data/') for end in _ENDS]
  return fetch(path, 'dataset', files)


def is_name(path: pathlib.Path) -> bool:
  """Whether a path that is not here is to be looked for on the hub.

  >>> is_name(pathlib.Path('HuggingFaceTB/SmolLM2-135M-Instruct'))
  True
  >>> is_name(pathlib.Path('/models/gemma')), is_name(pathlib.Path('../gemma'))
  (False, False)

  Nor is what would lie in a folder that is here: runs/mine, where there are
  runs, is a mistake that nobody elsewhere need know of.
  """
  if path.exists() or not _NAME.fullmatch(path.as_posix()):
    return False
  return not pathlib.Path(path.parts[0]).is_dir()


def fetch(
  name: pathlib.Path,
  kind: str,
  patterns: Sequence[str],
  without: Sequence[str] = (),
) -> pathlib.Path:
  """The folder in the cache that has a name's files, fetched if need be.

  Args:
    name: org/name or org/name@revision.
    kind: 'model' or 'dataset'.
    patterns: which files.
    without: which of them not.

  Raises: as `model_folder`.
  """
  # Here, since it takes a while and folders do not need it.
  import huggingface_hub
  from huggingface_hub import errors

  repository, _, revision = name.as_posix().partition('@')
  try:
    # On a terminal the hub's own bars say it.
    with progress.waiting(f'downloading {repository}', on_terminal=False):
      return pathlib.Path(
        huggingface_hub.snapshot_download(
          repository,
          repo_type=kind,
          revision=revision or None,
          allow_patterns=list(patterns),
          ignore_patterns=list(without),
        )
      )
  except errors.GatedRepoError as error:
    raise FileNotFoundError(
      f'{repository} is gated: accept its terms on its page of the hub, and '
      'set HF_TOKEN to a token of your account'
    ) from error
  except errors.RevisionNotFoundError as error:
    raise FileNotFoundError(
      f'{repository} has no revision {revision!r} on the hub'
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise FileNotFoundError(
      f'no folder {name}, and no {kind} {repository} on the hub; if it is '
      'private, set HF_TOKEN'
    ) from error
  except errors.LocalEntryNotFoundError as error:
    raise OSError(
      f'no folder {name}, and the hub cannot be reached ({_cause(error)}); its '
      f'cache does not hold all that is needed of {repository}'
    ) from error


def _cause(error: Exception) -> str:
  while error.__cause__ is not None:
    error = error.__cause__
  return (str(error).splitlines() or [type(error).__name__])[0][:200]
