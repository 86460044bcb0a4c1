"""Images as data: checks and decodes files; resizes, crops and flips images."""

from lora_opt.data.images.files import ImageFile, ImageFiles
from lora_opt.data.images.fitting import Augmentation, Fit
from lora_opt.data.images.processor import ImageProcessor

__all__ = ['Augmentation', 'Fit', 'ImageFile', 'ImageFiles', 'ImageProcessor']
