"""Targets of probes other than the class: properties of the images themselves, and columns of a
table.

A `Target` is one number, angle or class per image. The properties of images are computed from their
pixels with values of 0 to 1; luma is Y = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mixer_probe.capture import ImageSource, as_source, part_of
from mixer_probe.core.errors import ImagesError, MeasureError, closest
from mixer_probe.core.fingerprint import (
    Identified,
    altered_key,
    images_fingerprint,
    keys_of,
    picture_of,
)
from mixer_probe.core.result import ImagesRecord, storable
from mixer_probe.core.validate import checked
from mixer_probe.images import Images
from mixer_probe.images.labelled import indexed_batches

Kind = Literal["regression", "angle", "classification"]
LUMA = (0.299, 0.587, 0.114)
# Below this chroma, about half a step of 8 bits, an image is grey and has no hue.
_GREY = 0.5 / 255
HIGH = 0.25
_STEPS = 32
_ID_COLUMNS = ("id", "image", "file", "filename", "file_name", "path", "name")


@storable
@dataclass(frozen=True)
class Target:
    """A property of each image: `values` [n] are numbers, angles in degrees, or indices of
    `classes`.

    NaN marks images where it is not defined (the hue of a grey image). `meaning` is its definition
    in words. `keys` are hashes of the images that the values were measured on, which a probe
    compares with those of its run; without them it goes by names."""

    name: str
    kind: Kind
    ids: tuple[str, ...]
    values: np.ndarray
    classes: tuple[str, ...] = ()
    unit: str = ""
    meaning: str = ""
    keys: tuple[str, ...] = ()

    def of(self, ids: Sequence[str]) -> Target:
        """The target of these images, in their order. Raises ImagesError that counts the ids that
        have none."""
        if tuple(ids) == self.ids:
            return self
        index = {name: i for i, name in enumerate(self.ids)}
        missing = [name for name in ids if name not in index]
        if missing:
            raise ImagesError(
                f"target '{self.name}' has no value for {len(missing)} of {len(ids)} images, the "
                f"first is '{missing[0]}'"
            )
        rows = [index[name] for name in ids]
        keys = tuple(self.keys[i] for i in rows) if self.keys else ()
        return replace(self, ids=tuple(ids), values=self.values[rows], keys=keys)

    def of_run(self, run: Identified) -> Target:
        """The target of the images of a run, in their order.

        Raises as `of`, and MeasureError where images of these names are other pictures, or were
        altered in another way."""
        found = self.of(run.ids)
        pairs = zip(found.keys, keys_of(run), strict=True) if found.keys else ()
        # What was measured on plain pictures may be read from distorted ones.
        other = [
            i for i, (mine, key) in enumerate(pairs) if mine != key and mine != picture_of(key)
        ]
        if other:
            raise MeasureError(
                f"target '{self.name}' was measured on other images than those of the run: "
                f"{len(other)} of {len(found.ids)} differ in content, the first is "
                f"'{found.ids[other[0]]}'; measure it on the images that were extracted"
            )
        return found


@dataclass(frozen=True)
class _Property:
    kind: Kind
    unit: str
    meaning: str
    measure: Callable[[np.ndarray], float]


def _luma(pixels: np.ndarray) -> np.ndarray:
    luma: np.ndarray = pixels @ np.array(LUMA)
    return luma


def brightness(pixels: np.ndarray) -> float:
    """Mean luma of `pixels` [H, W, 3]."""
    return float(_luma(pixels).mean())


def contrast(pixels: np.ndarray) -> float:
    """Standard deviation of the luma of `pixels` [H, W, 3] (RMS contrast)."""
    return float(_luma(pixels).std())


def saturation(pixels: np.ndarray) -> float:
    """Mean over `pixels` [H, W, 3] of the saturation of HSV, (max - min) / max, 0 for black."""
    most = pixels.max(axis=2)
    return float(
        np.divide(most - pixels.min(axis=2), most, out=np.zeros_like(most), where=most > 0).mean()
    )


def hue(pixels: np.ndarray) -> float:
    """Direction in degrees [0, 360) of the mean chroma vector of `pixels` [H, W, 3]; NaN for a grey
    image.

    The vector of a pixel has the components R - (G + B) / 2 and sqrt(3) / 2 (G - B), so that pixels
    count by how colourful they are, and red, green and blue are at 0, 120 and 240."""
    red, green, blue = pixels.mean(axis=(0, 1))
    along, across = red - (green + blue) / 2, 3**0.5 / 2 * (green - blue)
    return (
        float(np.degrees(np.arctan2(across, along)) % 360)
        if np.hypot(along, across) > _GREY
        else np.nan
    )


def frequency(pixels: np.ndarray) -> float:
    """Mean frequency of the luma of `pixels` [H, W, 3] in cycles per pixel, weighted by power; NaN
    for a constant image."""
    power, radius = _spectrum(pixels)
    return float((power * radius).sum() / power.sum()) if power.sum() > 0 else np.nan


def high_frequency(pixels: np.ndarray) -> float:
    """Fraction of the power of the luma of `pixels` [H, W, 3] at 0.25 cycles per pixel and more;
    NaN for a constant image."""
    power, radius = _spectrum(pixels)
    return float(power[radius >= HIGH].sum() / power.sum()) if power.sum() > 0 else np.nan


def _spectrum(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Power of the mean-removed luma by frequency, and the radial frequency in cycles per pixel."""
    luma = _luma(pixels)
    power = np.abs(np.fft.fft2(luma - luma.mean())) ** 2
    # What is left of a constant image is rounding.
    power[power < (1e-9 * luma.size) ** 2] = 0
    rows, columns = (np.fft.fftfreq(size) for size in luma.shape)
    return power, np.hypot(rows[:, None], columns[None, :])


