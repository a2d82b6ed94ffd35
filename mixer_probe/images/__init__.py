"""Labelled images: the bundled samples, folders, timm's data sets, and the transform a network
wants, and distortions.

`load_images` is the way in; everything later sees only an `Images`.
"""

from mixer_probe.images.bundled import photo_credit
from mixer_probe.images.concepts import (
    Concepts,
    class_concepts,
    concepts_from_arrays,
    concepts_from_attributes,
    load_concepts,
)
from mixer_probe.images.distortions import (
    Chain,
    DistortedImages,
    Distortion,
    HighPass,
    LowPass,
    PatchDrop,
    PatchShuffle,
    PixelShuffle,
    Shift,
    distort,
    paper_shuffle,
)
from mixer_probe.images.labelled import Images, from_arrays
from mixer_probe.images.load import load_images
from mixer_probe.images.transforms import Transform, model_transform

__all__ = [
    "Chain",
    "Concepts",
    "DistortedImages",
    "Distortion",
    "HighPass",
    "Images",
    "LowPass",
    "PatchDrop",
    "PatchShuffle",
    "PixelShuffle",
    "Shift",
    "Transform",
    "class_concepts",
    "concepts_from_arrays",
    "concepts_from_attributes",
    "distort",
    "from_arrays",
    "load_concepts",
    "load_images",
    "model_transform",
    "paper_shuffle",
    "photo_credit",
]
