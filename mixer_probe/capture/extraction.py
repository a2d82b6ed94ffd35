"""`extract`: representations of images at any layers of a model, into memory or into a store."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal

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
from mixer_probe.capture.run_files import bytes_per_image, stored_shape
from mixer_probe.capture.store import Passes, stored
from mixer_probe.capture.stream import (
    ImageSource,
    Piece,
    Reading,
    as_source,
    divide_hashing,
    stream,
    to_host,
)
from mixer_probe.capture.unit_sums import UnitSums
from mixer_probe.capture.units import Units
from mixer_probe.core.errors import ImagesError, LayerError, NonFiniteWarning, StoreError
from mixer_probe.core.files import printable
from mixer_probe.core.fingerprint import keys_of
from mixer_probe.core.memory import check_fits
from mixer_probe.core.validate import check_choice, checked
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
    dtype: Literal["float16", "float32", "float64"] | None = None,
    also: Sequence[Reading] = (),
    verify: bool = False,
    workers: int | Literal["auto"] = "auto",
) -> Representations:
    """Activations of the `layers` of `model` on `images`.

    `layers` are names, globs, kinds or the words "blocks", "spatial", "channel", "all" (see
    `Model.select`). `reduce` is "mean" (over positions, prefix tokens apart), "prefix" (the class
    token) or "none" (all positions). The forward pass stops after the last layer asked for.

    With `out`, a folder or a URL that fsspec opens (s3://...), the numbers go to a zarr store
    there, which survives interruption: the same call goes on where it stopped, and returns the
    finished run if there is one. It is the same with equal pictures, labels and classes in the same
    order, wherever they lie and whatever they are called, an equal network and equal preprocessing.
    Processes that torchrun started divide the images; numbers and files do not depend on how many
    there are, as long as each has as many threads. With `verify` all that is stored is read, and
    the damaged parts are computed again.

    `autocast` is None, "bfloat16" or "float16". `dtype` is the type of the numbers that are
    returned and stored, by default float64 for a network in float64, else float32; in float16
    they take half the space, and those beyond 65,504 become infinite. Those of `also` read in
    the same forward passes; what they add up is kept in the store. `workers` are processes that
    decode images, see `Images.batches`.

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
    if out is not None:
        divide_hashing(source)
    versions = {
        "mixer_probe": mixer_probe.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
    if dtype is None:
        dtype = "float64" if model.dtype is torch.float64 else "float32"
    check_choice("dtype", dtype, ("float16", "float32", "float64"), ImagesError)
    computed = ", ".join([autocast or str(model.dtype), *model.options])
    record = RunRecord(
        model.record, source.record, selected, reduce, repr(model.input), computed, dtype, versions
    )
    sums = UnitSums(Units.of(len(source), bytes_per_image(record)), also)
    passes = partial(_pieces, model, source, record, autocast, sums, workers)
    found = collected(source, record, passes, batch_size, sums, out, verify)
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
    autocast: str | None,
    sums: UnitSums,
    workers: int | Literal["auto"],
    batch_size: int,
    rows: Iterable[range],
) -> Generator[tuple[Piece, dict[str, np.ndarray]]]:
    """Pieces of the batches `rows`, with NumPy arrays by stored name. Raises ImagesError for images
    that changed meanwhile."""
    keys = keys_of(source)
    found = stream(
        model,
        source,
        record.layers,
        _REDUCERS[record.reduce],
        batch_size=batch_size,
        rows=rows,
        autocast=autocast,
        title=f"{model.name}: representations",
        also=sums.readings,
        workers=workers,
    )
    for piece in to_host(found):
        part = slice(piece.start, piece.start + piece.n)
        # Checked after the images were read, so that old and new pictures never meet in one run.
        if (
            isinstance(source, (Images, DistortedImages))
            and source.subset(range(len(keys))[part]).keys != keys[part]
        ):
            raise ImagesError(
                f"images of {source.record.name} have changed since the run began, among them one "
                f"of '{source.ids[part.start]}' to '{source.ids[part.stop - 1]}'; start again with "
                "the images as they are now"
            )
        arrays: dict[str, np.ndarray] = {}
        for layer in record.layers:
            reduced = piece.found[layer.name]
            values, prefix = reduced if isinstance(reduced, tuple) else (reduced, None)
            shape = stored_shape(layer, record.reduce)[0]
            # Beyond the range of a narrow type is infinity, which is counted.
            with np.errstate(over="ignore"):
                own = values.numpy().astype(record.dtype, copy=False)
                arrays[layer.name] = own.reshape(piece.n, *shape)
                if prefix is not None:
                    arrays[PREFIX + layer.name] = prefix.numpy().astype(record.dtype, copy=False)
        yield piece, arrays


def collected(
    source: ImageSource,
    record: RunRecord,
    passes: Passes,
    batch_size: int,
    sums: UnitSums,
    out: str | os.PathLike[str] | None,
    verify: bool = False,
) -> Representations:
    """The run that `passes` give, in memory or in a store at `out`. Raises as `extract`."""
    if out is None:
        return _into_memory(source, record, passes, batch_size, sums)
    found = stored(os.fspath(out), record, source, passes, batch_size, sums, verify)
    return found.named(record.model, record.images, tuple(map(printable, source.ids)))


def _into_memory(
    source: ImageSource, record: RunRecord, passes: Passes, batch_size: int, sums: UnitSums
) -> Representations:
    """The run in memory. Raises StoreError where the machine has too little of it."""
    n = len(source)
    needed = n * bytes_per_image(record)
    what = f"{n} images at {len(record.layers)} layers"
    instead = "give out=FOLDER to store them on disk, or use reduce='mean'"
    check_fits(needed, what, instead, StoreError)
    arrays: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    units = sums.units
    rows = (rows for unit in range(len(units)) for rows in units.batches(unit, batch_size))
    with closing(passes(batch_size, rows)) as pieces:
        for piece, found in pieces:
            count_non_finite(found, counts)
            for name, values in found.items():
                if name not in arrays:
                    arrays[name] = np.empty((n, *values.shape[1:]), dtype=record.dtype)
                arrays[name][piece.start : piece.start + piece.n] = values
            unit = units.of_image(piece.start)
            if piece.start + piece.n == units[unit].stop:
                sums.join(unit)
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