PROPERTIES: dict[str, _Property] = {
    "brightness": _Property("regression", "", "mean luma, 0 to 1", brightness),
    "contrast": _Property("regression", "", "standard deviation of the luma", contrast),
    "saturation": _Property("regression", "", "mean saturation of HSV, 0 to 1", saturation),
    "hue": _Property("angle", "degrees", "direction of the mean chroma", hue),
    "frequency": _Property(
        "regression", "cycles/px", "power-weighted mean frequency of the luma", frequency
    ),
    "high_frequency": _Property(
        "regression",
        "",
        f"fraction of the luma's power at {HIGH} cycles/px and more",
        high_frequency,
    ),
}


def image_targets(images: Images, names: Sequence[str] | None = None) -> tuple[Target, ...]:
    """Properties of every image, all of `PROPERTIES` or those named: brightness, contrast,
    saturation, hue, frequency, ...

    They are measured at the image's own size. Raises MeasureError for a name that is none, with
    close ones, and ImagesError for images that cannot be decoded or are no pictures."""
    wanted = tuple(PROPERTIES) if names is None else tuple(names)
    for name in wanted:
        if name not in PROPERTIES:
            raise MeasureError(f"'{name}' is no property of images; {closest(name, PROPERTIES)}")
    if not isinstance(images, Images):
        raise ImagesError(
            f"properties are measured on what load_images returns, not on a {type(images).__name__}"
        )
    keys = images.keys
    pixels = (np.asarray(image, dtype=np.float64) / 255 for image in images)
    values = np.array([[PROPERTIES[name].measure(one) for name in wanted] for one in pixels])
    return tuple(
        Target(name, found.kind, images.ids, values[:, i], (), found.unit, found.meaning, keys)
        for i, (name, found) in enumerate((name, PROPERTIES[name]) for name in wanted)
    )


@checked(MeasureError)
def binned(target: Target, bins: int = 4, edges: Sequence[float] | None = None) -> Target:
    """A target in classes: angles in `bins` equal sectors, the first centred on 0; numbers in
    `bins` of about equally many images. `edges` [bins - 1] cuts numbers there instead, so that test
    images can share those of the training images.

    Raises MeasureError for a target that has classes, and fewer than two bins."""
    if target.kind == "classification" or bins < 2:
        raise MeasureError(
            f"target '{target.name}' cannot be cut into {bins} bins: take numbers or angles, and 2 "
            "or more"
        )
    known = ~np.isnan(target.values)
    values = np.full(len(target.values), np.nan)
    if target.kind == "angle":
        width = 360 / bins
        values[known] = np.floor((target.values[known] + width / 2) % 360 / width)
        classes = tuple(f"{i * width:g}°" for i in range(bins))
    else:
        cuts = (
            np.quantile(target.values[known], np.arange(1, bins) / bins)
            if edges is None
            else np.asarray(edges, dtype=np.float64)
        )
        values[known] = np.searchsorted(cuts, target.values[known], side="right")
        bounds = ("", *(f"{cut:.3g}" for cut in cuts), "")
        classes = tuple(f"{low}..{high}" for low, high in pairwise(bounds))
    return replace(
        target,
        name=f"{target.name} in {len(classes)} bins",
        kind="classification",
        values=values,
        classes=classes,
    )


