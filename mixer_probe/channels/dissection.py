"""Network dissection: which concept a channel marks in the image, and whether chance would mark it as well.

Bau, Zhou, Khosla, Oliva and Torralba 2017, "Network Dissection: Quantifying Interpretability of Deep Visual Representations". A
channel is lit where its map, laid over the image, is above the threshold that 0.5 % of its activations exceed (strictly, as in
the authors' code: with "or equal" a channel that a ReLU shuts nearly everywhere would be lit everywhere). It is compared with a
concept by intersection over union of the pixels of all images.

The paper calls a channel a detector if its IoU is above 0.04. That number knows neither how large a concept is nor where in
images it likes to be: of a concept on a share s of the pixels no channel lit on 0.5 % has an IoU above 0.005 / s. Here the masks
are dealt out to other images, which keeps sizes and places, and a detector is a channel above what the best of all channels and
concepts of its layer reads then.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from torch import Tensor

from mixer_probe.capture import ImageSource, as_source, part_of
from mixer_probe.channels.overlap import (
    Counts,
    annotated,
    areas,
    every,
    overlaps,
    seen_masks,
    thresholds,
    upsampler,
    whole_images,
)
from mixer_probe.channels.selectivity import LEVEL
from mixer_probe.channels.statistics import place_of
from mixer_probe.core.errors import (
    ImagesError,
    LayerError,
    MeasureError,
    UndefinedChannelsWarning,
    UndefinedConceptsWarning,
    closest,
)
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.images.concepts import Concepts
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.stats import check_permutations, upper_quantile

Attributes = Literal["peak", "fill"]
# Above it Bau et al. call a channel a detector.
PAPER_IOU = 0.04


@dataclass(frozen=True)
class Dissection(Result):
    """How well every channel marks each concept. Tuples are over layers.

    `iou` [channel, concept] is the intersection over union of what the channel lights and where the concept is, over all images
    in which the concept is known; `by` says of what: "pixels" (masks), "peak" (attributes: images in which any position is lit)
    or "fill" (attributes that fill the image). `threshold` [channel] is the activation that at most a share 1 - `quantile` of all
    positions exceeds, `lit` [channel] the share of pixels (images) above it. `chance` [channel, concept] is the mean IoU over
    `permutations`, which deal the masks out to the images anew.

    `null95` [layer, concept] is what the best channel of the layer stays within in 95 % of the permutations, and `null_mean` its
    mean over these and the true masks. Concepts differ in size, so that they are put together in units of that mean:
    `strength` [channel] is the largest IoU / null_mean over concepts, and `preferred` [channel] the concept that has it, -1 where
    undefined. `p_value` [channel] is the share of the permutations in which the largest strength of the layer reaches the
    channel's (+1 in both): corrected for all channels and concepts. `concept_p` [layer, concept] is the p-value of the
    concept's best channel, corrected for channels.

    NaN: channels that are constant or not finite, concepts that are nowhere. `concept_images` and `known_images` [concept] count
    images that have the concept and in which it is known, `concept_share` [concept] is its share of the pixels (images) of the
    latter. `size` is the rows and columns of pixels compared. `n` images are annotated, `left_out` are not."""

    title: ClassVar[str] = "Dissection"

    model: ModelRecord
    images: ImagesRecord
    layers: tuple[Layer, ...]
    n: int
    left_out: int
    source: str
    concepts: tuple[str, ...]
    by: str
    quantile: float
    size: tuple[int, int]
    permutations: int
    seed: int
    concept_images: np.ndarray
    known_images: np.ndarray
    concept_share: np.ndarray
    threshold: tuple[np.ndarray, ...]
    lit: tuple[np.ndarray, ...]
    iou: tuple[np.ndarray, ...]
    chance: tuple[np.ndarray, ...]
    null95: np.ndarray
    null_mean: np.ndarray
    strength: tuple[np.ndarray, ...]
    preferred: tuple[np.ndarray, ...]
    p_value: tuple[np.ndarray, ...]
    concept_p: np.ndarray

    @property
    def detectors(self) -> tuple[np.ndarray, ...]:
        """Per layer, which channels [channel] are above the corrected null at 5 %."""
        with np.errstate(invalid="ignore"):
            return tuple(p <= LEVEL for p in self.p_value)

    def above(self, iou: float = PAPER_IOU) -> tuple[np.ndarray, ...]:
        """Per layer, which channels [channel] have an IoU above `iou` with any concept: the rule of the paper."""
        with np.errstate(invalid="ignore"):
            return tuple(np.asarray((values > iou).any(1)) for values in self.iou)

    def index(self, layer: str) -> int:
        """The place of a layer. Raises LayerError that lists close names."""
        return place_of(layer, self.layers, self.model.name)

    def concept(self, name: str) -> int:
        """The place of a concept. Raises ImagesError that lists close names."""
        if name not in self.concepts:
            raise ImagesError(f"no concept '{name}' in this dissection; {closest(name, self.concepts)}")
        return self.concepts.index(name)

    def to_frame(self) -> pd.DataFrame:
        """One row a layer and channel, with the concept that it stands out for; `largest_iou` is that of `largest_concept`."""
        return pd.concat([self._layer_frame(i) for i in range(len(self.layers))], ignore_index=True)

    def _layer_frame(self, i: int) -> pd.DataFrame:
        layer, best, iou = self.layers[i], self.preferred[i], self.iou[i]
        rows, named = np.arange(layer.channels), self.preferred[i] >= 0
        names = np.array(self.concepts)
        largest = np.where(np.isnan(iou), -1, iou).argmax(1)
        return pd.DataFrame(
            {
                "model": self.model.name,
                "layer": layer.name,
                "kind": layer.kind,
                "depth": layer.depth,
                "channel": rows,
                "concept": np.where(named, names[best], ""),
                "iou": np.where(named, iou[rows, best], np.nan),
                "chance": np.where(named, self.chance[i][rows, best], np.nan),
                "null95": np.where(named, self.null95[i][best], np.nan),
                "strength": self.strength[i],
                "p_value": self.p_value[i],
                "detector": self.detectors[i],
                "largest_concept": np.where(named, names[largest], ""),
                "largest_iou": np.where(named, iou[rows, largest], np.nan),
                "threshold": self.threshold[i],
                "lit": self.lit[i],
                "n_images": self.n,
            }
        )

    def concept_frame(self) -> pd.DataFrame:
        """One row a layer and concept, with the channel that marks it best and how many detectors stand out for it."""
        return pd.concat([self._concept_rows(i) for i in range(len(self.layers))], ignore_index=True)

    def _concept_rows(self, i: int) -> pd.DataFrame:
        layer, iou = self.layers[i], self.iou[i]
        best = np.where(np.isnan(iou), -1, iou).argmax(0)
        known = np.isfinite(iou).any(0)
        detectors = self.preferred[i][self.detectors[i]]
        columns = np.arange(len(self.concepts))
        return pd.DataFrame(
            {
                "model": self.model.name,
                "layer": layer.name,
                "kind": layer.kind,
                "depth": layer.depth,
                "concept": self.concepts,
                "channel": np.where(known, best, -1),
                "iou": np.where(known, iou[best, columns], np.nan),
                "null95": self.null95[i],
                "p_value": self.concept_p[i],
                "detectors": (detectors[:, None] == columns).sum(0),
                "share": self.concept_share,
                "images": self.concept_images,
                "n_images": self.known_images,
            }
        )

    def summary(self) -> pd.DataFrame:
        """One row a layer: detectors, how many concepts they stand for, the best IoU of channels."""
        return pd.DataFrame([self._layer_summary(i) for i in range(len(self.layers))])

    def _layer_summary(self, i: int) -> dict[str, object]:
        layer, detectors = self.layers[i], self.detectors[i]
        best = self._layer_frame(i)["largest_iou"].dropna().to_numpy()
        return {
            "model": self.model.name,
            "layer": layer.name,
            "kind": layer.kind,
            "depth": layer.depth,
            "channels": layer.channels,
            "detectors": int(detectors.sum()),
            "share_detectors": float(detectors.mean()) if self.permutations else np.nan,
            "unique_concepts": len(np.unique(self.preferred[i][detectors])),
            # The rule is about pixels: of images nearly every channel reaches it.
            "share_above_paper": float(self.above()[i].mean()) if self.by != "peak" else np.nan,
            "iou_median": float(np.median(best)) if len(best) else np.nan,
            "iou_max": float(best.max()) if len(best) else np.nan,
            "strength_max": float(np.nanmax(self.strength[i])) if len(best) else np.nan,
            "n_images": self.n,
        }


@checked(MeasureError)
def dissect(
    model: Model,
    images: ImageSource | Tensor,
    concepts: Concepts,
    layers: str | Sequence[str] = "blocks",
    *,
    quantile: float = 0.995,
    permutations: int = 100,
    attributes: Attributes = "peak",
    step: int | None = None,
    batch_size: int = 16,
    autocast: str | None = None,
    seed: int = 0,
) -> Dissection:
    """How well the channels of the chosen layers mark each of the `concepts`, in two passes over the annotated images.

    Masks go through the network's resizing and cropping by nearest neighbour; maps are laid over its input by bilinear
    interpolation anchored at the centres of receptive fields, and every `step`-th pixel is compared (None: at most 112 a side,
    half the resolution at 224 px, as in the paper). Attributes of whole images are compared by images: one is lit if any
    position is above the threshold ("peak"); "fill" takes the attribute for a mask that fills the image, as the paper does.

    `permutations` deal the masks out to other images, the same way for all layers; 0 leaves out the null. Thresholds are exact
    and need memory for 1 - `quantile` of the activations of the layers; masks are held with one bit a pixel.

    Raises LayerError (a layer without a grid for masks, unknown layers), ImagesError (no image is annotated, masks that cannot
    be read or have another size than their image) and MeasureError (too few values for the quantile). Warns with
    UndefinedChannelsWarning about channels that are constant or not finite, and with UndefinedConceptsWarning about concepts that
    are in no image."""
    check_permutations(permutations)
    source, selected = as_source(images), model.select(layers)
    by = "pixels" if concepts.kind == "masks" else attributes
    if by != "peak":
        _require_grids(selected, model, by)
    chosen, places = annotated(source, concepts)
    taken = part_of(source, chosen)
    if permutations and len(chosen) < 2:
        raise MeasureError(
            "one image is annotated, and a permutation null needs two or more: annotate more images, or set permutations=0"
        )
    size = (model.input.size[1], model.input.size[2])
    work = _Work(model, taken, selected, concepts, places, by, every(size, step), _orders(len(chosen), permutations, seed))
    found = work.run(quantile, batch_size, autocast)
    counts = [_of_layer(found[layer.name][0], found[layer.name][1], permutations) for layer in selected]
    _warn_undefined(model, selected, counts)
    there, known, pixels = work.there, concepts.known[places], work.total
    _warn_nowhere(concepts, there)
    return Dissection(
        model=model.record,
        images=taken.record,
        layers=tuple(selected),
        n=len(chosen),
        left_out=len(source) - len(chosen),
        source=concepts.name,
        concepts=concepts.names,
        by=by,
        quantile=quantile,
        size=(len(work.pixels[0]), len(work.pixels[1])) if by != "peak" else size,
        permutations=permutations,
        seed=seed,
        concept_images=(there > 0).sum(0),
        known_images=known.sum(0),
        concept_share=there.sum(0) / np.maximum(known.sum(0) * pixels, 1),
        threshold=tuple(found[layer.name][2] for layer in selected),
        lit=tuple(found[layer.name][0].area.mean(0) / pixels for layer in selected),
        iou=tuple(c.iou for c in counts),
        chance=tuple(c.chance for c in counts),
        null95=np.stack([c.null95 for c in counts]),
        null_mean=np.stack([c.null_mean for c in counts]),
        strength=tuple(c.strength for c in counts),
        preferred=tuple(c.preferred for c in counts),
        p_value=tuple(c.p_value for c in counts),
        concept_p=np.stack([c.concept_p for c in counts]),
    )


def _require_grids(layers: Sequence[Layer], model: Model, by: str) -> None:
    for layer in layers:
        if layer.grid is None:
            what = "masks cannot be laid over it" if by == "pixels" else "attributes cannot fill it"
            raise LayerError(
                f"'{layer.name}' of {model.name} has no grid of positions, so {what}; take layers with a grid, such as 'blocks', "
                "or attributes of whole images (a CSV file, class_concepts) with attributes='peak'"
            )


def _orders(n: int, permutations: int, seed: int) -> np.ndarray:
    """[arrangement, image]: whose mask each image has; the first is the truth."""
    rng = np.random.default_rng(seed)
    return np.stack([np.arange(n), *(rng.permutation(n) for _ in range(permutations))])


@dataclass
class _Work:
    """What the two passes need."""

    model: Model
    images: ImageSource
    layers: Sequence[Layer]
    concepts: Concepts
    places: Sequence[int]
    by: str
    pixels: tuple[np.ndarray, np.ndarray]
    orders: np.ndarray
    # Pixels (or images) of each concept in each image, [image, concept]; `run` counts them.
    there: np.ndarray = field(init=False)

    @property
    def total(self) -> int:
        """Pixels an image is compared by; 1 where images are."""
        return 1 if self.by == "peak" else len(self.pixels[0]) * len(self.pixels[1])

    @property
    def known(self) -> np.ndarray:
        """Where concepts are known, [image, concept]."""
        return self.concepts.known[list(self.places)]

    def run(self, quantile: float, batch_size: int, autocast: str | None) -> dict[str, tuple[Counts, np.ndarray, np.ndarray]]:
        """Counts, which channels are defined, and thresholds of every layer."""
        # Masks before the network: what is wrong with them is known at once.
        masks = None
        if self.by == "pixels":
            masks = seen_masks(self.model, self.images, self.concepts, self.places, self.pixels)
        maps = None if self.by == "peak" else {layer.name: upsampler(self.model, layer, self.pixels) for layer in self.layers}
        found = thresholds(self.model, self.images, self.layers, quantile, batch_size, autocast)
        levels = {name: level for name, (level, _) in found.items()}
        if masks is not None and maps is not None:
            self.there = masks.sizes()
            counts = overlaps(
                self.model, self.images, self.layers, levels, masks, maps, self.known, self.orders, batch_size, autocast
            )
        else:
            assert self.concepts.attributes is not None
            present = self.concepts.attributes[list(self.places)]
            self.there = present * self.total
            lit = areas(self.model, self.images, self.layers, levels, maps, batch_size, autocast)
            counts = {name: whole_images(area, present, self.known, self.orders, self.total) for name, area in lit.items()}
        return {name: (counts[name], defined, level) for name, (level, defined) in found.items()}


@dataclass(frozen=True)
class _OfLayer:
    iou: np.ndarray
    chance: np.ndarray
    null95: np.ndarray
    null_mean: np.ndarray
    strength: np.ndarray
    preferred: np.ndarray
    p_value: np.ndarray
    concept_p: np.ndarray
    defined: np.ndarray


def _of_layer(counts: Counts, defined: np.ndarray, permutations: int) -> _OfLayer:
    iou = np.where(defined[:, None, None], counts.iou, np.nan)
    # What is undefined is never the largest.
    filled = np.where(np.isnan(iou), 0.0, iou)
    best = filled.max(0)
    null_mean = best.mean(0) if permutations else np.ones(iou.shape[2])
    strengths = filled / np.where(null_mean > 0, null_mean, np.inf)
    preferred = strengths[:, 0].argmax(1)
    strength = strengths[:, 0].max(1)
    peaks = strengths.max((0, 2))
    somewhere = np.asarray(np.isfinite(iou[:, 0]).any(0))
    named = defined & somewhere.any()
    return _OfLayer(
        iou=iou[:, 0],
        chance=iou[:, 1:].mean(1) if permutations else np.full_like(iou[:, 0], np.nan),
        null95=np.where(somewhere, upper_quantile(best[1:]), np.nan) if permutations else np.full(len(somewhere), np.nan),
        null_mean=np.where(somewhere & (permutations > 0), null_mean, np.nan),
        strength=np.where(named, strength, np.nan),
        preferred=np.where(named, preferred, -1),
        p_value=np.where(named, _reached(strength, peaks[1:, None]), np.nan),
        concept_p=np.where(somewhere, _reached(best[0], best[1:]), np.nan),
        defined=defined,
    )


def _reached(values: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Shares of the null [permutation, value] (or one column for all) that reach the values, +1 in both; NaN without a null.

    Phipson and Smyth 2010. The maxima over channels make them corrected (Westfall and Young 1993)."""
    if not len(null):
        return np.full(len(values), np.nan)
    # Rounding must not make equals differ.
    return np.asarray((1 + (null >= values * (1 - 1e-12)).sum(0)) / (1 + len(null)))


def _warn_undefined(model: Model, layers: Sequence[Layer], found: Sequence[_OfLayer]) -> None:
    bad = {layer.name: int((~f.defined).sum()) for layer, f in zip(layers, found, strict=True) if not f.defined.all()}
    if bad:
        listed = ", ".join(f"{n} of '{name}'" for name, n in list(bad.items())[:3]) + (", ..." if len(bad) > 3 else "")
        warnings.warn(
            f"channels of {model.name} that are constant or not finite have no threshold and mark no concept (NaN): {listed}",
            UndefinedChannelsWarning,
            stacklevel=4,
        )


def _warn_nowhere(concepts: Concepts, there: np.ndarray) -> None:
    nowhere = [name for name, total in zip(concepts.names, there.sum(0), strict=True) if not total]
    if nowhere:
        listed = ", ".join(f"'{name}'" for name in nowhere[:5]) + (", ..." if len(nowhere) > 5 else "")
        warnings.warn(
            f"{len(nowhere)} concepts of {concepts.name} are in no image as the network sees them, so that no channel marks them "
            f"(NaN): {listed}",
            UndefinedConceptsWarning,
            stacklevel=4,
        )
