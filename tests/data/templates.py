"""Chat templates as published models have them, reduced to what matters.

Each writes what the model's own one writes for a system turn, turns of user and
assistant, and the header that opens an answer. Behind each stand its special
tokens, and what is read and what is said for 'Hi' and 'yes'.
"""

from typing import NamedTuple

from lora_opt.data.tokenizer import Tokenizer


class Published(NamedTuple):
  template: str
  tokens: tuple[str, ...]  # bos and eos first, '' for none
  prompt: str
  completion: str
  system: bool = True  # whether there may be a system turn


def chatml(header='', lead='', default=''):
  """ChatML and what became of it."""
  return (
    header
    + '{% for message in messages %}{% if loop.first and message.role != '
    f"'system' %}}{{{{ '{default}' }}}}{{% endif %}}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' %}" + lead + '{% endif %}'
    "{{ message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
  )


CHATML = ('', '<|im_end|>', '<|im_start|>')
READ = '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
THOUGHTS = '<think>\n\n</think>\n\n'
# Qwen 3 keeps thoughts of the last answer alone, and writes empty ones there.
QWEN3 = r"""
{%- set ns = namespace(last=0) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role != 'assistant' %}
{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- else %}
{%- set thoughts = '' %}
{%- if '</think>' in content %}
{%- set thoughts = content.split('</think>')[0].split('<think>')[-1] %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{%- if loop.index0 > ns.last %}
{{- '<|im_start|>assistant\n<think>\n' + thoughts.strip('\n') }}
{{- '\n</think>\n\n' + content.lstrip('\n') }}
{%- else %}
{{- '<|im_start|>assistant\n' + content }}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}
"""
LLAMA2 = (
  "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
  "{% set told = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
  "{% else %}{% set rest = messages %}{% set told = '' %}{% endif %}"
  "{% for message in rest %}{% if (message.role == 'user') != "
  "(loop.index0 % 2 == 0) %}{{ raise_exception('user and assistant must "
  "alternate') }}{% endif %}{% set text = (told if loop.first else '') + "
  "message.content.strip() %}{% if message.role == 'user' %}"
  "{{ bos_token + '[INST] ' + text + ' [/INST]' }}{% else %}"
  "{{ ' ' + text + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
  "{{ bos_token }}{%% for message in messages %%}{%% if message.role == 'user' "
  "%%}{{ '[INST] ' + message.content + '%s[/INST]' }}{%% elif message.role == "
  "'assistant' %%}{{ '%s' + message.content + eos_token%s }}{%% else %%}"
  "{{ raise_exception('only user and assistant') }}{%% endif %%}{%% endfor %%}"
)
LLAMA3 = (
  '{% for message in messages %}{% set content = '
  "'<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + "
  "message.content | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
  '{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant"
  "<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA = (
  "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception("
  "'System role not supported') }}{% endif %}{% for message in messages %}"
  "{% set role = 'model' if message.role == 'assistant' else message.role %}"
  "{{ '<start_of_turn>' + role + '\\n' + message.content | trim + "
  "'<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<start_of_turn>model\\n' }}{% endif %}"
)
ZEPHYR = (
  "{% for message in messages %}\n{{ '<|' + message.role + '|>\\n' + "
  'message.content + eos_token }}\n{% if loop.last and add_generation_prompt '
  "%}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
PHI3 = (
  "{% for message in messages %}{{ '<|' + message.role + '|>\\n' + "
  "message.content + '<|end|>\\n' }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Its answers begin with thoughts, which a conversation leaves out.
R1 = (
  "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
  "{{ '<|User|>' + message.content }}{% elif message.role == 'assistant' %}"
  "{{ '<|Assistant|>' + message.content.split('</think>')[-1] + eos_token }}"
  '{% else %}{{ message.content }}{% endif %}{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)
VICUNA = (
  "{% for message in messages %}{% if message.role == 'system' %}"
  "{{ message.content + ' ' }}{% elif message.role == 'user' %}"
  "{{ 'USER: ' + message.content + ' ' }}{% else %}"
  "{{ 'ASSISTANT: ' + message.content + eos_token }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# The template marks the assistant's words itself.
MARKED = (
  "{% for message in messages %}{% if message.role == 'assistant' %}"
  "{{ '<|im_start|>assistant\\n' }}{% generation %}{{ message.content + "
  "'<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}{{ '<|im_start|>' + "
  "message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endif %}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
  '{% endif %}'
)
PARTS = (
  "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
  "{% for part in message.content %}{% if part.type == 'text' %}"
  "{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# The last answer ends otherwise than those before it, and says where it goes.
CHANNELS = (
  "{% for message in messages %}{{ '<|start|>' + message.role }}"
  "{% if message.role == 'assistant' %}{{ '<|channel|>final' }}{% endif %}"
  "{{ '<|message|>' + message.content }}{% if message.role == 'assistant' and "
  "loop.last %}{{ '<|return|>' }}{% else %}{{ '<|end|>' }}{% endif %}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}"
  '{% endif %}'
)
BARE = '{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}'

TEMPLATES = {
  'chatml': Published(chatml(), CHATML, READ, 'yes<|im_end|>'),
  'chatml without tokens': Published(chatml(), ('', ''), READ, 'yes<|im_end|>'),
  'smollm2': Published(
    chatml(default='<|im_start|>system\\nBe kind<|im_end|>\\n'),
    CHATML,
    '<|im_start|>system\nBe kind<|im_end|>\n' + READ,
    'yes<|im_end|>',
  ),
  'qwen3': Published(QWEN3, CHATML, READ, THOUGHTS + 'yes<|im_end|>'),
  'llama2': Published(
    LLAMA2, ('<s>', '</s>'), '<s>[INST] Hi [/INST]', ' yes </s>'
  ),
  'mistral v1': Published(
    MISTRAL % (' ', '', " + ' '"),
    ('<s>', '</s>'),
    '<s>[INST] Hi [/INST]',
    'yes</s>',
    system=False,
  ),
  'mistral v3': Published(
    MISTRAL % ('', ' ', ''),
    ('<s>', '</s>', '[INST]', '[/INST]'),
    '<s>[INST] Hi[/INST]',
    ' yes</s>',
    system=False,
  ),
  'llama3': Published(
    LLAMA3,
    ('<s>', '</s>', '<|eot_id|>', '<|start_header_id|>', '<|end_header_id|>'),
    '<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\n',
    'yes<|eot_id|>',
  ),
  'gemma': Published(
    GEMMA,
    ('<bos>', '<eos>', '<start_of_turn>', '<end_of_turn>'),
    '<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n',
    'yes<end_of_turn>',
    system=False,
  ),
  'zephyr': Published(
    ZEPHYR, ('<s>', '</s>'), '<|user|>\nHi</s>\n<|assistant|>\n', 'yes</s>'
  ),
  'phi3': Published(
    PHI3,
    ('', '<|endoftext|>', '<|end|>', '<|user|>', '<|assistant|>'),
    '<|user|>\nHi<|end|>\n<|assistant|>\n',
    'yes<|end|>',
  ),
  'deepseek r1': Published(
    R1,
    ('<s>', '</s>', '<|User|>', '<|Assistant|>'),
    '<s><|User|>Hi<|Assistant|>',
    'yes</s>',
  ),
  'vicuna': Published(
    VICUNA, ('<s>', '</s>'), 'USER: Hi ASSISTANT:', ' yes</s>'
  ),
  'gpt-oss': Published(
    CHANNELS,
    ('', '<|return|>', '<|start|>', '<|end|>', '<|message|>', '<|channel|>'),
    '<|start|>user<|message|>Hi<|end|><|start|>assistant',
    '<|channel|>final<|message|>yes<|return|>',
  ),
  'marked': Published(MARKED, CHATML, READ, 'yes<|im_end|>'),
  'parts': Published(PARTS, CHATML, READ, 'yes<|im_end|>'),
  'without a header': Published(
    BARE, ('', '<eos>'), '<user>Hi<eos><assistant>', 'yes<eos>'
  ),
  'without an end': Published(
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
    ('', '<eos>'),
    'user: Hi\nassistant:',
    ' yes<eos>',
  ),
}


def tokenizer_of(name: str) -> Tokenizer:
  """One token a byte, the special tokens behind, and the template."""
  published = TEMPLATES[name]
  plain = Tokenizer.byte_level()
  core = type(plain.core)(plain.core.model)
  core.pre_tokenizer, core.decoder = (
    plain.core.pre_tokenizer,
    plain.core.decoder,
  )
  core.add_special_tokens([token for token in published.tokens if token])
  bos, eos = (
    core.token_to_id(token) if token else None for token in published.tokens[:2]
  )
  return Tokenizer(core, bos, eos, chat_template=published.template)