@checked(MeasureError)
def targets_from_csv(
    path: str | os.PathLike[str],
    images: ImageSource,
    column: str,
    kind: Literal["regression", "classification"] | None = None,
    id_column: str | None = None,
) -> Target:
    """A column of a table as a target of `images`.

    Rows are matched by image id, else by the file's name, else by its name without the extension;
    the ids are in `id_column`, else in the first of id, image, file, filename, path or name there
    is, else in the first column. Numbers are regression and everything else classification, unless
    `kind` says otherwise. Further rows are ignored.

    Raises ImagesError for a table that cannot be read, a missing column (with close names), an
    image in two rows that differ, images that have no row or no value (their number and the first),
    and MeasureError for text where regression is asked for."""
    try:
        head = pd.read_csv(path, skipinitialspace=True, nrows=0)
        # Ids are text: as numbers, 0012 would lose its zeros.
        table = pd.read_csv(
            path, skipinitialspace=True, dtype={_id_column(head, id_column, path): str}
        )
    except (OSError, ValueError) as error:
        raise ImagesError(f"cannot read the table {path}: {str(error).splitlines()[0]}") from error
    if table.empty:
        raise ImagesError(f"the table {path} has no rows")
    if column not in table:
        raise ImagesError(
            f"{path} has no column '{column}'; {closest(column, map(str, table.columns))}"
        )
    rows = _rows_of(images.ids, table[_id_column(table, id_column, path)].astype(str), path)
    values = table[column].iloc[rows].reset_index(drop=True)
    empty = np.flatnonzero(values.isna())
    if len(empty):
        raise ImagesError(
            f"column '{column}' of {path} is empty for {len(empty)} images, the first is "
            f"'{images.ids[empty[0]]}'"
        )
    meaning = f"column of {Path(path).name}"
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if (kind or ("regression" if numeric else "classification")) == "classification":
        names, indices = np.unique(values.to_numpy(dtype=object).astype(str), return_inverse=True)
        classes = tuple(map(str, names))
        return Target(
            column,
            "classification",
            images.ids,
            indices.astype(np.float64),
            classes,
            meaning=meaning,
        )
    if not numeric:
        raise MeasureError(
            f"column '{column}' of {path} holds text such as '{values.iloc[0]}', which no "
            "regression reads: take kind='classification'"
        )
    return Target(
        column, "regression", images.ids, values.to_numpy(dtype=np.float64), meaning=meaning
    )


def _id_column(table: pd.DataFrame, wanted: str | None, path: str | os.PathLike[str]) -> str:
    if wanted is not None:
        if wanted not in table:
            raise ImagesError(
                f"{path} has no column '{wanted}'; {closest(wanted, map(str, table.columns))}"
            )
        return wanted
    lower = {str(name).lower(): str(name) for name in reversed(table.columns)}
    return next((lower[name] for name in _ID_COLUMNS if name in lower), str(table.columns[0]))


def _rows_of(ids: Sequence[str], names: pd.Series[str], path: str | os.PathLike[str]) -> list[int]:
    """The row of every image. Raises ImagesError for images without one, and with several."""
    best: list[str] = list(ids)
    for shorten in (lambda name: name, lambda name: Path(name).name, lambda name: Path(name).stem):
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            rows.setdefault(shorten(name), []).append(row)
        missing = [name for name in ids if shorten(name) not in rows]
        best = missing if len(missing) < len(best) else best
        if not missing:
            twice = [name for name in ids if len(rows[shorten(name)]) > 1]
            if twice or len({shorten(name) for name in ids}) < len(ids):
                name = (twice or list(ids))[0]
                raise ImagesError(
                    f"{path} has several rows for image '{name}', or several images share its "
                    "name: give whole ids"
                )
            return [rows[shorten(name)][0] for name in ids]
    raise ImagesError(
        f"{path} has no row for {len(best)} of {len(ids)} images, the first is '{best[0]}'"
    )


@dataclass(frozen=True, eq=False)
class AlteredImages:
    """Images that are changed after a network's own transform, each in its own way; a source for
    `extract`.

    `change` takes a preprocessed input [3, H, W] and the index of the image and returns one of the
    same shape. `ids` are those of the source; `name` identifies the change, and with it the images;
    `targets` are the parameters of the change of each image. `places` are the indices of the images
    of a subset in the whole set."""

    source: ImageSource
    change: Callable[[Tensor, int], Tensor]
    name: str
    targets: tuple[Target, ...]
    places: tuple[int, ...] | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """As in the source."""
        return self.source.ids

    @property
    def keys(self) -> tuple[str, ...]:
        """Key of each image with the change, which depends on its place."""
        return tuple(
            altered_key(key, self.name, str(i))
            for i, key in zip(self._places, keys_of(self.source), strict=True)
        )

    @property
    def _places(self) -> Sequence[int]:
        return range(len(self)) if self.places is None else self.places

    def subset(self, indices: Iterable[int] | np.ndarray) -> AlteredImages:
        """Some of the images, each changed as it is here; raises ImagesError for a source that has
        no single images."""
        rows = np.arange(len(self))[
            np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
        ]
        return replace(
            self, source=part_of(self.source, rows), places=tuple(self._places[i] for i in rows)
        )

    @property
    def labels(self) -> np.ndarray | None:
        """As in the source."""
        return self.source.labels

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """As in the source."""
        return self.source.class_names

    @property
    def record(self) -> ImagesRecord:
        """That of the source, with the change in its name."""
        record = self.source.record
        found = images_fingerprint(self.keys, self.labels, self.class_names, record.split)
        return replace(record, name=f"{record.name} ({self.name})", fingerprint=found)

    def __len__(self) -> int:
        return len(self.source)

    def batches(
        self,
        transform: Callable[[Any], Tensor],
        batches: int | Iterable[Sequence[int]],
        *,
        workers: int | Literal["auto"] = "auto",
        pin_memory: bool = False,
    ) -> Iterator[Tensor]:
        """The source's batches, changed."""
        for batch, index in indexed_batches(
            self.source, transform, batches, workers=workers, pin_memory=pin_memory
        ):
            yield torch.stack(
                [self.change(image, self._places[i]) for image, i in zip(batch, index, strict=True)]
            )


