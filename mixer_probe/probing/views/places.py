"""The report on probes by position, attentive probes, decoding of patch positions and other targets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from mixer_probe.core.section import Picture, Section, Table, chunks, table_of
from mixer_probe.core.words import interval, join, name_of, number, percent, untrained_warning
from mixer_probe.plotting.curves import networks, pixels
from mixer_probe.probing import AttentiveResult, PatchPosition, PositionProbe, TargetProbe
from mixer_probe.probing.figures import attention_maps, patch_position_curves, position_maps, target_curves
from mixer_probe.probing.views.probes import last_defined

# Rows of maps in one picture.
_MOST_ROWS = 4


def position_probe_section(results: Sequence[PositionProbe]) -> list[Section]:
    """Probe accuracy by position in the image."""
    pictures = [_position_picture(chunk) for chunk in chunks(results, _MOST_ROWS)]
    table = Table(
        "All layers: accuracy at the worst, the median and the best position, of the mean over positions, and of prefix tokens.",
        pd.concat([_position_rows(r) for r in results], ignore_index=True),
        dict.fromkeys(("lowest", "median", "highest", "mean", "low", "high", "prefix", "chance"), "{:.3f}") | {"depth": "{:.2f}"},
        folded=True,
    )
    sentences = tuple(_position_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("probe-positions", "Probe accuracy by position", sentences, (*pictures, table), warning)]


def _position_picture(results: Sequence[PositionProbe]) -> Picture:
    first = results[0]
    return Picture(
        partial(position_maps, results),
        f"Accuracy on {first.n_test} test images of a ridge probe at each position of a layer, each trained on {first.n_train} "
        f"images ({first.classes} classes).",
        "Bright positions predict the class on their own. All maps share one colour scale; the red line in the colour bar is "
        "chance. The title of each map gives the accuracy of the mean over positions. A uniform map means that every token "
        f"carries class information of the whole image. The 95 % interval at a single position is about ±{_half_width(first)} "
        "points.",
        f"Maps of probe accuracy by position of {join(name_of(r.model) for r in results)}",
        name=f"probe-positions-{name_of(first.model)}",
    )


def _half_width(result: PositionProbe) -> str:
    widths = np.concatenate([(high - low).ravel() / 2 for low, high in zip(result.low, result.high, strict=True)])
    return f"{100 * np.nanmedian(widths):.0f}" if np.isfinite(widths).any() else "?"


def _position_rows(result: PositionProbe) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": result.model.name,
            "layer": [layer.name for layer in result.layers],
            "depth": [layer.depth for layer in result.layers],
            "positions": [part.size for part in result.accuracy],
            **{name: [_quantile(q, part) for part in result.accuracy] for name, q in _SUMMARIES.items()},
            "mean": result.pooled,
            "low": result.pooled_low,
            "high": result.pooled_high,
            "prefix": [float(part[0]) if len(part) else np.nan for part in result.prefix],
            "chance": result.chance,
        }
    )


def _quantile(q: float, part: np.ndarray) -> float:
    known = part[np.isfinite(part)]
    return float(np.quantile(known, q)) if len(known) else np.nan


_SUMMARIES = {"lowest": 0.0, "median": 0.5, "highest": 1.0}


def _position_sentence(result: PositionProbe) -> str:
    said = []
    for i in dict.fromkeys((0, len(result.layers) - 1)):
        low, middle, high = (percent(_quantile(q, result.accuracy[i])) for q in (0, 0.5, 1))
        mean = interval(result.pooled[i], result.pooled_low[i], result.pooled_high[i])
        said.append(
            f"after {result.layers[i].name}, {middle} at the median position (range {low} to {high}) and {mean} from the mean "
            "over positions"
        )
    return f"{name_of(result.model)}: {'; '.join(said)} (n = {result.n_test}, chance {percent(result.chance)})."


def attentive_section(results: Sequence[AttentiveResult]) -> list[Section]:
    """Accuracy and attention of attentive probes."""
    pictures = [_attention_picture(chunk) for chunk in chunks(results, _MOST_ROWS)]
    columns = ["model", "layer", "depth", "accuracy", "low", "high", "focus", "chance"]
    formats = dict.fromkeys(("accuracy", "low", "high", "chance"), "{:.3f}") | {"depth": "{:.2f}", "focus": "{:.2f}"}
    caption = "All layers. focus: largest attention weight times the number of positions; 1 if uniform."
    table = Table(caption, table_of(results)[columns], formats, folded=True)
    sentences = tuple(_attention_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("attentive", "Attentive probe", sentences, (*pictures, table), warning)]


def _attention_picture(results: Sequence[AttentiveResult]) -> Picture:
    first = results[0]
    bias = "a learned query and position bias" if first.position_bias else "a learned query"
    return Picture(
        partial(attention_maps, results),
        f"Mean attention over {first.n_test} test images of a probe that weights positions by {bias} and predicts the class from "
        f"their weighted mean; trained on {first.n_train} images.",
        "The value 1 (red line in the colour bar) is uniform attention; all maps share one colour scale. The title of each map "
        "gives the accuracy of the probe.",
        f"Attention maps of an attentive probe of {join(name_of(r.model) for r in results)}",
        name=f"probe-attention-{name_of(first.model)}",
    )


def _attention_sentence(result: AttentiveResult) -> str:
    last = last_defined(result.accuracy)
    if last is None:
        return f"{name_of(result.model)}: no layer can be probed."
    part = result.attention[last]
    return (
        f"{name_of(result.model)}: after {result.layers[last].name}, the accuracy of the attentive probe is "
        f"{interval(result.accuracy[last], result.low[last], result.high[last])}; its attention is at most "
        f"{part.max() * part.size:.1f} times uniform attention at any position (n = {result.n_test}, chance "
        f"{percent(result.chance)})."
    )


# -- patch position ----------------------------------------------------------------------------------------------------


def patch_position_section(results: Sequence[PatchPosition]) -> list[Section]:
    """How accurately the position of a token is decoded from its activation."""
    first = results[0]
    picture = Picture(
        partial(patch_position_curves, results),
        "Position of a token decoded from its activation. Left: mean distance between the true cell and the cell predicted by a "
        "linear discriminant, in pixels of the model's input. Right: R² of a linear regression of row and column. Trained on the "
        f"tokens of {first.n_train} images, tested on those of {first.n_test} others.",
        "A Mixer has no position embedding, but its token-mixing weights are specific to positions; a ViT has position "
        "embeddings; a CNN can use zero padding at the border. The point at depth 0 is the stem, before any mixing: position "
        "information in patch content. Grey lines are chance (two random cells; R² = 0), dotted lines with open markers "
        "untrained baselines, bands 95 % intervals for other training and test images. Layers with few positions have large "
        "cells, so their errors are coarse.",
        "Error of decoded patch positions and R² of row and column against relative depth",
        name="probe-patch-position",
    )
    columns = ["model", "trained", "layer", "depth", "rows", "columns", "distance_px", "low_distance_px", "high_distance_px"]
    columns += ["chance_distance_px", "accuracy", "chance", "r2", "low_r2", "high_r2", "row_r2", "column_r2"]
    pixel = dict.fromkeys(("distance_px", "low_distance_px", "high_distance_px", "chance_distance_px"), "{:.2f}")
    formats = pixel | dict.fromkeys(columns[10:], "{:.3f}") | {"depth": "{:.2f}"}
    caption = "All layers. accuracy: fraction of tokens with the correct cell; low and high: bounds of 95 % intervals."
    table = Table(caption, table_of(results)[columns], formats, folded=True)
    sentences = tuple(_place_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("patch-position", "Decoding of patch positions", sentences, (picture, table), warning)]


def _place_sentence(result: PatchPosition) -> str:
    best = _nearest(result)
    if best is None:
        return f"{name_of(result.model)}: the position cannot be decoded at any layer."
    said = [_place(result, i) for i in dict.fromkeys((0, best, len(result.layers) - 1))]
    chance = f"chance: {result.chance_distance_px[best]:.1f} px"
    text = f"{name_of(result.model)}: mean error of the decoded position: {join(said)}; {chance}"
    twin = result.untrained
    nearest = None if twin is None else _nearest(twin)
    if twin is not None and nearest is not None:
        last = len(twin.layers) - 1
        text += f"; untrained baseline: {join(_place(twin, i) for i in dict.fromkeys((nearest, last)))}"
    return f"{text} (n = {result.n_test})."


def _nearest(result: PatchPosition) -> int | None:
    """The layer with the smallest error."""
    return None if np.isnan(result.distance_px).all() else int(np.nanargmin(result.distance_px))


def _place(result: PatchPosition, i: int) -> str:
    if np.isnan(result.distance_px[i]):
        return f"undefined after {result.layers[i].name}"
    error = number(result.distance_px[i], result.low_distance_px[i], result.high_distance_px[i], 1)
    return f"{error} px after {result.layers[i].name}"


# -- targets -----------------------------------------------------------------------------------------------------------


def target_section(results: Sequence[TargetProbe]) -> list[Section]:
    """Probes of properties of the images other than the class."""
    own = networks(results)
    columns = [
        "model",
        "trained",
        "layer",
        "depth",
        "target",
        "metric",
        "score",
        "low",
        "high",
        "chance",
        "error",
        "unit",
        "n_test",
    ]
    formats = dict.fromkeys(("score", "low", "high", "chance"), "{:.3f}") | {"depth": "{:.2f}", "error": "{:.3g}"}
    caption = "All layers and targets. error: mean absolute error in the unit of the target."
    every = Table(caption, table_of(results)[columns], formats, folded=True)
    pictures = [_target_picture(results)] if own else []
    sentences = tuple(_target_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in own)
    title = "Probes of other targets"
    return [Section("targets", title, sentences, (*pictures, _meanings(results), every), warning)]


def _target_picture(results: Sequence[TargetProbe]) -> Picture:
    first = networks(results)[0]
    raw = ", the dashed line is raw pixels" if pixels(results) else ""
    return Picture(
        partial(target_curves, results),
        f"Ridge probes of properties of the images other than their class, on {int(first.n_test.max())} test images: R² for "
        "numbers and angles, accuracy for classes.",
        "A falling curve means that the property becomes less linearly decodable with depth, a rising one that it becomes more "
        "so. Bands are 95 % intervals over test images; grey lines are chance, dotted lines untrained baselines"
        f"{raw}.",
        "Scores of probes of other targets against relative depth",
        name="probe-targets",
    )


def _meanings(results: Sequence[TargetProbe]) -> Table:
    first = results[0]
    frame = pd.DataFrame({"target": first.targets, "what it is": first.meanings, "unit": first.units, "score": first.metrics})
    return Table("Definitions of the targets.", frame)


def _target_sentence(result: TargetProbe) -> str:
    said = [_target_text(result, t) for t in range(len(result.targets))]
    return f"{name_of(result.model)}: {'; '.join(said)} (n = {int(result.n_test.max())})."


def _target_text(result: TargetProbe, t: int) -> str:
    name, metric = result.targets[t], "accuracy" if result.metrics[t] == "accuracy" else "R²"
    last = last_defined(result.score[:, t])
    if last is None:
        return f"{name} undefined"
    ends = [number(result.score[i, t], result.low[i, t], result.high[i, t]) for i in dict.fromkeys((0, last))]
    twin = "" if result.untrained is None else f", untrained baseline {result.untrained.score[last, t]:.2f}"
    chance = f", chance {result.chance[t]:.2f}" if metric == "accuracy" else ""
    return f"{metric} of {name} {' → '.join(ends)}{twin}{chance}"
