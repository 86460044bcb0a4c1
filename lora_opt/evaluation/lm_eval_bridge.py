"""Adapts a model to EleutherAI's harness, `lm-eval`, which runs its own tasks.

  import lm_eval
  from lora_opt.evaluation.lm_eval_bridge import harness_model
  from lora_opt.models import smollm2_135m

  model = harness_model(smollm2_135m())
  lm_eval.simple_evaluate(model, tasks=['arc_easy'])

`lm-eval` is imported only by `harness_model`; it is not a dependency. Only
decoders are supported.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from lora_opt.devices.partitioning import DATA_PARALLEL, put
from lora_opt.evaluation.decoding import NO_TOKEN, Sampling, make_decoder
from lora_opt.evaluation.finite import named, not_finite, require_finite

# Row lengths, few so that few shapes compile; the longest used is the model's.
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
# Positions whose logits are in memory at the same time.
POSITIONS = 2048
MAX_NEW_TOKENS = 256


class Scored(NamedTuple):
  """A continuation to score: all ids, and how many of the last to predict."""

  ids: Sequence[int]
  count: int


class Bridge:
  """Answers the three kinds of requests of the harness with a `CausalLM`.

  The `args` of a request are (context, continuation) to score the continuation,
  (text,) to score the whole text, or (context, settings) to continue the
  context.
  """

  def __init__(self, model: Any, adapter: Any = None, *, batch_size: int = 16):
    """Places the weights.

    Args:
      model: a `lora_opt.models.CausalLM`.
      adapter: its adapter, as `model.load_adapter` returns it, or None.
      batch_size: prompts continued together.
    """
    super().__init__()
    self._model = model
    self._placement = DATA_PARALLEL.place(model)
    self._base = put(model.base, self._placement.base)
    self._adapter = adapter
    self._chat = False  # until the harness asks to render a conversation
    if adapter is not None:
      self._adapter = put(adapter, self._placement.trainable)
    shards = self._placement.row_shards
    self._shards = shards
    self._batch_size = -(-batch_size // shards) * shards
    self._score = self._placement.jit(
      functools.partial(_score, model), out_shardings=self._placement.whole
    )

  @property
  def tokenizer_name(self) -> str:
    """Keeps the harness's prompt caches of different models apart."""
    return self._model.name

  def apply_chat_template(
    self,
    chat_history: Sequence[dict[str, str]],
    add_generation_prompt: bool = True,
  ) -> str:
    """Renders a conversation; from then on the end of a turn ends answers."""
    self._chat = True
    return self._model.tokenizer.apply_chat(
      chat_history, add_generation_prompt=add_generation_prompt
    )

  def loglikelihood(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """Log-likelihood of each continuation, and whether it is the greedy one."""
    del disable_tqdm
    pairs = [self._pair(*request.args) for request in requests]
    counts = [pair.count for pair in pairs]
    longest = self._model.config.max_length + 1  # the last one is no input
    texts = self._shortened([pair.ids for pair in pairs], longest, counts)
    return self._scores(list(map(Scored, texts, counts)))

  def loglikelihood_rolling(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[float]:
    """Log-likelihood of each text from its first token on.

    Texts longer than the model's context are scored in parts, each with as much
    of the preceding text as fits.
    """
    del disable_tqdm
    parts, owners = [], []
    for owner, request in enumerate(requests):
      ids = self._model.tokenizer.encode(request.args[0])
      windows = list(self._windows(ids))
      parts += windows
      owners += [owner] * len(windows)
    totals = np.zeros(len(requests))
    found = [likelihood for likelihood, _ in self._scores(parts)]
    np.add.at(totals, np.asarray(owners, int), found)
    return totals.tolist()

  def generate_until(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[str]:
    """Continues each context until the first of its stop texts."""
    del disable_tqdm
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
      key = repr(sorted(request.args[1].items()))
      groups.setdefault(key, []).append(index)
    texts = [''] * len(requests)
    for group in groups.values():
      settings = dict(requests[group[0]].args[1])
      contexts = [requests[index].args[0] for index in group]
      for index, text in zip(
        group, self._continue(contexts, settings), strict=True
      ):
        texts[index] = text
    return texts

  def _pair(self, context: str, continuation: str) -> Scored:
    """Ids of both; white space between them belongs to the continuation."""
    tokenizer = self._model.tokenizer
    if not context:
      ids = tokenizer.encode(continuation)
      return Scored([self._prefix, *ids], len(ids))
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    first = tokenizer.opened(tokenizer.encode(bare))
    ids = tokenizer.opened(tokenizer.encode(bare + continuation))
    if ids[: len(first)] != first:  # a token would span the boundary
      ids = first + tokenizer.encode(continuation)
    return Scored(ids, len(ids) - len(first))

  @property
  def _prefix(self) -> int:
    """The token from which the first token of a text is predicted."""
    return self._model.tokenizer.opened([])[0]

  def _windows(self, ids: Sequence[int]) -> Iterator[Scored]:
    longest = self._model.config.max_length
    for start in range(0, len(ids), longest):
      end = min(start + longest, len(ids))
      seen = ids[max(0, end - longest - 1) : end] if start else ids[:end]
      yield Scored(seen if start else [self._prefix, *seen], end - start)

  def _scores(self, parts: Sequence[Scored]) -> list[tuple[float, bool]]:
    results: list[tuple[float, bool]] = [(0.0, True)] * len(parts)
    longest = self._model.config.max_length
    for length, places in _by_length(
      [min(len(part.ids) - 1, longest) for part in parts], longest
    ):
      rows = max(1, POSITIONS // length // self._shards) * self._shards
      for start in range(0, len(places), rows):
        some = places[start : start + rows]
        batch = _score_batch([parts[i] for i in some], rows, length)
        found = self._score(
          self._base, self._adapter, self._placement.put_rows(batch)
        )
        likelihoods, greedy = map(np.asarray, found)
        for row, i in enumerate(some):
          require_finite(likelihoods[row], 'the log-likelihood', f'text {i}')
          results[i] = float(likelihoods[row]), bool(greedy[row])
    return results

  def _continue(self, contexts, settings) -> list[str]:
    tokenizer = self._model.tokenizer
    stops = settings.get('until') or []
    stops = [stops] if isinstance(stops, str) else list(stops)
    new = int(settings.get('max_gen_toks', MAX_NEW_TOKENS))
    ends = tokenizer.stops(chat=self._chat)
    # An answer may begin with empty thoughts, whose line breaks do not end it.
    ids = [] if ends.lead.strip() else map(tokenizer.encode, stops)
    ends = dataclasses.replace(
      ends,
      ids=(*ends.ids, *(one[0] for one in ids if len(one) == 1)),
      texts=(*ends.texts, *stops),
    )
    decode = make_decoder(
      self._model,
      new,
      ends.ids,
      self._placement,
      _sampling(settings),
      ends.sequences,
    )
    longest = self._model.config.max_length - new
    if longest < 1:
      raise ValueError(
        f'max_gen_toks={new} leaves no room for a prompt: {self._model.name} '
        f'has {self._model.config.max_length} positions'
      )
    prompts = [tokenizer.opened(tokenizer.encode(text)) for text in contexts]
    prompts = self._shortened(prompts, longest, [1] * len(prompts))
    texts = [''] * len(prompts)
    for length, places in _by_length(list(map(len, prompts)), longest):
      for start in range(0, len(places), self._batch_size):
        some = places[start : start + self._batch_size]
        batch = _prompt_batch(
          [prompts[i] for i in some], some, self._batch_size, length
        )
        rows = self._placement.put_rows(batch)
        inputs = (rows[name] for name in ('tokens', 'valid', 'example'))
        ids = np.asarray(decode(self._base, self._adapter, *inputs))
        for row, i in enumerate(some):
          if NO_TOKEN in ids[row]:
            where = named(f'text {i}', contexts[i])
            raise not_finite('a logit of the answer is not finite', where)
          texts[i] = ends.text(ids[row])
    return texts

  def _shortened(
    self, texts: Sequence[list[int]], longest: int, keep: Sequence[int]
  ) -> list[list[int]]:
    """Cuts long texts after their opening; keeps at least `keep` last ids."""
    long = sum(len(ids) > longest for ids in texts)
    if not long:
      return list(texts)
    logging.warning(
      '%d of %d texts have more than %d tokens: cut behind what opens them',
      long,
      len(texts),
      longest,
    )
    opening = self._model.tokenizer.opening(chat=self._chat)
    return [
      _without_start(ids, longest, opening, last)
      for ids, last in zip(texts, keep, strict=True)
    ]


def harness_model(model: Any, adapter: Any = None, **settings) -> Any:
  """The model as an `lm_eval.api.model.LM`; arguments are those of `Bridge`."""
  from lm_eval.api.model import LM

  return type('HarnessModel', (Bridge, LM), {})(model, adapter, **settings)


def _score(model, base, adapter, batch):
  """For each row its targets' log-likelihood, and whether all are greedy."""
  logits = model.logits(base, adapter, batch)
  targets, wanted = batch['targets'], batch['weights'] != 0
  chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
  losses = jax.nn.logsumexp(logits, -1) - chosen
  greedy = jnp.argmax(logits, -1).astype(targets.dtype) == targets
  return (
    -jnp.sum(jnp.where(wanted, losses, 0), axis=1),
    jnp.all(greedy | ~wanted, axis=1),
  )


def _score_batch(parts, rows, length) -> dict[str, np.ndarray]:
  names = ('tokens', 'targets', 'segment_ids')
  batch = {name: np.zeros((rows, length), np.int32) for name in names}
  batch['positions'] = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
  batch['weights'] = np.zeros((rows, length), np.float32)
  for row, part in enumerate(parts):
    ids = part.ids[-length - 1 :]
    size = len(ids) - 1
    batch['tokens'][row, :size] = ids[:-1]
    batch['targets'][row, :size] = ids[1:]
    batch['segment_ids'][row, :size] = 1
    batch['weights'][row, max(0, size - part.count) : size] = 1
  return batch


def _prompt_batch(prompts, places, rows, length) -> dict[str, np.ndarray]:
  """Prompts padded on the left, and numbers that make their draws differ."""
  batch = {
    'tokens': np.zeros((rows, length), np.int32),
    'valid': np.zeros((rows, length), bool),
    'example': np.zeros(rows, np.int32),
  }
  for row, (ids, place) in enumerate(zip(prompts, places, strict=True)):
    batch['tokens'][row, length - len(ids) :] = ids
    batch['valid'][row, length - len(ids) :] = True
    batch['example'][row] = place
  return batch


def _by_length(sizes, longest) -> Iterator[tuple[int, list[int]]]:
  """Row lengths, and the indices of the sizes that fit best, longest first."""
  lengths = [length for length in LENGTHS if length < longest] + [longest]
  buckets: dict[int, list[int]] = {}
  for place in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
    fitting = next(length for length in lengths if sizes[place] <= length)
    buckets.setdefault(fitting, []).append(place)
  yield from buckets.items()


def _sampling(settings) -> Sampling:
  temperature = float(settings.get('temperature') or 0.0)
  if settings.get('do_sample') is False:
    temperature = 0.0
  elif settings.get('do_sample') and 'temperature' not in settings:
    temperature = 1.0
  return Sampling(
    temperature, settings.get('top_k') or None, settings.get('top_p')
  )


def _without_start(
  ids: Sequence[int], longest: int, opening: Sequence[int], keep: int
) -> list[int]:
  """Shortens a text to its opening ids, as far as they match, and last ids.

  >>> _without_start([1, 5, 6, 7, 8], 3, opening=[1], keep=1)
  [1, 7, 8]
  """
  if len(ids) <= longest:
    return list(ids)
  pairs = enumerate(zip(ids, opening, strict=False))
  size = next((i for i, (a, b) in pairs if a != b), len(opening))
  size = max(0, min(size, longest - keep))
  return [*ids[:size], *ids[len(ids) - (longest - size) :]]
