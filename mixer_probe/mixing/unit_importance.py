"""Importance of single units for the classification, beside their class selectivity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from scipy.stats import rankdata

from mixer_probe.capture import ImageSource, as_source, fixed, part_of, reference_means, stream
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.progress import task
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result, storable
from mixer_probe.core.validate import checked, shown
from mixer_probe.mixing.lesions import labels_of, predictions_under
from mixer_probe.models.classes import outputs_of
from mixer_probe.models.layer import Axes, Layer
from mixer_probe.models.model import Model
from mixer_probe.stats import (
    check_permutations,
    difference_interval,
    mean_interval,
    paired_counts,
    permutation_p,
    rank_correlation,
    rank_interval,
    rank_null,
    upper_quantile,
)


@storable
@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation over units with its 95 % interval; `null` is the 95th percentile of
    its magnitude for permuted units, and `p_value` two-sided. NaN where undefined."""

    value: float
    low: float
    high: float
    null: float
    p_value: float


@dataclass(frozen=True)
class UnitImportance(Result):
    """What a network loses when single `units` [unit] of a layer are replaced by their means.

    `margin_drop` [unit] is by how much the mean logit margin (the logit of the true class minus
    the largest other one) falls, with its 95 % interval over `n` images; `right` [1 + unit, image]
    says which images are classified right, row 0 by the intact network. Where not `labelled`, the
    class is the one that the intact network predicts. `auroc` [unit] is the class selectivity: the
    AUROC of the class that the unit's mean activation separates best from all others,
    `class_names` [unit], 1/2 or more (NaN without labels), over `selectivity_images` images.
    `by_margin` and `by_accuracy` correlate the losses with it."""

    title: ClassVar[str] = "Unit importance"
    frame = Frame(
        "unit",
        """model=model.name model.trained layer=layer.name layer.kind layer.depth unit=units of
        margin_drop margin_drop_low margin_drop_high
        accuracy_drop accuracy_drop_low,accuracy_drop_high=drop_interval auroc class=class_names
        rank_correlation=by_margin.value rank_correlation_low=by_margin.low
        rank_correlation_high=by_margin.high intact labelled n""",
    )

    model: ModelRecord
    images: ImagesRecord
    layer: Layer
    of: str
    units: Annotated[np.ndarray, "unit"]
    labelled: bool
    margin_drop: Annotated[np.ndarray, "unit"]
    margin_drop_low: Annotated[np.ndarray, "unit"]
    margin_drop_high: Annotated[np.ndarray, "unit"]
    right: Annotated[np.ndarray, "unit + 1", "image"]
    auroc: Annotated[np.ndarray, "unit"]
    class_names: Annotated[tuple[str, ...], "unit"]
    by_margin: RankCorrelation
    by_accuracy: RankCorrelation
    selectivity_images: int
    permutations: int
    seed: int

    @property
    def n(self) -> int:
        """Number of images on which units are ablated."""
        return int(self.right.shape[1])

    @property
    def intact(self) -> float:
        """Accuracy of the intact network on them."""
        return float(self.right[0].mean())

    @property
    def accuracy_drop(self) -> Annotated[np.ndarray, "unit"]:
        """Accuracy of the intact network minus that with each unit ablated."""
        return np.asarray(self.intact - self.right[1:].mean(axis=1))

    @property
    def drop_interval(self) -> Annotated[np.ndarray, "unit", "2"]:
        """Tango's interval of `accuracy_drop`, a difference of paired fractions."""
        counts = paired_counts(self.right[:1], self.right[1:])
        return np.stack(difference_interval(counts), axis=-1)


