"""What is collected here."""

import importlib.util

# Modules that need a library which the default tests do without.
LIBRARY_OF = {
  'axlearn_layers': 'axlearn',
  'gemma_linen': 'gemma',
  'keras_gemma': 'keras',
  'levanter_gpt2': 'levanter',
  'lorax_dict': 'lorax',
  'maxtext_decoder': 'maxtext',
  'peft_torch': 'peft',
  'skyrl_qwen3': 'skyrl',
  'tunix_gemma': 'tunix',
  'tunix_moe': 'tunix',
}
collect_ignore = [
  f'layouts/{module}.py'
  for module, library in LIBRARY_OF.items()
  if importlib.util.find_spec(library) is None
]