@checked(MeasureError)
def shifted_images(
    images: ImageSource | Tensor, most: float = 0.25, seed: int = 0
) -> AlteredImages:
    """Every image moved by a random whole number of pixels, up to the fraction `most` of its width
    and height either way.

    The uncovered border is filled with the mirrored image, since zeros there would give the shift
    away. The targets are "shift right" and "shift down" as fractions of width and height, in steps
    of 1 / 32.

    Raises MeasureError unless 0 < `most` <= 0.5."""
    if not 0 < most <= 0.5:
        raise MeasureError(
            f"most={most} must be a fraction of the image side above 0 and at most 0.5"
        )
    source = as_source(images)
    # Whole pixels at the usual sizes, which are multiples of 32.
    steps = max(1, int(_STEPS * most))
    moves = np.random.default_rng(seed).integers(-steps, steps + 1, size=(len(source), 2)) / _STEPS

    def move(image: Tensor, i: int) -> Tensor:
        height, width = image.shape[1:]
        down, right = round(moves[i, 0] * height), round(moves[i, 1] * width)
        rows, columns = (
            _mirrored(np.arange(height) - down, height),
            _mirrored(np.arange(width) - right, width),
        )
        return image[:, torch.from_numpy(rows)][:, :, torch.from_numpy(columns)]

    altered = AlteredImages(source, move, f"shifted by up to {most}, seed {seed}", ())
    return _with_targets(
        altered, "shift", moves, "how far the content was moved, mirrored at the border"
    )


def _with_targets(
    images: AlteredImages, name: str, values: np.ndarray, meaning: str
) -> AlteredImages:
    """The images with a target to the right and one down, of `values` [n, (down, right)] as
    fractions of the sides."""
    found = [
        Target(
            f"{name} {way}",
            "regression",
            images.ids,
            values[:, axis],
            (),
            "of the side",
            meaning,
            images.keys,
        )
        for way, axis in (("right", 1), ("down", 0))
    ]
    return replace(images, targets=tuple(found))


def _mirrored(index: np.ndarray, size: int) -> np.ndarray:
    """Indices beyond the border, mirrored at the border's own edge."""
    index = index % (2 * size)
    mirrored: np.ndarray = np.where(index < size, index, 2 * size - 1 - index)
    return mirrored


@checked(MeasureError)
def planted_images(
    images: ImageSource | Tensor, fraction: float = 0.25, value: float = 0.0, seed: int = 0
) -> AlteredImages:
    """Every image with a square of the fraction `fraction` of its side and of constant `value`
    (after the transform; 0 is the mean colour of the training set) at a random place.

    The targets are "square right" and "square down": the place of its centre as fractions of width
    and height.

    Raises MeasureError unless 0 < `fraction` < 1."""
    if not 0 < fraction < 1:
        raise MeasureError(
            f"fraction={fraction} must be a fraction of the image side between 0 and 1, both "
            "excluded"
        )
    source = as_source(images)
    places = np.random.default_rng(seed).uniform(size=(len(source), 2))

    def plant(image: Tensor, i: int) -> Tensor:
        sides = [max(1, round(fraction * size)) for size in image.shape[1:]]
        starts = [
            round(place * (size - side))
            for place, size, side in zip(places[i], image.shape[1:], sides, strict=True)
        ]
        planted = image.clone()
        planted[:, starts[0] : starts[0] + sides[0], starts[1] : starts[1] + sides[1]] = value
        return planted

    altered = AlteredImages(source, plant, f"square of {fraction}, value {value}, seed {seed}", ())
    return _with_targets(
        altered,
        "square",
        fraction / 2 + places * (1 - fraction),
        "where the centre of the planted square is",
    )