@checked(MeasureError)
def unit_importance(
    model: Model,
    images: ImageSource | torch.Tensor,
    layer: str | None = None,
    *,
    units: Sequence[int] | None = None,
    most: int = 64,
    ablated_images: int | None = None,
    permutations: int = 999,
    batch_size: int = 32,
    seed: int = 0,
) -> UnitImportance:
    """Loss of accuracy and of logit margin when single units of a layer are replaced by their means
    over images, beside their class selectivity.

    Units are the channels of the `layer`, or hidden units of a token-mixing MLP for a layer inside
    of it ("blocks.3.mlp_tokens.drop1"); by default the channel branch of the middle block (the
    block itself where it has none). `units` are their indices, by default at most `most`, evenly
    spread. They are ablated on `ablated_images` of the images, evenly spread (None for all); means
    and selectivity are of all. `permutations` of the units give the null of the rank correlations
    (0 for none, else at least 19).

    Raises LayerError for an unknown layer, and MeasureError for a network without a classifier and
    for units that the layer does not have."""
    check_permutations(permutations)
    source = as_source(images)
    chosen = _middle(model) if layer is None else model.layer(layer)
    hidden = Axes[chosen.axes] is Axes.BCU
    index = _units(chosen, chosen.positions if hidden else chosen.channels, units, most)
    labels = labels_of(model, source)
    auroc, names = _selectivity(model, source, labels, chosen, index, batch_size)
    means = reference_means(model, [chosen], source, batch_size)[chosen.name]
    changes = [
        (chosen, fixed(means, positions=[k]) if hidden else fixed(means, channels=[k]))
        for k in index.tolist()
    ]
    n = len(source) if ablated_images is None else min(ablated_images, len(source))
    rows = np.unique(np.linspace(0, len(source) - 1, n).round().astype(int))
    some = source if n == len(source) else part_of(source, rows)
    own = None if labels is None else labels[rows]
    with task(f"{model.name}: unit importance", len(some) * len(changes)) as advance:
        predicted, margin = predictions_under(model, some, own, changes, batch_size, advance)
    right = predicted == (predicted[0] if own is None else own)
    change, low, high = mean_interval(margin[0] - margin[1:])
    drop = right[0].mean() - right[1:].mean(axis=1)
    return UnitImportance(
        model=model.record,
        images=source.record,
        layer=chosen,
        of="hidden unit" if hidden else "channel",
        units=index,
        labelled=labels is not None,
        margin_drop=change,
        margin_drop_low=low,
        margin_drop_high=high,
        right=right,
        auroc=auroc,
        class_names=names,
        by_margin=_correlation(change, auroc, permutations, seed),
        by_accuracy=_correlation(drop, auroc, permutations, seed),
        selectivity_images=len(source),
        permutations=permutations,
        seed=seed,
    )


def _middle(model: Model) -> Layer:
    """The last channel layer of the middle block, the block itself where it has none."""
    run = model.structure.runs[len(model.structure.runs) // 2]
    inside = [
        layer
        for layer in model.layers
        if layer.module.startswith(run.block.path + ".")
        and layer.kind == "channel"
        and run.start < layer.order <= run.order
    ]
    return inside[-1] if inside else model.layer(run.name)


def _units(layer: Layer, count: int, units: Sequence[int] | None, most: int) -> np.ndarray:
    """The chosen units, evenly spread where none are given."""
    if units is None:
        return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
    index = np.unique(np.asarray(units))
    if not index.size or index.dtype.kind not in "iu" or index[0] < 0 or index[-1] >= count:
        raise MeasureError(
            f"'{layer.name}' has {count} units: give whole numbers from 0 to {count - 1}, not "
            f"{shown(units)}"
        )
    return index.astype(np.int64)


def _selectivity(
    model: Model,
    images: ImageSource,
    labels: np.ndarray | None,
    layer: Layer,
    units: np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """AUROC [unit] of the class that each unit separates best, and the name of that class; NaN
    without two classes, and for units that are constant.

    The activation of a unit for an image is its mean over positions; that of a hidden unit over
    channels."""
    unknown = np.full(len(units), np.nan), ("",) * len(units)
    if labels is None or len(np.unique(labels)) < 2:
        return unknown
    axis = 2 if Axes[layer.axes] is Axes.BCU else 1
    pieces = stream(
        model,
        images,
        [layer],
        lambda _layer, positions, _prefix: positions.double().mean(axis),
        batch_size=batch_size,
        title=f"{model.name}: selectivity",
    )
    values = np.concatenate([piece.found[layer.name].cpu().numpy() for piece in pieces])[:, units]
    ranks, n = rankdata(values, axis=0), len(values)
    classes = np.unique(labels)
    m = np.array([(labels == k).sum() for k in classes])[:, None]
    sums = np.stack([ranks[labels == k].sum(0) for k in classes])
    # Mann and Whitney (1947).
    auroc = (sums - m * (m + 1) / 2) / (m * (n - m))
    best = np.abs(auroc - 0.5).argmax(0)
    found = 0.5 + np.abs(auroc - 0.5).max(0)
    constant = values.max(0) == values.min(0)
    outputs = outputs_of(model)
    names = tuple(
        "" if flat else outputs.name(int(classes[k]))
        for k, flat in zip(best, constant, strict=True)
    )
    return np.where(constant, np.nan, found), names


def _correlation(
    loss: np.ndarray, auroc: np.ndarray, permutations: int, seed: int
) -> RankCorrelation:
    """Of the units whose selectivity is known."""
    known = np.isfinite(auroc) & np.isfinite(loss)
    x, y = loss[known], auroc[known]
    value = float(rank_correlation(x, y)) if len(x) > 2 else np.nan
    if np.isnan(value):
        return RankCorrelation(*[float("nan")] * 5)
    low, high = rank_interval(value, len(x))
    if not permutations:
        return RankCorrelation(value, float(low), float(high), np.nan, np.nan)
    draws = rank_null(x, y, permutations, seed)
    # Rounding must not make equal correlations differ.
    p_value = float(permutation_p(abs(value) * (1 - 1e-12), draws))
    return RankCorrelation(value, float(low), float(high), float(upper_quantile(draws)), p_value)
