"""Writes HTML pages from the templates next to this file."""

from pathlib import Path
from typing import Any

import jinja2

from lora_opt import writing
from lora_opt.evaluation import _text


def write(path: Path, template: str, **values: Any) -> Path:
  """Renders a template and writes the page atomically.

  Args:
    path: the file of the page.
    template: the file name of the template.
    **values: the template's variables. All that it uses are required.
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
