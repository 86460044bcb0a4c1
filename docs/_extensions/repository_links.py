"""Links from pages to files of the repository.

Pages link to other files relatively, such as ../experiments/glue/README.md, so
that the links hold on GitHub and in a checkout. In the site they lead to the
repository. A file that is not in the repository is a warning, and so an error
of the build.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from sphinx.application import Sphinx

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / 'docs'
# [text](target) and [label]: target, with a target that begins with a dot.
LINK = re.compile(r'(\]\(|^ {0,3}\[[^\]\n]+\]: +)(\.{1,2}/[^\s)]+)', re.M)


def tracked() -> set[pathlib.Path]:
  """All files of the repository and their folders.

  Outside a git checkout, such as in an unpacked archive: whatever is there.
  """
  listed = subprocess.run(
    ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  if listed.returncode:
    return {ROOT, *ROOT.rglob('*')}
  files = {ROOT / name for name in listed.stdout.split('\0') if name}
  files = {path for path in files if path.exists()}
  return files | {folder for path in files for folder in path.parents}


def links(text: str) -> list[str]:
  """The relative targets of a page that begin with a dot.

  >>> links('[a](../setup.py#x), [b](tasks.md) and ![c](./c.png)')
  ['../setup.py#x', './c.png']
  """
  return [match[2] for match in LINK.finditer(text)]


def resolve(page: pathlib.Path, target: str) -> pathlib.Path:
  """The file that a link of a page means."""
  return (page.parent / target.partition('#')[0]).resolve()


def _to_repository(app: Sphinx, docname: str, source: list[str]) -> None:
  from sphinx.util import logging  # not in the tests' environment

  page = pathlib.Path(app.env.doc2path(docname))
  root = app.config.repository_links_url
  branch = app.config.repository_links_branch

  def rewritten(match: re.Match) -> str:
    before, target = match.groups()
    path = resolve(page, target)
    if path.is_relative_to(DOCS):
      return match[0]  # MyST's own
    if path not in app.repository_files:
      logging.getLogger(__name__).warning(
        'the repository has no file %s', target, location=docname
      )
      return match[0]
    kind = 'tree' if path.is_dir() else 'blob'
    _, mark, anchor = target.partition('#')
    name = path.relative_to(ROOT).as_posix()
    return f'{before}{root}/{kind}/{branch}/{name}{mark}{anchor}'

  source[0] = LINK.sub(rewritten, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
  """Connects this to Sphinx."""
  app.add_config_value('repository_links_url', '', 'env', str)
  app.add_config_value('repository_links_branch', 'main', 'env', str)
  app.repository_files = tracked()
  app.connect('source-read', _to_repository)
  return {'parallel_read_safe': True}
