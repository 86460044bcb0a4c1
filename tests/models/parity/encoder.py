"""Random small encoders that between them use every option of the families."""

import dataclasses
from typing import Any

import jax
import numpy as np

from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.huggingface import from_folder
from tests.models.batches import jitted
from tests.models.parity import material

SIZES = {
  'vocab_size': 262,
  'hidden_size': 16,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 24,
  'max_position_embeddings': 32,
}
DEBERTA = {
  'relative_attention': True,
  'position_buckets': 8,
  'norm_rel_ebd': 'layer_norm',
  'share_att_key': True,
  'pos_att_type': ['p2c', 'c2p'],
  'position_biased_input': False,
}
LAYERS = '.*layers/.*'
DENSE = ('intermediate.dense', 'output.dense')
BERT = ('query', 'key', 'value', *DENSE)
DEBERTA_LINEAR = ('query_proj', 'key_proj', 'value_proj', *DENSE)


@dataclasses.dataclass(frozen=True)
class Case:
  """One model of transformers and the rows it is given.

  Attributes:
    model_type: Of its config.
    settings: Of its config, besides `SIZES`.
    length: Positions of a row.
    outputs: Labels; 1 for a regression.
    modules: What PEFT adapts.
    target: The same as our regular expression.
    differentiated: Whether gradients are compared too: they compile slowly,
      and follow from the forward pass where nothing else is new.
  """

  model_type: str
  settings: dict[str, Any]
  length: int = 20
  outputs: int = 2
  modules: tuple[str, ...] = BERT
  target: str = LAYERS
  differentiated: bool = True


# DeBERTa's rows are longer than its config says, and far beyond its buckets.
CASES = {
  'bert': Case(
    'bert', {}, outputs=3, modules=(*BERT, 'word_embeddings'), target='.*'
  ),
  'bert_relu': Case(
    'bert',
    {'hidden_act': 'relu', 'type_vocab_size': 3},
    differentiated=False,
  ),
  'roberta': Case('roberta', {'type_vocab_size': 1}, outputs=1),
  'deberta_v3': Case('deberta-v2', DEBERTA, 70, modules=DEBERTA_LINEAR),
  'deberta_c2p': Case(
    'deberta-v2',
    DEBERTA | {'pos_att_type': ['c2p'], 'share_att_key': False},
    40,
    modules=('value_proj',),
    target='.*/v',
    differentiated=False,
  ),
  'deberta_p2c': Case(
    'deberta-v2',
    DEBERTA | {'pos_att_type': 'p2c', 'norm_rel_ebd': 'none'},
    40,
    modules=('value_proj',),
    target='.*/v',
    differentiated=False,
  ),
  'deberta_distances': Case(
    'deberta-v2',
    DEBERTA
    | {
      'position_buckets': -1,
      'max_relative_positions': 6,
      'share_att_key': False,
    },
    modules=('pos_key_proj', 'pos_query_proj', 'word_embeddings'),
    target='.*/position_.*|embedding',
  ),
  'deberta_no_terms': Case(
    'deberta-v2',
    DEBERTA | {'pos_att_type': [], 'type_vocab_size': 2},
    modules=r'.*\.layer\.\d+\.output\.dense',
    target='.*/down',
    differentiated=False,
  ),
  'deberta_absolute': Case(
    'deberta-v2',
    {'pooler_hidden_act': 'tanh', 'hidden_act': 'gelu_new'},
    modules=DEBERTA_LINEAR,
    differentiated=False,
  ),
}


def batch_of(case: Case) -> dict[str, np.ndarray]:
  """Three rows, two of them padded, with a second text and labels."""
  random = np.random.default_rng(0)
  sizes = np.array([[case.length], [case.length // 2], [3]])
  place = np.arange(case.length)[None]
  valid = place < sizes
  padding = {'roberta': 1}.get(case.model_type, 0)
  types = {'roberta': 1, 'deberta-v2': 0}.get(case.model_type, 2)
  second = case.settings.get('type_vocab_size', types) > 1
  tokens = random.integers(3, 256, valid.shape)
  return {
    'tokens': np.where(valid, tokens, padding).astype(np.int32),
    'token_types': (valid & (place >= sizes // 2) & second).astype(np.int32),
    'positions': np.where(valid, place, 0).astype(np.int32),
    'segment_ids': valid.astype(np.int32),
    'labels': np.array([[0], [1], [1]], np.float32),
    'weights': np.ones((3, 1), np.float32),
  }


def reference(case: Case):
  """Logits and gradients of transformers and peft; needs torch.

  Returns:
    The adapted torch model; arrays by name; and the text of config.json.
  """
  import torch
  import transformers

  from tests.models.parity import reference as torch_side

  config = transformers.AutoConfig.for_model(
    case.model_type, num_labels=case.outputs, **(SIZES | case.settings)
  )
  model = transformers.AutoModelForSequenceClassification.from_config(
    config, attn_implementation='eager'
  )
  torch_side.fill(model)
  saved = {'roberta': []}.get(case.model_type, ['pooler'])
  adapted = torch_side.adapt(
    model, case.modules, 'SEQ_CLS', modules_to_save=saved
  )
  heads = {
    name.replace('.modules_to_save.default', ''): parameter
    for name, parameter in adapted.named_parameters()
    if '.modules_to_save.' in name
  }
  with torch.no_grad():
    for name, parameter in heads.items():
      shape = tuple(parameter.shape)
      parameter.copy_(torch.tensor(material.weight(name, shape)))
  logits = torch_logits(adapted, case)
  arrays = {'logits': logits.detach().numpy()}
  if case.differentiated:
    labels = torch.tensor(batch_of(case)['labels'][:, 0])
    if case.outputs == 1:
      loss = ((logits[:, 0] - labels) ** 2).sum()
    else:
      loss = torch.nn.functional.cross_entropy(
        logits, labels.long(), reduction='sum'
      )
    loss.backward()
    arrays |= torch_side.gradients(adapted)
    arrays |= {f'gradient/{n}': p.grad.numpy() for n, p in heads.items()}
  return adapted, arrays, config.to_json_string()


def torch_logits(model, case: Case):
  """Logits of a torch model on the rows of a case."""
  import torch

  batch = batch_of(case)
  return model(
    input_ids=torch.tensor(batch['tokens']).long(),
    attention_mask=torch.tensor(batch['segment_ids']).long(),
    token_type_ids=torch.tensor(batch['token_types']).long(),
  ).logits


def our_model(case: Case, folder, config: str):
  """Our model of a case, from a checkpoint that is written to a folder."""
  material.write_folder(folder, config, case.outputs)
  lora = LoraConfig(case.target, material.RANK, material.ALPHA)
  # It compiles faster without remat.
  return from_folder(folder, lora=lora, outputs=case.outputs, remat='none')


def our_arrays(case: Case, model) -> dict[str, np.ndarray]:
  """What `reference` returns."""
  trainable, batch = material.adapter(model), batch_of(case)
  logits = jitted(model, 'predict')(model.base, trainable, batch)
  arrays = {'logits': np.asarray(logits)[:, 0]}
  if not case.differentiated:
    return arrays

  def total(trainable):
    return model.token_losses(model.base, trainable, batch).sum()

  gradient = material.by_peft_name(jax.jit(jax.grad(total))(trainable), model)
  return arrays | {f'gradient/{name}': x for name, x in gradient.items()}
