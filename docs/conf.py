"""The documentation site; launch/docs.sh builds it."""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent / '_extensions'))

# Where the repository is. The one place to change; tests/docs_test.py says
# which notebooks follow. GitHub's own builds know it without being told.
REPOSITORY = 'https://github.com/your_organisation/lora_opt'
BRANCH = 'main'
if 'GITHUB_REPOSITORY' in os.environ:
  server = os.environ.get('GITHUB_SERVER_URL', 'https://github.com')
  REPOSITORY = f'{server}/{os.environ["GITHUB_REPOSITORY"]}'

project = 'lora_opt'
author = 'The lora_opt authors'
copyright = author
html_title = project

extensions = [
  'myst_nb',
  'sphinx.ext.autodoc',
  'sphinx.ext.autosummary',
  'sphinx.ext.napoleon',
  'sphinx_copybutton',
  # Ours, in _extensions.
  'colab_badge',
  'docstrings',
  'repository_links',
]
exclude_patterns = ['_build', '_extensions']
repository_links_url = REPOSITORY
repository_links_branch = BRANCH

# Pages.
myst_enable_extensions = ['colon_fence', 'deflist']
myst_heading_anchors = 4
highlight_language = 'text'  # most blocks without a language are output
suppress_warnings = ['misc.highlighting_failure']

# Notebooks: an exception ends the build.
nb_execution_mode = os.environ.get('NOTEBOOKS', 'force')
nb_execution_raise_on_error = True
nb_execution_timeout = 1200  # seconds, of one cell on a busy machine
nb_execution_in_temp = True  # they write files
nb_merge_streams = True
nb_output_stderr = 'remove'  # progress

# Docstrings. What stands in single backticks is linked where it can be.
default_role = 'py:obj'
autodoc_member_order = 'bysource'
autodoc_preserve_defaults = True
autodoc_typehints_format = 'short'
autosummary_generate = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 72
napoleon_custom_sections = [
  ('Attributes', 'params_style'),
  ('Raises at first use', 'params_style'),
]
napoleon_numpy_docstring = False
napoleon_use_rtype = False
nitpick_ignore_regex = [
  # Single backticks, and types in signatures: many are of other libraries, or
  # are ours and not part of the reference.
  ('py:(obj|class|data|exc)', '(?s).*'),
]

html_theme = 'furo'
html_static_path = ['_static']
html_css_files = ['site.css']
html_theme_options = {
  'source_repository': REPOSITORY,
  'source_branch': BRANCH,
  'source_directory': 'docs/',
}
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = r'>>> |\.\.\. |\$ '
copybutton_prompt_is_regexp = True
