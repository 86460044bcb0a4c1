"""Models, adapters and data sets by their name on the Hugging Face Hub.

Files are downloaded once and kept in the hub's own cache (HF_HOME). The access
token comes from HF_TOKEN or `hf auth login`. HF_HUB_OFFLINE=1 prevents all
downloads. An interrupted download resumes where it stopped.
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
# Only at the top of a folder: subfolders hold other formats of a model.
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
      tag or a commit. A local folder takes precedence, then the configs/ that
      come with lora_opt, then the hub. A folder in a bucket, gs:// or s3://,
      is copied.

  Returns:
    The folder. What cannot be a name on the hub is returned as it is, even if
    it does not exist.

  Raises:
    FileNotFoundError: there is no such name on the hub.
    OSError: the hub or the bucket cannot be reached, and the cache does not
      have the files.
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
  """The local folder of a text-to-image model, with a subfolder for each part.

  Args:
    path: as for `model_folder`.
    variant: the variant of the weights, such as 'fp16'; None for the files
      without a variant in their names.

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
  """The name of a model: its path, or its hub name without the revision.

  >>> plain_name('org/name@v1'), plain_name('/models/a@b')
  ('org/name', '/models/a@b')
  """
  text = os.fspath(path)
  return text.partition('@')[0] if is_name(pathlib.Path(path)) else text


def data_folder(path: pathlib.Path, split: str) -> pathlib.Path:
  """The local folder of a data set that the hub holds as parquet files.

  Args:
    path: a folder, or a name as for `model_folder`.
    split: the split that is needed; the names of its files begin with it.

  Raises: as `model_folder`.
  """
  if not is_name(path):
    return path
  files = [f'{folder}{split}{end}' for folder in ('', 'data/') for end in _ENDS]
  return fetch(path, 'dataset', files)


def is_name(path: pathlib.Path) -> bool:
  """Whether a path should be looked up on the hub: a name that is not local.

  >>> is_name(pathlib.Path('HuggingFaceTB/SmolLM2-135M-Instruct'))
  True
  >>> is_name(pathlib.Path('/models/gemma')), is_name(pathlib.Path('../gemma'))
  (False, False)

  A path in an existing local folder is not a name either: if there is a folder
  runs, then runs/mine is a mistake, and should not be sent to the hub.
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
  """The cache folder with the files of a name, downloaded if necessary.

  Args:
    name: org/name or org/name@revision.
    kind: 'model' or 'dataset'.
    patterns: patterns of the files to fetch.
    without: patterns of the files to leave out.

  Raises: as `model_folder`.
  """
  # Imported here, since it is slow and local folders do not need it.
  import huggingface_hub
  from huggingface_hub import errors

  repository, _, revision = name.as_posix().partition('@')
  try:
    # On a terminal the hub shows its own progress bars.
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
