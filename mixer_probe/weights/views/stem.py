"""The report on where a network meets the image: stem filters with their principal components, and position embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import name_of, percent, studied, untrained_warning
from mixer_probe.weights import PositionEmbeddings, StemComponents, StemFilters, stem_components
from mixer_probe.weights.figures import position_curves, position_similarity, stem_colour, stem_component_pictures, stem_pictures


def stem_section(results: Sequence[StemFilters]) -> list[Section]:
    """What the first layer of each network reads."""
    own = studied(r.model for r in results)
    shown = [r for r in results if r.model in own]
    components = {r.model.name: found for r in shown if (found := _components(r))}
    content: list[Picture | Table] = []
    for r in shown:
        content.append(_filters_picture(r))
        content += [_components_picture(components[r.model.name])] if r.model.name in components else []
    content += _colour_pictures(results)
    content.append(_stem_table(results))
    sentences = tuple(_stem_sentence(r, components.get(r.model.name)) for r in shown)
    warning = untrained_warning(r.model for r in results)
    return [Section("stem", "Stem filters", sentences, tuple(content), warning)]


def _components(stem: StemFilters) -> StemComponents | None:
    try:
        return stem_components(stem)
    except MeasureError:  # all filters are zero
        return None


def _filters_picture(stem: StemFilters) -> Picture:
    name = name_of(stem.model)
    return Picture(
        stem_pictures(stem),
        f"The first layer of {name}, '{stem.layer}': {len(stem)} filters of {stem.shape[2]}×{stem.shape[3]} pixels as colour "
        "images (Fig. 7 of the MLP-Mixer paper for a Mixer).",
        "Mid-grey is zero, brighter is positive and darker negative in each colour; each filter has its own scale. Filters are "
        "sorted from low to high frequency (power centroid, cycles/pixel).",
        f"Grid of stem filters of {name}",
        name=f"stem-filters-{name}",
        vector=False,
    )


def _components_picture(found: StemComponents) -> Picture:
    return Picture(
        stem_component_pictures(found),
        f"The first {len(found.components)} principal components of these filters with the fraction of energy that each "
        "explains (Fig. 7 of the ViT paper shows 28 for a ViT), and the fractions for all components.",
        "Components are the patterns to which the layer responds most, over all filters; the mean filter is not removed. The "
        "sign of a component is arbitrary. The first component of iid filters of this shape exceeds the dashed line in 5 % of "
        "cases (Tracy-Widom edge).",
        f"Principal components of the stem filters of {name_of(found.model)}",
        name=f"stem-components-{name_of(found.model)}",
        vector=False,
    )


def _colour_pictures(results: Sequence[StemFilters]) -> list[Picture]:
    coloured = [r for r in results if r.shape[1] > 1]
    if not coloured:
        return []
    return [
        Picture(
            stem_colour(coloured),
            "Filters by frequency and by the fraction of their energy in luminance, i.e. along the grey direction of the input "
            "channels; the area of a point is the energy of the filter.",
            "Filters at the top respond to brightness, filters at the bottom to colour alone. The dashed line is iid weights. "
            f"Small filters resolve few frequencies: {_smallest(coloured)} pixels allow none below "
            f"{1 / _smallest(coloured):.2f} cycles/px.",
            "Fraction of energy in luminance against frequency of the stem filters",
            name="stem-colour",
        )
    ]


def _smallest(results: Sequence[StemFilters]) -> int:
    return min(min(r.shape[2:]) for r in results)


def _stem_sentence(stem: StemFilters, found: StemComponents | None) -> str:
    size = f"{len(stem)} filters of {stem.shape[2]}×{stem.shape[3]} px, stride {stem.stride[0]} px"
    if found is None:
        return f"{name_of(stem.model)}: {size}, all of them zero."
    colour = (
        f" Luminance accounts for {percent(_luminance(stem))} of their energy (iid weights: {percent(1 / stem.shape[1])})."
        if stem.shape[1] > 1
        else ""
    )
    return (
        f"{name_of(stem.model)}: {size}. Mean frequency is {_mean(stem.frequency):.3f} cycles/pixel.{colour} "
        f"{found.needed(0.9)} of {len(found.shares)} principal components explain 90 % of the energy; the first explains "
        f"{percent(found.shares[0])} (95th percentile for iid filters: {percent(found.null_share)})."
    )


def _luminance(stem: StemFilters) -> float:
    """Share of the energy of all filters together."""
    energy = stem.norm.astype(np.float64) ** 2
    return float(np.nansum(stem.luminance * energy) / energy.sum()) if energy.sum() > 0 else float("nan")


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _stem_table(results: Sequence[StemFilters]) -> Table:
    frame = pd.DataFrame(
        {
            "model": [name_of(r.model) for r in results],
            "layer": [r.layer for r in results],
            "filters": [len(r) for r in results],
            "size px": [f"{r.shape[2]}×{r.shape[3]}" for r in results],
            "stride px": [r.stride[0] for r in results],
            "mean frequency": [_mean(r.frequency) for r in results],
            "energy in luminance": [_luminance(r) for r in results],
            "mean norm": [float(r.norm.mean()) for r in results],
        }
    )
    formats = dict.fromkeys(("mean frequency", "energy in luminance", "mean norm"), "{:.3f}")
    return Table("First layers. Frequencies are power centroids in cycles/pixel.", frame, formats)


def position_section(results: Sequence[PositionEmbeddings]) -> list[Section]:
    """How alike the position embeddings of patches are."""
    own = studied(r.model for r in results)
    shown = [r for r in results if r.model in own]
    content: list[Picture | Table] = [_similarity_picture(r) for r in shown]
    content += [_curve_picture(results), _position_table(results)]
    sentences = tuple(_position_sentence(r) for r in shown)
    warning = untrained_warning(r.model for r in results)
    return [Section("positions", "Spatial structure of position embeddings", sentences, tuple(content), warning)]


def _similarity_picture(found: PositionEmbeddings) -> Picture:
    name = name_of(found.model)
    height, width = found.grid
    return Picture(
        position_similarity(found),
        f"Cosine similarity between the position embedding of each patch of {name} ({height}×{width} grid) and those of all "
        "patches, as in Fig. 7 of the ViT paper. Each map is drawn at its patch, which a cross marks.",
        "Red patches have embeddings that point in the same direction, blue ones in the opposite direction. A network that "
        "learned the grid from images shows a red neighbourhood around each cross; random embeddings show a red point on white.",
        f"Similarity maps of the position embeddings of {name}",
        name=f"positions-{name}",
        vector=False,
    )


def _curve_picture(results: Sequence[PositionEmbeddings]) -> Picture:
    return Picture(
        position_curves(results),
        "Mean cosine similarity between the position embeddings of two patches against their distance in input pixels.",
        "The band is one standard deviation over the pairs at that distance: it is wide where similarity depends on direction "
        "as well as distance. Dotted lines with open markers are untrained baselines.",
        "Similarity of position embeddings against distance",
        name="positions-distance",
    )


def _position_sentence(found: PositionEmbeddings) -> str:
    alike = found.alike()
    rows, columns, _rest = found.null_shares
    return (
        f"{name_of(found.model)}: the mean cosine similarity is {alike['neighbours']:.2f} between neighbouring patches, "
        f"{alike['same row']:.2f} within a row, {alike['same column']:.2f} within a column and {alike['elsewhere']:.2f} "
        f"elsewhere. The row alone explains {percent(found.row_share)} of the energy of the embeddings and the column "
        f"{percent(found.column_share)} (iid: {percent(rows)} and {percent(columns)}); {percent(found.interaction_share)} "
        "depends on both."
    )


def _position_table(results: Sequence[PositionEmbeddings]) -> Table:
    frame = pd.DataFrame([_position_row(r) for r in results])
    numbers = ("row share", "column share", "interaction", "neighbours", "same row", "same column", "elsewhere")
    caption = (
        "Position embeddings: fraction of the energy around the mean embedding explained by the row, by the column, and only by "
        "both together; mean cosine similarity of patches that share an edge, and of pairs in the same row, in the same column "
        "and elsewhere."
    )
    return Table(caption, frame, dict.fromkeys(numbers, "{:.3f}"))


def _position_row(found: PositionEmbeddings) -> dict[str, object]:
    return {
        "model": name_of(found.model),
        "grid": "×".join(map(str, found.grid)),
        "prefix tokens": found.prefix_tokens,
        "row share": found.row_share,
        "column share": found.column_share,
        "interaction": found.interaction_share,
        **found.alike(),
    }
