"""Reads config.json so that no setting is overlooked or misread."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn

from lora_opt.reading import values
from lora_opt.reading.json_text import read_json
from lora_opt.reading.values import shown

# Settings that do not affect the forward pass: provenance, generation,
# initialisation, what transformers should return, and ids of special tokens
# (ours come from the tokenizer).
HARMLESS = frozenset(
  """
  _name_or_path _attn_implementation _attn_implementation_autoset _commit_hash
  _flash_attn_2_enabled _num_labels architectures attn_implementation
  auto_map bad_words_ids begin_suppress_tokens bos_token_id
  chunk_size_feed_forward
  decoder_start_token_id diversity_penalty do_sample dtype early_stopping
  encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
  finetuning_task forced_bos_token_id forced_eos_token_id
  gradient_checkpointing id2label initializer_range keys_to_ignore_at_inference
  label2id length_penalty max_length min_length model_max_length model_type
  neftune_noise_alpha no_repeat_ngram_size
  num_beam_groups num_beams num_labels num_return_sequences output_attentions
  output_hidden_states output_past output_scores pad_token_id prefix
  problem_type remove_invalid_values repetition_penalty return_dict
  return_dict_in_generate sep_token_id suppress_tokens task_specific_params
  temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
  transformers.js_config transformers_version typical_p unsloth_fixed
  unsloth_version use_cache use_return_dict
  """.split()  # noqa: SIM905
)

# Settings of parts that our models lack, with the value for an absent part.
_ABSENT = {
  'add_cross_attention': False,
  'is_decoder': False,
  'is_encoder_decoder': False,
  'pruned_heads': {},
  'tie_encoder_decoder': False,
  'use_bfloat16': False,
}

_REQUIRED = object()
_SHOWN = 10  # number of unknown settings named in an error


class Settings:
  """A JSON object of settings that records which of them were asked for.

  Each setting is asked for by the method for its type. As in transformers, null
  is not a value: it counts as absent only if the method is asked for that.

  Attributes:
    place: The file and the object's place in it, for messages.
  """

  def __init__(self, place: str, found: Mapping[str, Any]):
    self.place = place
    self._settings = dict(found)
    self._asked: set[str] = set()

  def __contains__(self, key: str) -> bool:
    return self._settings.get(key) is not None

  def is_null(self, key: str) -> bool:
    """Whether the setting is null, as opposed to absent."""
    return self._settings.get(key, 0) is None

  def integer(
    self,
    key: str,
    default: Any = _REQUIRED,
    *,
    least: int | None = 1,
    most: int | None = None,
    null: bool = False,
  ) -> Any:
    """Returns a whole number within bounds.

    Args:
      key: Name of the setting.
      default: Returned if the setting is absent. Without a default, the setting
        is required.
      least: The smallest value allowed.
      most: The largest value allowed.
      null: Whether null counts as absent.

    Raises:
      ValueError: It is absent and has no default, or is not such a number.
    """
    return self._read(key, default, null, values.integer, least, most)

  def number(
    self,
    key: str,
    default: Any = _REQUIRED,
    *,
    above: float | None = 0,
    least: float | None = None,
    most: float | None = None,
    null: bool = False,
  ) -> Any:
    """Returns a finite number; `above` is an exclusive lower bound."""
    return self._read(key, default, null, values.number, least, most, above)

  def boolean(
    self, key: str, default: Any = _REQUIRED, *, null: bool = False
  ) -> Any:
    """Returns a boolean; see `integer`."""
    return self._read(key, default, null, values.boolean)

  def text(
    self, key: str, default: Any = _REQUIRED, *, null: bool = False
  ) -> Any:
    """Returns a string; see `integer`."""
    return self._read(key, default, null, values.text)

  def items(
    self, key: str, default: Any = _REQUIRED, *, null: bool = False
  ) -> Any:
    """Returns a list; see `integer`."""
    return self._read(key, default, null, values.items)

  def list_or_one(self, key: str) -> list:
    """Returns a list; any other value becomes a list of one entry."""
    self._asked.add(key)
    found = self._settings.get(key)
    if isinstance(found, list):
      return found
    return [] if found is None else [found]

  def get(self, key: str, default: Any = None) -> Any:
    """Returns a setting of any type, which the caller must check.

    Null counts as absent.
    """
    self._asked.add(key)
    return self._settings[key] if key in self else default

  def is_text(self, key: str) -> bool:
    """Whether the setting is a string, for settings of several types."""
    return isinstance(self._settings.get(key), str)

  def is_exactly(self, key: str, value: Any) -> bool:
    """Whether the setting has this value; if so, it counts as asked for."""
    same = key in self._settings and self._settings[key] == value
    self._asked |= {key} if same else set()
    return same

  def quotient(self, key: str, divisor: str) -> int:
    """Returns one setting divided by another; ValueError if not a multiple."""
    whole, parts = self.integer(key), self.integer(divisor)
    if whole % parts:
      raise ValueError(
        f'{self.place}: {key}={whole} must be a multiple of {divisor}={parts}'
      )
    return whole // parts

  def table(
    self, key: str, default: Any = _REQUIRED, *, null: bool = False
  ) -> Any:
    """Returns a JSON object as it is; see `integer`."""
    return self._read(key, default, null, values.table)

  def section(self, key: str) -> Settings:
    """Returns a nested object of settings; empty if it is absent."""
    found = self.table(key, {}, null=True)
    return Settings(f'{self.place}: {key}', found)

  def keys(self) -> Collection[str]:
    """The names of the settings that are present and not null."""
    return [key for key in self._settings if key in self]

  def expect(self, key: str, *allowed: Any) -> None:
    """Raises ValueError if a setting is present with a value not allowed."""
    self._asked.add(key)
    if key in self._settings:
      value = self._settings[key]
      if not any(type(one) is type(value) and one == value for one in allowed):
        self.refuse(key, value, allowed)

  def expect_one(self, *keys: str) -> None:
    """Raises ValueError if names of the same setting have different values."""
    used = [key for key in keys if key in self]
    if any(self._settings[key] != self._settings[used[0]] for key in used):
      raise ValueError(
        f'{self.place}: {" and ".join(used)} are names of the same setting and '
        'differ; delete the wrong one'
      )

  def choose(
    self,
    key: str,
    choices: Mapping[str, Any],
    default: Any = _REQUIRED,
    *,
    null: bool = False,
  ) -> Any:
    """Returns the choice that a string names; ValueError if there is none."""
    value = self._read(key, default, null, lambda value, _: value)
    if not isinstance(value, str) or value not in choices:
      self.refuse(key, value, choices)
    return choices[value]

  def refuse(self, key: str, value: Any, allowed: Iterable[Any]) -> NoReturn:
    """Raises the ValueError for a value that is not supported."""
    raise ValueError(
      f'{self.place}: {key}={shown(value)} is not supported; supported: '
      f'{", ".join(map(repr, allowed))}'
    )

  def check_all_asked(self, harmless: Iterable[str] = ()) -> None:
    """Raises ValueError if the file has settings that nobody asked for.

    Args:
      harmless: Names that do not change the computation, besides `HARMLESS`.
    """
    rest = {*self.keys()} - self._asked - {*HARMLESS, *harmless}
    unknown = sorted(rest - {k for k in rest if self._says_absent(k)})
    if 'quantization_config' in unknown:
      raise ValueError(
        f'{self.place}: quantization_config='
        f'{shown(self._settings["quantization_config"])} says that the weights '
        'are quantized, which is not supported; take the model that they were '
        'made of (`quantize` makes them small here)'
      )
    if unknown:
      found = ', '.join(
        f'{shown(key)[1:-1]}={shown(self._settings[key])}'
        for key in unknown[:_SHOWN]
      )
      raise ValueError(
        f'{self.place} has settings unknown here, which may change what the '
        f'model computes: {found}; delete those that do not matter'
      )

  def _says_absent(self, key: str) -> bool:
    value = self._settings[key]
    absent = _ABSENT.get(key)
    return absent is not None and (type(value), value) == (type(absent), absent)

  def _read(self, key, default, null, check, *bounds) -> Any:
    self._asked.add(key)
    if key not in self._settings or (null and self.is_null(key)):
      if default is _REQUIRED:
        raise ValueError(f'{self.place} has no {key!r}')
      return default
    return check(self._settings[key], f'{self.place}: {key}', *bounds)


class ConfigFile(Settings):
  """The settings of a config.json.

  Attributes:
    folder: The folder of the file.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it is not JSON.
  """

  def __init__(self, path: pathlib.Path):
    super().__init__(str(path), read_json(path))
    self.folder = path.parent
