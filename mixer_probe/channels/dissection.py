"""Network dissection: which annotated concepts a channel detects, against permuted annotations.

Bau, Zhou, Khosla, Oliva and Torralba 2017, "Network Dissection: Quantifying Interpretability of
Deep Visual Representations". A channel is active where its upsampled map is above the threshold
that 0.5 % of its activations exceed (strictly, as in the authors' code: with "or equal" a channel
that a ReLU suppresses nearly everywhere would be active everywhere). It is compared with a concept
by intersection over union (IoU) of the pixels of all images.

The paper calls a channel a detector if its IoU is above 0.04. That level depends neither on the
size of a concept nor on its typical place in images: for a concept on a fraction s of the pixels no
channel active on 0.5 % has an IoU above 0.005 / s. Here the masks are permuted over images, which
preserves sizes and places, and a detector is a channel above the best of all channels and concepts
of its layer under permutation.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from torch import Tensor

from mixer_probe.capture import ImageSource, as_source, part_of
from mixer_probe.channels.layerwise import Layerwise, warn_undefined
from mixer_probe.channels.overlap import (
    Counts,
    annotated,
    areas,
    overlaps,
    resized_masks,
    sample_pixels,
    thresholds,
    upsampler,
    whole_images,
)
from mixer_probe.channels.selectivity import LEVEL, ROUNDING
from mixer_probe.core.errors import (
    ImagesError,
    LayerError,
    MeasureError,
    UndefinedConceptsWarning,
    closest,
)
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.images.concepts import Concepts
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.stats import check_permutations, permutation_p, upper_quantile

Attributes = Literal["peak", "fill"]
# Bau et al. call a channel above it a detector.
PAPER_IOU = 0.04


@dataclass(frozen=True)
class Dissection(Layerwise, Result):
    """How well every channel detects each concept. Tuples are over layers.

    `iou` [channel, concept] is the intersection over union of the active region and the concept,
    over all images in which the concept is known; `by` is the unit: "pixels" (masks), "peak"
    (attributes: an image is active if any position is) or "fill" (attributes that fill the image).
    `threshold` [channel] is the activation that at most a fraction 1 - `quantile` of all positions
    exceeds, `lit` [channel] the fraction of pixels (images) above it. `chance` [channel, concept]
    is the mean IoU over `permutations` of the masks over images.

    `null95` [layer, concept] is the 95th percentile over permutations of the best channel's IoU,
    and `null_mean` its mean over the permutations and the true masks. Concepts differ in size, so
    that their IoU is compared in units of that mean: `strength` [channel] is the largest IoU /
    null_mean over concepts, and `preferred` [channel] the concept that has it, -1 where undefined.
    `p_value` [channel] is the fraction of the permutations in which the largest strength of the
    layer reaches the channel's (+1 in both): corrected for all channels and concepts. `concept_p`
    [layer, concept] is the p-value of the concept's best channel, corrected for channels.

    NaN: channels that are constant or not finite, concepts that are nowhere. `concept_images` and
    `known_images` [concept] count images that have the concept and in which it is known,
    `concept_fraction` [concept] is its fraction of the pixels (images) of the latter. `size` is the
    rows and columns of pixels compared. `n` images are annotated, `left_out` are not."""

    title: ClassVar[str] = "Dissection"

    model: ModelRecord
    images: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    n: int
    left_out: int
    source: str
    concepts: Annotated[tuple[str, ...], "concept"]
    by: str
    quantile: float
    size: tuple[int, int]
    permutations: int
    seed: int
    concept_images: Annotated[np.ndarray, "concept"]
    known_images: Annotated[np.ndarray, "concept"]
    concept_fraction: Annotated[np.ndarray, "concept"]
    threshold: Annotated[tuple[np.ndarray, ...], "layer", "channel"]
    lit: Annotated[tuple[np.ndarray, ...], "layer", "channel"]
    iou: Annotated[tuple[np.ndarray, ...], "layer", "channel", "concept"]
    chance: Annotated[tuple[np.ndarray, ...], "layer", "channel", "concept"]
    null95: Annotated[np.ndarray, "layer", "concept"]
    null_mean: Annotated[np.ndarray, "layer", "concept"]
    strength: Annotated[tuple[np.ndarray, ...], "layer", "channel"]
    preferred: Annotated[tuple[np.ndarray, ...], "layer", "channel"]
    p_value: Annotated[tuple[np.ndarray, ...], "layer", "channel"]
    concept_p: Annotated[np.ndarray, "layer", "concept"]

    @property
    def detectors(self) -> tuple[np.ndarray, ...]:
        """Per layer, which channels [channel] are above the corrected null at 5 %."""
        with np.errstate(invalid="ignore"):
            return tuple(p <= LEVEL for p in self.p_value)

    def above(self, iou: float = PAPER_IOU) -> tuple[np.ndarray, ...]:
        """Per layer, which channels [channel] have an IoU above `iou` with any concept: the rule of
        Bau et al."""
        with np.errstate(invalid="ignore"):
            return tuple(np.asarray((values > iou).any(1)) for values in self.iou)

    def concept(self, name: str) -> int:
        """The index of a concept. Raises ImagesError that lists close names."""
        if name not in self.concepts:
            raise ImagesError(
                f"no concept '{name}' in this dissection; {closest(name, self.concepts)}"
            )
        return self.concepts.index(name)

    def layer_frame(self, i: int) -> pd.DataFrame:
        """One row per channel of layer `i`, with its preferred concept; `largest_iou` is that of
        `largest_concept`."""
        layer, best, iou = self.layers[i], self.preferred[i], self.iou[i]
        rows, named = np.arange(layer.channels), self.preferred[i] >= 0
        names = np.array(self.concepts)
        largest = np.where(np.isnan(iou), -1, iou).argmax(1)
        return pd.DataFrame(
            {
                **self.layer_columns(i),
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
        """One row per layer and concept, with its best channel and the number of detectors that
        prefer it."""
        frames, columns = [], np.arange(len(self.concepts))
        for i, iou in enumerate(self.iou):
            best = np.where(np.isnan(iou), -1, iou).argmax(0)
            known = np.isfinite(iou).any(0)
            detectors = self.preferred[i][self.detectors[i]]
            rows = {
                **self.layer_columns(i),
                "concept": self.concepts,
                "channel": np.where(known, best, -1),
                "iou": np.where(known, iou[best, columns], np.nan),
                "null95": self.null95[i],
                "p_value": self.concept_p[i],
                "detectors": (detectors[:, None] == columns).sum(0),
                "fraction": self.concept_fraction,
                "images": self.concept_images,
                "n_images": self.known_images,
            }
            frames.append(pd.DataFrame(rows))
        return pd.concat(frames, ignore_index=True)

    def summary(self) -> pd.DataFrame:
        """One row per layer: detectors, the number of their concepts, the best IoU of channels."""
        rows = []
        for i, (layer, detectors) in enumerate(zip(self.layers, self.detectors, strict=True)):
            best = self.layer_frame(i)["largest_iou"].dropna().to_numpy()
            rows.append(
                {
                    **self.layer_columns(i),
                    "channels": layer.channels,
                    "detectors": int(detectors.sum()),
                    "fraction_detectors": float(detectors.mean()) if self.permutations else np.nan,
                    "unique_concepts": len(np.unique(self.preferred[i][detectors])),
                    # The rule is about pixels: nearly every channel reaches it over images.
                    "fraction_above_paper": float(self.above()[i].mean())
                    if self.by != "peak"
                    else np.nan,
                    "iou_median": float(np.median(best)) if len(best) else np.nan,
                    "iou_max": float(best.max()) if len(best) else np.nan,
                    "strength_max": float(np.nanmax(self.strength[i])) if len(best) else np.nan,
                    "n_images": self.n,
                }
            )
        return pd.DataFrame(rows)


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
    """How well the channels of the chosen layers detect each of the `concepts`, in two passes over
    the annotated images.

    Masks go through the network's resizing and cropping by nearest neighbour; maps are upsampled to
    its input by bilinear interpolation anchored at the centres of receptive fields, and every
    `step`-th pixel is compared (None: at most 112 per side, half the resolution at 224 px, as in
    the paper). Attributes of whole images are compared by images: one is active if any position is
    above the threshold ("peak"); "fill" takes the attribute for a mask that fills the image, as the
    paper does.

    The `permutations` of the masks over images are the same for all layers; 0 leaves out the null.
    Thresholds are exact and need memory for 1 - `quantile` of the activations of the layers; masks
    take one bit per pixel.

    Raises LayerError (a layer without a grid for masks, unknown layers), ImagesError (no image is
    annotated, masks that cannot be read or have another size than their image) and MeasureError
    (too few values for the quantile). Warns with UndefinedChannelsWarning about channels that are
    constant or not finite, and with UndefinedConceptsWarning about concepts that are in no
    image."""
    check_permutations(permutations)
    source, selected = as_source(images), model.select(layers)
    by = "pixels" if concepts.kind == "masks" else attributes
    if by != "peak":
        require_grids(selected, model, by)
    chosen, places = annotated(source, concepts)
    taken = part_of(source, chosen)
    if permutations and len(chosen) < 2:
        raise MeasureError(
            "one image is annotated, and a permutation null needs two or more: annotate more "
            "images, or set permutations=0"
        )
    size = (model.input.size[1], model.input.size[2])
    pixels, known = sample_pixels(size, step), concepts.known[places]
    compared = (len(pixels[0]), len(pixels[1]))
    # Pixels that an image is compared by.
    total = 1 if by == "peak" else compared[0] * compared[1]
    rng = np.random.default_rng(seed)
    # [permutation, image]: whose mask each image has; the first is the identity.
    orders = np.stack(
        [np.arange(len(chosen)), *(rng.permutation(len(chosen)) for _ in range(permutations))]
    )
    # Masks before the network: errors in them are raised at once.
    masks = resized_masks(model, taken, concepts, places, pixels) if by == "pixels" else None
    maps = (
        None
        if by == "peak"
        else {layer.name: upsampler(model, layer, pixels) for layer in selected}
    )
    levels = thresholds(model, taken, selected, quantile, batch_size, autocast)
    level = {name: threshold for name, (threshold, _) in levels.items()}
    if masks is not None and maps is not None:
        there = masks.sizes()
        counts = overlaps(
            model, taken, selected, level, masks, maps, known, orders, batch_size, autocast
        )
    else:
        assert concepts.attributes is not None
        present = concepts.attributes[places]
        there = present * total
        active = areas(model, taken, selected, level, maps, batch_size, autocast)
        counts = {
            name: whole_images(area, present, known, orders, total) for name, area in active.items()
        }
    parts = [
        _layer_dissection(counts[layer.name], *levels[layer.name], total) for layer in selected
    ]
    undefined = [int((~levels[layer.name][1]).sum()) for layer in selected]
    warn_undefined(model.record, selected, undefined, "have no threshold and mark no concept")
    nowhere = [
        f"'{name}'"
        for name, pixels_of in zip(concepts.names, there.sum(0), strict=True)
        if not pixels_of
    ]
    if nowhere:
        listed = ", ".join(nowhere[:5]) + (", ..." if len(nowhere) > 5 else "")
        warnings.warn(
            f"{len(nowhere)} concepts of {concepts.name} are in no image as the network sees them, "
            f"so that no channel marks them (NaN): {listed}",
            UndefinedConceptsWarning,
            stacklevel=3,
        )
    return Dissection.of_layers(
        parts,
        model=model.record,
        images=taken.record,
        layers=tuple(selected),
        n=len(chosen),
        left_out=len(source) - len(chosen),
        source=concepts.name,
        concepts=concepts.names,
        by=by,
        quantile=quantile,
        size=compared if by != "peak" else size,
        permutations=permutations,
        seed=seed,
        concept_images=(there > 0).sum(0),
        known_images=known.sum(0),
        concept_fraction=there.sum(0) / np.maximum(known.sum(0) * total, 1),
    )


def require_grids(layers: Sequence[Layer], model: Model, by: str) -> None:
    """Raise LayerError for a layer without a grid of positions; `by` is the unit of comparison,
    "pixels" or "fill"."""
    for layer in layers:
        if layer.grid is None:
            what = "masks cannot be laid over it" if by == "pixels" else "attributes cannot fill it"
            raise LayerError(
                f"'{layer.name}' of {model.name} has no grid of positions, so {what}; take layers "
                "with a grid, such as 'blocks', or attributes of whole images (a CSV file, "
                "class_concepts) with attributes='peak'"
            )


def _layer_dissection(
    counts: Counts, threshold: np.ndarray, defined: np.ndarray, total: int
) -> dict[str, Any]:
    """The fields of `Dissection` of one layer, from its counts of pixels, of which an image has
    `total`.

    The maxima over channels (and concepts) of every permutation correct the p-values (Westfall and
    Young 1993)."""
    iou = np.where(defined[:, None, None], counts.iou, np.nan)
    # What is undefined is never the largest.
    filled = np.where(np.isnan(iou), 0.0, iou)
    best = filled.max(0)
    tested, concepts = len(best) > 1, best.shape[1]
    null_mean = best.mean(0) if tested else np.ones(concepts)
    strengths = filled / np.where(null_mean > 0, null_mean, np.inf)
    strength, peaks = strengths[:, 0].max(1), strengths.max((0, 2))
    somewhere = np.asarray(np.isfinite(iou[:, 0]).any(0))
    named = defined & somewhere.any()
    part = {
        "threshold": threshold,
        "lit": counts.area.mean(0) / total,
        "iou": iou[:, 0],
        "strength": np.where(named, strength, np.nan),
        "preferred": np.where(named, strengths[:, 0].argmax(1), -1),
    }
    if not tested:
        none = np.full(concepts, np.nan)
        return part | {
            "chance": np.full_like(iou[:, 0], np.nan),
            "null95": none,
            "null_mean": none,
            "p_value": np.full(len(iou), np.nan),
            "concept_p": none,
        }
    return part | {
        "chance": iou[:, 1:].mean(1),
        "null95": np.where(somewhere, upper_quantile(best[1:]), np.nan),
        "null_mean": np.where(somewhere, null_mean, np.nan),
        "p_value": np.where(
            named, permutation_p(strength * (1 - ROUNDING), peaks[1:, None]), np.nan
        ),
        "concept_p": np.where(somewhere, permutation_p(best[0] * (1 - ROUNDING), best[1:]), np.nan),
    }
