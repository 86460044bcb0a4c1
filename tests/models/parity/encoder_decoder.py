"""Random small T5s that between them use every option of the families."""

import dataclasses
from typing import Any

import jax
import numpy as np

from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.huggingface import from_folder
from tests.models.batches import jitted, packed_pairs, pair_batch
from tests.models.parity import material

# The padding token of the tokenizer of `material`, which starts the decoder.
START = 258
SIZES = {
  'vocab_size': 262,
  'd_model': 24,
  'd_kv': 10,
  'd_ff': 40,
  'num_heads': 3,
  'relative_attention_num_buckets': 8,
  'relative_attention_max_distance': 20,
  'pad_token_id': START,
  'eos_token_id': 257,
  'decoder_start_token_id': START,
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A model of transformers and an adapter of it.

  Attributes:
    model_type: As in config.json.
    settings: Arguments of its config class.
    modules: What PEFT adapts.
    target: The same as our regular expression.
    tied: Whether the head is the embedding.
    lengths: Tokens of inputs and targets of each pair.
  """

  model_type: str
  settings: dict[str, Any]
  modules: list[str]
  target: str
  tied: bool = False
  lengths: tuple[tuple[int, int], ...] = ((25, 13), (8, 22), (3, 1))

  def pairs(self) -> list[tuple[list[int], list[int]]]:
    """Ids of inputs and targets."""
    random = np.random.default_rng(0)
    return [
      tuple(random.integers(1, 256, n).tolist() for n in sizes)
      for sizes in self.lengths
    ]


CASES = {
  # T5 v1.1 and Flan-T5.
  't5_gated': Case(
    't5',
    SIZES
    | {
      'num_layers': 2,
      'num_decoder_layers': 3,
      'feed_forward_proj': 'gated-gelu',
      'tie_word_embeddings': False,
    },
    ['q', 'k', 'v', 'o', 'wi_0', 'wi_1', 'wo'],
    '.*layers/.*',
  ),
  # The first T5.
  't5_plain': Case(
    't5',
    SIZES
    | {
      'num_layers': 1,
      'feed_forward_proj': 'relu',
      'tie_word_embeddings': True,
    },
    ['q', 'k', 'v', 'o', 'wi', 'wo'],
    '.*layers/.*',
    tied=True,
  ),
  # The real buckets, and distances beyond the last.
  'mt5': Case(
    'mt5',
    SIZES
    | {
      'num_layers': 1,
      'relative_attention_num_buckets': 32,
      'relative_attention_max_distance': 128,
      'feed_forward_proj': 'gated-gelu',
    },
    ['SelfAttention.q', 'EncDecAttention.v'],
    '.*/attention/q|.*/cross_attention/v',
    lengths=((150, 3), (2, 140)),
  ),
  # Adapters at both ends, and in one stack alone.
  'mt5_ends': Case(
    'mt5',
    SIZES | {'num_layers': 2, 'feed_forward_proj': 'gated-silu'},
    r'.*embed_tokens|lm_head|decoder\..*\.(q|wi_1)',
    '.*embedding|head|decoder/.*/(q|up)',
  ),
}


def reference(case: Case):
  """Logits and gradients of transformers and peft; needs torch.

  Returns:
    The adapted torch model; arrays by name; and the text of config.json.
  """
  import torch
  import transformers

  from tests.models.parity import reference as torch_side

  config = transformers.AutoConfig.for_model(case.model_type, **case.settings)
  model = transformers.AutoModelForSeq2SeqLM.from_config(config)
  if not case.tied:
    # transformers unties them only when it loads weights that differ.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
  torch_side.fill(model)
  adapted = torch_side.adapt(model, case.modules, 'SEQ_2_SEQ_LM')
  logits, valid = torch_logits(case, adapted)
  targets = torch.tensor(pair_batch(START, *case.pairs())['targets']).long()
  losses = torch.nn.functional.cross_entropy(
    logits.transpose(1, 2), targets, reduction='none'
  )
  (losses * valid).sum().backward()
  arrays = torch_side.gradients(adapted)
  arrays['logits'] = thinned(logits.detach().numpy()[valid.numpy()])
  return adapted, arrays, config.to_json_string()


def torch_logits(case: Case, model):
  """Logits of a torch model, and which positions are no padding."""
  import torch

  batch = {
    name: torch.tensor(array).long()
    for name, array in pair_batch(START, *case.pairs()).items()
  }
  output = model(
    input_ids=batch['encoder_tokens'],
    attention_mask=batch['encoder_segment_ids'],
    decoder_input_ids=batch['tokens'],
  )
  return output.logits, batch['segment_ids'] > 0


def thinned(logits: np.ndarray) -> np.ndarray:
  """Every third of many positions: small files, and still every bucket."""
  return logits[::3] if len(logits) > 40 else logits


def our_model(case: Case, folder, config: str):
  """Our model of a case, from a checkpoint that is written to a folder."""
  material.write_folder(folder, config)
  lora = LoraConfig(case.target, material.RANK, material.ALPHA)
  return from_folder(folder, lora=lora, remat='none')


def our_arrays(case: Case, model) -> dict[str, np.ndarray]:
  """What `reference` returns, and the logits of the packed pairs."""
  lora, packed = material.adapter(model), packed_pairs(START, *case.pairs())
  batch = pair_batch(START, *case.pairs())
  logits = jitted(model, 'logits')(model.base, lora, batch)

  def total(lora):
    # One compilation for both: packed logits and the gradient of the loss.
    losses = model.token_losses(model.base, lora, packed)
    return losses.sum(), model.logits(model.base, lora, packed)

  gradient, together = jax.jit(jax.grad(total, has_aux=True))(lora)
  named = material.by_peft_name(gradient, model)
  return {
    'logits': thinned(np.asarray(logits)[batch['segment_ids'] > 0]),
    'packed logits': thinned(np.asarray(together)[0]),
    **{f'gradient/{name}': array for name, array in named.items()},
  }
