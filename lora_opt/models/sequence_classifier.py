"""An encoder with a head for labels or numbers, for training and evaluation."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from lora_opt.models.classifier import Batch, Classifier
from lora_opt.models.encoder import Encoder, Head
from lora_opt.models.encoder_config import EncoderConfig
from lora_opt.models.language_model import check_tokenizer
from lora_opt.models.variables import Tree, abstract_params, init_collection


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceClassifier(Classifier):
  """A frozen encoder, its tokenizer, its adapter settings, and a head.

  A batch has (rows, length) arrays tokens, token_types, positions and
  segment_ids; column s of labels and weights belongs to segment s + 1. `head`
  may contain 'dense' and 'out'. See `Classifier` for the rest.
  """

  network: ClassVar = Encoder
  network_head: ClassVar = Head
  batch_form: ClassVar[str] = 'encoder'

  @property
  def task_type(self) -> str:
    """PEFT's name for it.

    transformers has no classifier that reads a mean, or one without a pooler.
    """
    mean = self.config.pooling == 'mean' or self.config.pooler is None
    return 'FEATURE_EXTRACTION' if mean else 'SEQ_CLS'

  def pooled(
    self, base: Tree, trainable: Tree | None, batch: Batch
  ) -> jax.Array:
    """The pooled input of the head for each segment: for probes and inspection.

    Returns:
      (rows, segments, embed) float32.
    """
    hidden = self._hidden(base, trainable, batch, None)
    return self._head.pool(hidden, *_places(batch))

  def _check_tokenizer(self):
    check_tokenizer(self.config, self.tokenizer)

  def _hidden(self, base, trainable, batch, rngs):
    length = batch['tokens'].shape[1]
    if self.config.absolute_positions and length > self.config.max_length:
      raise ValueError(
        f'rows of {length} tokens are too long for {self.name}, which has '
        f'positions for {self.config.max_length}'
      )
    network, variables = self._with(base, trainable)
    return network.apply(
      variables,
      batch['tokens'],
      batch['positions'],
      batch['token_types'],
      batch['segment_ids'],
      rngs=rngs,
    )

  def _read(self, variables, hidden, batch, rngs):
    return self._head.apply(variables, hidden, *_places(batch), rngs=rngs)


def init_base(config: EncoderConfig, rng: jax.Array, dtype: str) -> Tree:
  """Random base weights, as for training from scratch."""
  encoder = Encoder(config, param_dtype=jnp.dtype(dtype))
  return init_collection(encoder, 'params', rng)


def abstract_base(config: EncoderConfig) -> Tree:
  """Shapes of the base weights: a tree of `jax.ShapeDtypeStruct`."""
  return abstract_params(Encoder(config))


def abstract_head(config: EncoderConfig, outputs: int) -> Tree:
  """Shapes of the head's weights: a tree of `jax.ShapeDtypeStruct`."""
  return abstract_params(Head(config, outputs))


def _places(batch: Batch) -> tuple[jax.Array, ...]:
  return batch['segment_ids'], batch['positions'], batch['weights']
