"""`extract`: representations of images at any layers of a model, into memory or into a store."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import mixer_probe
from mixer_probe.capture.hooks import (
    Reducer,
    every_position,
    first_prefix_token,
    mean_over_positions,
)
from mixer_probe.capture.representations import (
    PREFIX,
    Reduce,
    Representations,
    RunRecord,
    count_non_finite,
)
from mixer_probe.capture.store import stored, stored_shape
from mixer_probe.capture.stream import ImageSource, Piece, Reading, as_source, stream, to_host
from mixer_probe.core.errors import ImagesError, LayerError, NonFiniteWarning, StoreError
from mixer_probe.core.files import printable
from mixer_probe.core.fingerprint import keys_of
from mixer_probe.core.memory import check_fits
from mixer_probe.core.validate import checked
from mixer_probe.images import DistortedImages, Images
from mixer_probe.models.model import Model

_REDUCERS: dict[str, Reducer[Any]] = {
    "mean": mean_over_positions,
    "prefix": first_prefix_token,
    "none": every_position,
}


@checked(ImagesError, reduce=LayerError)
def extract(
    model: Model,
    images: ImageSource | torch.Tensor,
    layers: str | Sequence[str] = "blocks",
    *,
    reduce: Reduce = "mean",
    batch_size: int = 64,
    out: str | os.PathLike[str] | None = None,
    autocast: str | None = None,
    also: Sequence[Reading] = (),
) -> Representations:
    """Activations of the `layers` of `model` on `images`.

    `layers` are names, globs, kinds or the words "blocks", "spatial", "channel", "all" (see
    `Model.select`). `reduce` is "mean" (over positions, prefix tokens apart), "prefix" (the class
    token) or "none" (all positions). The forward pass stops after the last layer asked for. With
    `out` the numbers go to a zarr store at that path, which survives interruption: the same call
    goes on where it stopped, and returns the finished run if there is one. It is the same with
    equal pictures, labels and classes in the same order, wherever they lie and whatever they are
    called, an equal network and equal preprocessing. `autocast` is None, "bfloat16" or "float16".
    Those of `also` read in the same forward passes: all images, unless some are in a store already.

    Returns arrays [image, channel], or [image, position, channel] for reduce="none".

    Raises LayerError (unknown layer, or reduce="prefix" where a layer has no prefix token),
    ImagesError (also for files that change while they are read), and StoreError (a place that is
    taken, too little memory without `out`). Warns with NonFiniteWarning about NaN and infinite
    values."""
    source = as_source(images)
    selected = model.select(layers)
    without = [layer.name for layer in selected if not layer.prefix_tokens]
    if reduce == "prefix" and without:
        raise LayerError(
            f"'{without[0]}' of {model.name} has no prefix token, so reduce='prefix' has nothing "
            "to take; use reduce='mean'"
        )
    versions = {
        "mixer_probe": mixer_probe.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
    dtype = "float64" if model.dtype is torch.float64 else "float32"
    precision = autocast or str(model.dtype)
    record = RunRecord(
        model.record, source.record, selected, reduce, repr(model.input), precision, dtype, versions
    )
    if out is None:
        found = _into_memory(model, source, record, batch_size, autocast, also)
    else:
        pieces = partial(_pieces, model, source, record, batch_size, autocast, also)
        found = stored(Path(out), record, source, pieces, batch_size)
        found = found.named(record.model, record.images, tuple(map(printable, source.ids)))
    for name, count in found.non_finite.items():
        text = (
            f"{count} values of layer '{name}' of {model.name} are NaN or infinite; they are kept "
            "as they are"
        )
        warnings.warn(text, NonFiniteWarning, stacklevel=3)
    return found


def _pieces(
    model: Model,
    source: ImageSource,
    record: RunRecord,
    batch_size: int,
    autocast: str | None,
    also: Sequence[Reading],
    start: int = 0,
) -> Generator[tuple[Piece, dict[str, np.ndarray]]]:
    """Pieces from image `start` on, with NumPy arrays by stored name. Raises ImagesError for images
    that changed meanwhile."""
    keys = keys_of(source)
    found = stream(
        model,
        source,
        record.layers,
        _REDUCERS[record.reduce],
        batch_size=batch_size,
        start=start,
        autocast=autocast,
        title=f"{model.name}: representations",
        also=also,
    )
    for piece in to_host(found):
        rows = slice(piece.start, piece.start + piece.n)
        # Checked after the images were read, so that old and new pictures never meet in one run.
        if (
            isinstance(source, (Images, DistortedImages))
            and source.subset(range(len(keys))[rows]).keys != keys[rows]
        ):
            raise ImagesError(
                f"images of {source.record.name} have changed since the run began, among them one "
                f"of '{source.ids[rows.start]}' to '{source.ids[rows.stop - 1]}'; start again with "
                "the images as they are now"
            )
        arrays: dict[str, np.ndarray] = {}
        for layer in record.layers:
            reduced = piece.found[layer.name]
            values, prefix = reduced if isinstance(reduced, tuple) else (reduced, None)
            shape = stored_shape(layer, record.reduce)[0]
            arrays[layer.name] = (
                values.numpy().astype(record.dtype, copy=False).reshape(piece.n, *shape)
            )
            if prefix is not None:
                arrays[PREFIX + layer.name] = prefix.numpy().astype(record.dtype, copy=False)
        yield piece, arrays


def _into_memory(
    model: Model,
    source: ImageSource,
    record: RunRecord,
    batch_size: int,
    autocast: str | None,
    also: Sequence[Reading],
) -> Representations:
    """The run in memory. Raises StoreError where the machine has too little of it."""
    n = len(source)
    per_image = sum(int(np.prod(stored_shape(layer, record.reduce)[0])) for layer in record.layers)
    needed = n * per_image * np.dtype(record.dtype).itemsize
    what = f"{n} images at {len(record.layers)} layers"
    instead = "give out=FOLDER to store them on disk, or use reduce='mean'"
    check_fits(needed, what, instead, StoreError)
    arrays: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    with closing(_pieces(model, source, record, batch_size, autocast, also)) as pieces:
        for piece, found in pieces:
            count_non_finite(found, counts)
            for name, values in found.items():
                if name not in arrays:
                    arrays[name] = np.empty((n, *values.shape[1:]), dtype=record.dtype)
                arrays[name][piece.start : piece.start + piece.n] = values
    plain = {k: v for k, v in arrays.items() if not k.startswith(PREFIX)}
    prefixes = {k.removeprefix(PREFIX): v for k, v in arrays.items() if k.startswith(PREFIX)}
    return Representations(
        record,
        plain,
        prefixes,
        source.ids,
        source.labels,
        source.class_names,
        counts,
        keys_of(source),
    )
