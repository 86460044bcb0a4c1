"""An "Open in Colab" badge below the title of every notebook."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from sphinx.application import Sphinx

# Drawn here, so that reading a page asks no other site for a picture.
BADGE = (
  '<p><a class="colab-badge" href="{url}" target="_blank" rel="noopener">'
  '<span>Open in</span><span>Colab</span></a></p>'
)


def _add_badge(app: Sphinx, docname: str, source: list[str]) -> None:
  if not str(app.env.doc2path(docname)).endswith('.ipynb'):
    return
  repository = app.config.repository_links_url.removeprefix('https://github.')
  url = (
    'https://colab.research.google.com/github/'
    f'{repository.partition("/")[2]}/blob/'
    f'{app.config.repository_links_branch}/docs/{docname}.ipynb'
  )
  notebook = json.loads(source[0])
  title, *rest = ''.join(notebook['cells'][0]['source']).split('\n', 1)
  notebook['cells'][0]['source'] = '\n'.join(
    [title, '', BADGE.format(url=url), '', *rest]
  )
  source[0] = json.dumps(notebook)


def setup(app: Sphinx) -> dict[str, bool]:
  """Connects this to Sphinx."""
  app.connect('source-read', _add_badge)
  return {'parallel_read_safe': True}
