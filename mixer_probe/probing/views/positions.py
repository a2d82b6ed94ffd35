"""The report on probes by position, attentive probes, decoding of patch positions and other
targets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from mixer_probe.core.section import Picture, Section, Table, chunks, table_of
from mixer_probe.core.words import join, name_of, untrained_warning
from mixer_probe.plotting.curves import networks, pixels
from mixer_probe.probing import AttentiveResult, PatchPosition, PositionProbe, TargetProbe
from mixer_probe.probing.figures import (
    attention_maps,
    patch_position_curves,
    position_maps,
    target_curves,
)
from mixer_probe.probing.findings import (
    attentive_sentence,
    patch_position_sentence,
    position_sentence,
    target_sentence,
)
from mixer_probe.probing.views import folded_table

# Networks per picture of maps, one row each.
_MOST_ROWS = 4


def position_probe_section(results: Sequence[PositionProbe]) -> list[Section]:
    """Probe accuracy by position in the image."""
    pictures = []
    for chunk in chunks(results, _MOST_ROWS):
        first = chunk[0]
        widths = np.concatenate(
            [(high - low).ravel() / 2 for low, high in zip(first.low, first.high, strict=True)]
        )
        half_width = f"{100 * np.nanmedian(widths):.0f}" if np.isfinite(widths).any() else "?"
        pictures.append(
            Picture(
                partial(position_maps, chunk),
                f"Accuracy on {first.n_test} test images of a ridge probe at each position of a "
                f"layer, each trained on {first.n_train} images ({first.classes} classes).",
                "Bright positions predict the class on their own. All maps share one colour scale; "
                "the red line in the colour bar is chance. The title of each map gives the "
                "accuracy of the mean over positions. A uniform map means that every token carries "
                "class information of the whole image. The 95 % interval at a single position is "
                f"about ±{half_width} points.",
                f"Maps of probe accuracy by position of {join(name_of(r.model) for r in chunk)}",
                name=f"probe-positions-{name_of(first.model)}",
            )
        )
    rows = []
    for r in results:
        lowest, median, highest = r.quantiles((0, 0.5, 1))
        columns = {
            "model": r.model.name,
            "layer": [layer.name for layer in r.layers],
            "depth": [layer.depth for layer in r.layers],
            "positions": [part.size for part in r.accuracy],
            "lowest": lowest,
            "median": median,
            "highest": highest,
            "mean": r.pooled,
            "low": r.pooled_low,
            "high": r.pooled_high,
            "prefix": [float(part[0]) if len(part) else np.nan for part in r.prefix],
            "chance": r.chance,
        }
        rows.append(pd.DataFrame(columns))
    table = folded_table(
        "All layers: accuracy at the worst, the median and the best position, of the mean over "
        "positions, and of prefix tokens.",
        pd.concat(rows, ignore_index=True),
        "model layer depth:.2f positions lowest:.3f median:.3f highest:.3f mean:.3f low:.3f "
        "high:.3f prefix:.3f chance:.3f",
    )
    sentences, warning = (
        tuple(map(position_sentence, results)),
        untrained_warning(r.model for r in results),
    )
    return [
        Section(
            "probe-positions", "Probe accuracy by position", sentences, (*pictures, table), warning
        )
    ]


def attentive_section(results: Sequence[AttentiveResult]) -> list[Section]:
    """Accuracy and attention of attentive probes."""
    pictures = [
        Picture(
            partial(attention_maps, chunk),
            f"Mean attention over {chunk[0].n_test} test images of a probe that weights positions "
            f"by a learned query{' and position bias' if chunk[0].position_bias else ''} and "
            f"predicts the class from their weighted mean; trained on {chunk[0].n_train} images.",
            "The value 1 (red line in the colour bar) is uniform attention; all maps share one "
            "colour scale. The title of each map gives the accuracy of the probe.",
            f"Attention maps of an attentive probe of {join(name_of(r.model) for r in chunk)}",
            name=f"probe-attention-{name_of(chunk[0].model)}",
        )
        for chunk in chunks(results, _MOST_ROWS)
    ]
    table = folded_table(
        "All layers. focus: largest attention weight times the number of positions; 1 if uniform.",
        table_of(results),
        "model layer depth:.2f accuracy:.3f low:.3f high:.3f focus:.2f chance:.3f",
    )
    sentences, warning = (
        tuple(map(attentive_sentence, results)),
        untrained_warning(r.model for r in results),
    )
    return [Section("attentive", "Attentive probe", sentences, (*pictures, table), warning)]


def patch_position_section(results: Sequence[PatchPosition]) -> list[Section]:
    """How accurately the position of a token is decoded from its activation."""
    first = results[0]
    picture = Picture(
        partial(patch_position_curves, results),
        "Position of a token decoded from its activation. Left: mean distance between the true "
        "cell and the cell predicted by a linear discriminant, in pixels of the model's input. "
        "Right: R² of a linear regression of row and column. Trained on the tokens of "
        f"{first.n_train} images, tested on those of {first.n_test} others.",
        "A Mixer has no position embedding, but its token-mixing weights are specific to "
        "positions; a ViT has position embeddings; a CNN can use zero padding at the border. The "
        "point at depth 0 is the stem, before any mixing: position information in patch content. "
        "Grey lines are chance (two random cells; R² = 0), dotted lines with open markers "
        "untrained baselines, bands 95 % intervals for other training and test images. Layers with "
        "few positions have large cells, so their errors are coarse.",
        "Error of decoded patch positions and R² of row and column against relative depth",
        name="probe-patch-position",
    )
    table = folded_table(
        "All layers. accuracy: fraction of tokens with the correct cell; low and high: bounds of "
        "95 % intervals.",
        table_of(results),
        "model trained layer depth:.2f rows columns distance_px:.2f low_distance_px:.2f "
        "high_distance_px:.2f chance_distance_px:.2f accuracy:.3f chance:.3f r2:.3f low_r2:.3f "
        "high_r2:.3f row_r2:.3f column_r2:.3f",
    )
    sentences, warning = (
        tuple(map(patch_position_sentence, results)),
        untrained_warning(r.model for r in results),
    )
    return [
        Section(
            "patch-position", "Decoding of patch positions", sentences, (picture, table), warning
        )
    ]


def target_section(results: Sequence[TargetProbe]) -> list[Section]:
    """Probes of properties of the images other than the class."""
    own, first = networks(results), results[0]
    raw = ", the dashed line is raw pixels" if pixels(results) else ""
    picture = Picture(
        partial(target_curves, results),
        "Ridge probes of properties of the images other than their class, on "
        f"{int((own or results)[0].n_test.max())} test images: R² for numbers and angles, accuracy "
        "for classes.",
        "A falling curve means that the property becomes less linearly decodable with depth, a "
        "rising one that it becomes more so. Bands are 95 % intervals over test images; grey lines "
        f"are chance, dotted lines untrained baselines{raw}.",
        "Scores of probes of other targets against relative depth",
        name="probe-targets",
    )
    definitions = {
        "target": first.targets,
        "what it is": first.meanings,
        "unit": first.units,
        "score": first.metrics,
    }
    meanings = Table("Definitions of the targets.", pd.DataFrame(definitions))
    table = folded_table(
        "All layers and targets. error: mean absolute error in the unit of the target.",
        table_of(results),
        "model trained layer depth:.2f target metric score:.3f low:.3f high:.3f chance:.3f "
        "error:.3g unit n_test",
    )
    content: tuple[Picture | Table, ...] = (picture, meanings, table) if own else (meanings, table)
    sentences, warning = (
        tuple(map(target_sentence, results)),
        untrained_warning(r.model for r in own),
    )
    return [Section("targets", "Probes of other targets", sentences, content, warning)]
