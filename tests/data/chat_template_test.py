"""Chat templates: which one a folder means, and what one may do."""

import json
import time

import pytest

from lora_opt.data import chat_rendering
from lora_opt.data.chat_template import ChatTemplate
from lora_opt.data.tokenizer import Tokenizer

HI = [{'role': 'user', 'content': 'Hi'}]


@pytest.fixture
def folder(tmp_path):
  Tokenizer.byte_level().save(tmp_path)
  return tmp_path


def put(folder, template):
  file = folder / 'tokenizer_config.json'
  settings = json.loads(file.read_text())
  file.write_text(json.dumps(settings | {'chat_template': template}))


def said(folder):
  return Tokenizer.from_folder(folder).apply_chat(HI)


def test_a_file_goes_before_the_settings(folder):
  put(folder, 'settings')
  assert said(folder) == 'settings'
  (folder / 'chat_template.jinja').write_text('file é', encoding='utf-8')
  assert said(folder) == 'file é'


@pytest.mark.parametrize('make', [list, dict])
def test_of_several_the_default_is_taken(folder, make):
  named = {'tool_use': 'tools', 'default': 'default'}
  if make is list:
    named = [{'name': n, 'template': t} for n, t in named.items()]
  put(folder, named)
  assert said(folder) == 'default'


def test_templates_of_other_names_are_not_taken(folder):
  put(folder, [{'name': 'tool_use', 'template': 'tools'}])
  with pytest.raises(ValueError, match="'tool_use' and none with the name"):
    said(folder)
  others = folder / 'additional_chat_templates'
  others.mkdir()
  (others / 'rag.jinja').write_text('rag')
  with pytest.raises(ValueError, match="additional_chat_templates has .*'rag'"):
    said(folder)
  (folder / 'chat_template.jinja').write_text('default')
  assert said(folder) == 'default'


@pytest.mark.parametrize(
  'template', [3, [3], [{'name': 'a'}], {'default': None}, [{'template': 'x'}]]
)
def test_what_is_no_template_is_refused_by_name(folder, template):
  put(folder, template)
  with pytest.raises(ValueError, match=r'tokenizer_config.json: chat_template'):
    Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
  ('template', 'reason'),
  [
    ('{% for %}', 'does not work: TemplateSyntaxError'),
    ('{{ messages.nothing.at.all }}', 'does not work: UndefinedError'),
    ("{{ raise_exception('no\x1b[2Jway') }}", r'refuses the messages: no\\x1b'),
    ("{{ 'a' * 5000000000 }}", 'more than 1024 MiB'),
    ('{{ [0] * 500000000 }}', 'more than 1024 MiB'),
    ("{% for i in range(9999) %}{{ 'a' * 99999 }}{% endfor %}", 'characters'),
    ('{{ 2 ** (2 ** 40) }}', 'took more than|MiB|does not work'),
    ("{{ '\\ud800' }}", 'half a surrogate'),
    ('{{ ' + '(' * 9999 + ')' * 9999 + ' }}', 'Recursion|ended'),
    ("{{ ''.__class__.__mro__ }}", 'unsafe'),
    ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", 'unsafe'),
    ("{% set ns = namespace(__class__=1) %}", 'may not hold'),
    ("{{ messages.append(1) }}", 'unsafe'),
    ("{% include 'x' %}", 'does not work'),
  ],
)  # fmt: skip
def test_limits_and_errors_name_the_file(template, reason):
  start = time.monotonic()
  with pytest.raises(ValueError, match=reason) as caught:
    ChatTemplate(template, 'model/a.jinja').render([(HI, False)], {})
  assert str(caught.value).startswith('model/a.jinja')
  assert '\x1b' not in str(caught.value)
  assert time.monotonic() - start < 30
  # And the next one works.
  assert ChatTemplate('{{ 1 }}').render([(HI, False)], {}) == ['1']


def test_a_loop_without_an_end_is_ended():
  loops = ''.join(f'{{% for a{i} in range(99999) %}}' for i in range(3))
  template = ChatTemplate(loops + '{% endfor %}' * 3, 'model/a.jinja')
  start = time.monotonic()
  with pytest.raises(ValueError, match=r'a.jinja .*took more than 5 seconds'):
    template.render([(HI, False)], {})
  assert time.monotonic() - start < 30


def test_the_date_can_be_held_still(monkeypatch):
  monkeypatch.setenv('SOURCE_DATE_EPOCH', '0')
  template = "{{ strftime_now('%d %b %Y') }}"
  assert chat_rendering.render(template, [(HI, False)], {}, False) == [
    '01 Jan 1970'
  ]
