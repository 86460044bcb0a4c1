"""The diffusers file format, as a `ModelFiles`."""

from lora_opt.models.diffusion.adapter_file import (
  export_adapter,
  import_adapter,
)
from lora_opt.models.diffusion.save import save_pipeline
from lora_opt.models.model_files import ModelFiles


def _merge(folder, lora, model, *, source, dtype) -> None:
  save_pipeline(folder, model, lora, source=source, dtype=dtype)


DIFFUSERS = ModelFiles(export_adapter, import_adapter, _merge)
