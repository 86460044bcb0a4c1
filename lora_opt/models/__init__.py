"""Layer 5: models with adapters, from real checkpoints."""

from lora_opt.models.causal_lm import CausalLM
from lora_opt.models.lora import LoraConfig
from lora_opt.models.pretrained.gguf import from_gguf
from lora_opt.models.pretrained.huggingface import from_folder
from lora_opt.models.pretrained.smollm2 import smollm2_135m
from lora_opt.models.random_model import random_model

__all__ = [
  'CausalLM',
  'LoraConfig',
  'from_folder',
  'from_gguf',
  'random_model',
  'smollm2_135m',
]
