"""Layer 5: models with adapters, from real checkpoints."""

from lora_opt.models.causal_lm import CausalLM
from lora_opt.models.diffusion.folder import from_diffusers
from lora_opt.models.diffusion.random_pipeline import random_pipeline
from lora_opt.models.diffusion.text_to_image import TextToImage
from lora_opt.models.lora import LoraConfig, lora_scale
from lora_opt.models.pretrained.gguf import from_gguf
from lora_opt.models.pretrained.huggingface import from_folder
from lora_opt.models.pretrained.minilm import minilm_l6
from lora_opt.models.pretrained.smollm2 import smollm2_135m
from lora_opt.models.random_encoder import random_encoder
from lora_opt.models.random_model import random_model, random_seq2seq
from lora_opt.models.random_vit import random_vit
from lora_opt.models.seq2seq_lm import Seq2SeqLM
from lora_opt.models.sequence_classifier import SequenceClassifier
from lora_opt.models.start import olora, pissa
from lora_opt.models.vision.classifier import ImageClassifier

__all__ = [
  'CausalLM',
  'ImageClassifier',
  'LoraConfig',
  'Seq2SeqLM',
  'SequenceClassifier',
  'TextToImage',
  'from_diffusers',
  'from_folder',
  'from_gguf',
  'lora_scale',
  'minilm_l6',
  'olora',
  'pissa',
  'random_encoder',
  'random_model',
  'random_pipeline',
  'random_seq2seq',
  'random_vit',
  'smollm2_135m',
]
