"""The Hugging Face file format, as a `ModelFiles`."""

from lora_opt.models.model_files import ModelFiles
from lora_opt.models.pretrained.merge import merge_adapter
from lora_opt.models.pretrained.peft import export_adapter, import_adapter

HUGGING_FACE = ModelFiles(export_adapter, import_adapter, merge_adapter)
