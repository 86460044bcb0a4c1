"""config.json, read so that no setting goes unnoticed."""

import pathlib
from collections.abc import Iterable
from typing import Any

from lora_opt.models.pretrained.files import read_json

# Settings that say nothing about the forward pass: provenance, generation,
# initialisation, what transformers should return, and ids of special tokens
# (ours come from the tokenizer).
HARMLESS = frozenset(
  """
  _name_or_path _attn_implementation _commit_hash architectures auto_map
  bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
  decoder_start_token_id diversity_penalty do_sample dtype early_stopping
  encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
  finetuning_task forced_bos_token_id forced_eos_token_id
  gradient_checkpointing id2label initializer_range keys_to_ignore_at_inference
  label2id length_penalty max_length min_length model_type no_repeat_ngram_size
  num_beam_groups num_beams num_labels num_return_sequences output_attentions
  output_hidden_states output_past output_scores pad_token_id prefix
  problem_type remove_invalid_values repetition_penalty return_dict
  return_dict_in_generate sep_token_id suppress_tokens task_specific_params
  temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
  transformers.js_config transformers_version typical_p use_cache
  """.split()  # noqa: SIM905
)

_REQUIRED = object()


class ConfigFile:
  """The settings of a config.json, with a record of those asked for.

  A null counts as absent, as it does in transformers.

  Attributes:
    path: The file, for messages.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it is not JSON.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    found = read_json(path)
    self._settings = {k: v for k, v in found.items() if v is not None}
    self._nulls = found.keys() - self._settings.keys()
    self._asked = set()

  def get(self, key: str, default: Any = _REQUIRED) -> Any:
    """Returns a setting.

    Raises:
      ValueError: If it is absent and there is no default.
    """
    self._asked.add(key)
    value = self._settings.get(key, default)
    if value is _REQUIRED:
      raise ValueError(f'{self.path} has no {key!r}')
    return value

  def is_null(self, key: str) -> bool:
    """Whether the file says null, where that is not the same as nothing."""
    return key in self._nulls

  def expect(self, key: str, *allowed: Any) -> None:
    """Raises ValueError if a setting is there and none of the allowed ones."""
    value = self.get(key, allowed[0])
    if value not in allowed:
      self.refuse(key, value, allowed)

  def choose(self, key: str, choices: dict, default: Any = _REQUIRED) -> Any:
    """Returns what a setting stands for; ValueError if it is not listed."""
    value = self.get(key, default)
    if value not in choices:
      self.refuse(key, value, choices)
    return choices[value]

  def refuse(self, key: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raises the ValueError of a setting that is not supported."""
    raise ValueError(
      f'{self.path}: {key}={value!r} is not supported; supported: '
      f'{", ".join(map(repr, allowed))}'
    )

  def check_all_asked(self, harmless: Iterable[str] = ()) -> None:
    """Raises ValueError for a setting that nobody asked for.

    Args:
      harmless: Names that do not change the computation, besides `HARMLESS`.
    """
    unknown = self._settings.keys() - self._asked - {*HARMLESS, *harmless}
    if unknown:
      found = ', '.join(f'{k}={self._settings[k]!r}' for k in sorted(unknown))
      raise ValueError(
        f'{self.path} has settings unknown here, which may change what the '
        f'model computes: {found}; delete those that do not matter'
      )
