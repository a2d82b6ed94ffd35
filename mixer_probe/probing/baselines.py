"""Raw pixels as a representation: the baseline of every probe without a network."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import mixer_probe
from mixer_probe.capture import ImageSource, Inputs, Representations, as_source
from mixer_probe.capture.extraction import collected
from mixer_probe.capture.representations import RunRecord
from mixer_probe.capture.run_files import bytes_per_image
from mixer_probe.capture.stream import Piece
from mixer_probe.capture.unit_sums import UnitSums
from mixer_probe.capture.units import Units
from mixer_probe.core.errors import ImagesError
from mixer_probe.core.fingerprint import digest
from mixer_probe.core.result import ModelRecord
from mixer_probe.core.text import slug
from mixer_probe.images import Images, model_transform
from mixer_probe.models.layer import Axes, Layer

RAW_PIXELS = "raw pixels"
SIZE = 32
_BATCH = 256


def pixel_baseline(
    images_train: ImageSource | Tensor,
    images_test: ImageSource | Tensor,
    size: int | tuple[int, int] | None = SIZE,
) -> tuple[Representations, Representations]:
    """(train, test) of raw pixels, for `linear_probe(*pixel_baseline(train, test))` and every other
    probe.

    Errors and `size` as for `raw_pixels`."""
    return raw_pixels(images_train, size), raw_pixels(images_test, size)


def raw_pixels(
    images: ImageSource | Tensor,
    size: int | tuple[int, int] | None = SIZE,
    out: str | os.PathLike[str] | None = None,
) -> Representations:
    """The pixels of every image as its features [image, height * width * 3], in one layer called
    "pixels" at depth 0.

    `size` (height, width) resizes as a network's own transform does: the shorter side to fit, the
    centre cut out; values are 0 to 1. None keeps the images' own size, the same for all. Tensors
    are finished inputs, averaged down to `size`. With `out` they go to a store there, as those of
    `extract`.

    The model of the result is called "raw pixels", of family "pixels", untrained, without
    parameters. Raises ImagesError for images of several sizes with size=None, a size below 1, and
    tensors that are smaller than `size`."""
    source = as_source(images)
    if size is None:
        sizes: dict[tuple[int, int], None] = {}

        def note(image: Any) -> Tensor:
            sizes[(image.height, image.width)] = None
            return torch.zeros(1)

        # In this process, where what is noted can be seen.
        for batch in source.batches(note, _BATCH, workers=0):
            if batch.ndim == 4:
                # Preprocessed inputs, which are not transformed.
                sizes[(batch.shape[2], batch.shape[3])] = None
                break
        if len(sizes) > 1:
            (a, b), (c, d) = list(sizes)[:2]
            raise ImagesError(
                f"the images have several sizes ({a}x{b}, {c}x{d}, ...): give size= to make them "
                "one"
            )
        size = next(iter(sizes))
    shape = (size, size) if isinstance(size, int) else size
    if min(shape) < 1:
        raise ImagesError(f"size must be 1 or more pixels, got {size}")
    layer = Layer("pixels", "other", 0.0, None, 3 * shape[0] * shape[1], 0, 0, Axes.BC.name)
    text = f"{RAW_PIXELS} {shape[0]}x{shape[1]}"
    model = ModelRecord(RAW_PIXELS, "pixels", False, "none", digest(text), 0, text)
    versions = {"mixer_probe": mixer_probe.__version__, "torch": torch.__version__}
    record = RunRecord(
        model, source.record, (layer,), "mean", text, "torch.float32", "float32", versions
    )
    sums = UnitSums(Units.of(len(source), bytes_per_image(record)), ())
    return collected(source, record, partial(_pixels, source, shape), _BATCH, sums, out)


def pixels_of(images: Images, like: Inputs) -> Representations:
    """`raw_pixels` of the default size, kept where the representations of `like` are."""
    name = f"{slug(RAW_PIXELS)}-{images.fingerprint[:16]}.zarr"
    return raw_pixels(images, SIZE, like.place(name, 4 * 3 * SIZE**2 * len(images)))


def _pixels(
    source: ImageSource, shape: tuple[int, int], batch_size: int, rows: Iterable[range]
) -> Generator[tuple[Piece, dict[str, np.ndarray]]]:
    """Pixels of the batches `rows`, of images brought to one `shape`."""
    starts: deque[int] = deque()

    def noted() -> Iterator[range]:
        for batch in rows:
            starts.append(batch.start)
            yield batch

    transform = model_transform((3, *shape), (0.0,) * 3, (1.0,) * 3)
    for batch in source.batches(transform, noted()):
        # What the transform returns has its shape already; only preprocessed tensors can be larger.
        if batch.shape[2] < shape[0] or batch.shape[3] < shape[1]:
            raise ImagesError(
                f"a tensor of {batch.shape[2]}x{batch.shape[3]} px has no pixels for "
                f"{shape[0]}x{shape[1]}: take a smaller size"
            )
        resized = batch if tuple(batch.shape[2:]) == shape else F.adaptive_avg_pool2d(batch, shape)
        values = resized.detach().cpu().float().permute(0, 2, 3, 1).flatten(1).numpy()
        yield Piece(starts.popleft(), len(values), {}), {"pixels": values}
