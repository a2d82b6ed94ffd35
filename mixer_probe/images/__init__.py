"""Labelled images: the bundled samples, folders, timm's data sets, and the transform a network wants.

`load_images` is the way in; everything later sees only an `Images`.
"""

from mixer_probe.images.bundled import photo_credit
from mixer_probe.images.labelled import Images, from_arrays
from mixer_probe.images.load import load_images
from mixer_probe.images.transforms import Transform, model_transform

__all__ = ["Images", "Transform", "from_arrays", "load_images", "model_transform", "photo_credit"]
