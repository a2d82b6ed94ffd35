"""Examples of distorted images: the pixels that a network is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd

from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.images.distortions import Distortion, image_numbers
from mixer_probe.images.transforms import split_transform
from mixer_probe.invariance.predictions import Source
from mixer_probe.models.model import Model


@dataclass(frozen=True)
class DistortionExamples(Result):
    """Images as `model` gets them, before normalisation: uint8 `pixels` [1 + distortion, image, h,
    w, 3], row 0 undistorted.

    Values beyond black and white, which filters produce, are clipped here but not in the network's
    input."""

    title: ClassVar[str] = "Distorted images"
    frame = Frame(
        "distortion",
        "distortion=distortions.label distortions.kind distortions.strength",
    )

    model: ModelRecord
    images: ImagesRecord
    distortions: Annotated[tuple[Distortion, ...], "distortion"]
    ids: Annotated[tuple[str, ...], "image"]
    pixels: Annotated[np.ndarray, "distortion + 1", "image", "height", "width", 3]

    def to_frame(self) -> pd.DataFrame:
        """One row per distortion, with its record."""
        return super().to_frame().assign(record=list(map(repr, self.distortions)))


@checked(MeasureError)
def distortion_examples(
    model: Model, images: Source, distortions: Sequence[Distortion], count: int = 3
) -> DistortionExamples:
    """The first `count` images under each distortion, at the input size of the network."""
    chosen = images.subset(range(min(count, len(images))))
    to_pixels, _ = split_transform(transform_of(model))
    plain = next(iter(chosen.batches(to_pixels, len(chosen))))
    numbers = image_numbers(chosen.ids)
    shown = np.stack(
        [x.permute(0, 2, 3, 1).numpy() for x in (plain, *(d(plain, numbers) for d in distortions))]
    )
    pixels = np.clip(np.round(255 * shown), 0, 255).astype(np.uint8)
    return DistortionExamples(
        model.record, images.record, tuple(distortions), tuple(chosen.ids), pixels
    )
