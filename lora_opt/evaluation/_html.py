"""From a template beside this file to a page that is written whole."""

from pathlib import Path
from typing import Any

import jinja2

from lora_opt import writing
from lora_opt.evaluation import _text


def write(path: Path, template: str, **values: Any) -> Path:
  """Fills a template in and writes it; the file is never half a page.

  Args:
    path: of the page.
    template: its name.
    **values: what it shows; every one that it names must be there.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['shorten'] = _text.shorten
  text = environment.get_template(template).render(**values)
  writing.write_text(path, text)
  return path
