"""The report's sections on stem filters with their principal components, and on position
embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import name_of, percent, primary, untrained_warning
from mixer_probe.weights import PositionEmbeddings, StemFilters, stem_components
from mixer_probe.weights.figures import (
    position_curves,
    position_similarity,
    stem_colour,
    stem_component_pictures,
    stem_pictures,
)


def stem_section(results: Sequence[StemFilters]) -> list[Section]:
    """The filters of the first layer of each network, their principal components and their
    colours."""
    content: list[Picture | Table] = []
    sentences = []
    for r in primary(results):
        name = name_of(r.model)
        content.append(
            Picture(
                partial(stem_pictures, r),
                f"The first layer of {name}, '{r.layer}': {len(r)} filters of "
                f"{r.shape[2]}×{r.shape[3]} pixels as colour images (Fig. 7 of the MLP-Mixer paper "
                "for a Mixer).",
                "Mid-grey is zero, brighter is positive and darker negative in each colour; each "
                "filter has its own scale. Filters are sorted from low to high frequency (power "
                "centroid, cycles/pixel).",
                f"Grid of stem filters of {name}",
                name=f"stem-filters-{name}",
                vector=False,
            )
        )
        size = f"{len(r)} filters of {r.shape[2]}×{r.shape[3]} px, stride {r.stride[0]} px"
        try:
            components = stem_components(r)
        except MeasureError:
            sentences.append(f"{name}: {size}, all of them zero.")
            continue
        content.append(
            Picture(
                partial(stem_component_pictures, components),
                f"The first {len(components.components)} principal components of these filters "
                "with the fraction of energy that each explains (Fig. 7 of the ViT paper shows 28 "
                "for a ViT), and the fractions for all components.",
                "Components are the patterns to which the layer responds most, over all filters; "
                "the mean filter is not removed. The sign of a component is arbitrary. The first "
                "component of iid filters of this shape exceeds the dashed line in 5 % of cases "
                "(Tracy-Widom edge).",
                f"Principal components of the stem filters of {name}",
                name=f"stem-components-{name}",
                vector=False,
            )
        )
        iid = percent(1 / r.shape[1])
        colour = (
            f" Luminance accounts for {percent(r.mean_luminance)} of their energy (iid weights: "
            f"{iid})."
        )
        sentences.append(
            f"{name}: {size}. Mean frequency is {r.mean_frequency:.3f} "
            f"cycles/pixel.{colour if r.shape[1] > 1 else ''} {components.needed(0.9)} of "
            f"{len(components.fractions)} principal components explain 90 % of the energy; the "
            f"first explains {percent(components.fractions[0])} (95th percentile for iid filters: "
            f"{percent(components.null_fraction)})."
        )
    coloured = [r for r in results if r.shape[1] > 1]
    if coloured:
        smallest = min(min(r.shape[2:]) for r in coloured)
        content.append(
            Picture(
                partial(stem_colour, coloured),
                "Filters by frequency and by the fraction of their energy in luminance, i.e. along "
                "the grey direction of the input channels; the area of a point is the energy of "
                "the filter.",
                "Filters at the top respond to brightness, filters at the bottom to colour alone. "
                "The dashed line is iid weights. Small filters resolve few frequencies: "
                f"{smallest} pixels allow none below {1 / smallest:.2f} cycles/px.",
                "Fraction of energy in luminance against frequency of the stem filters",
                name="stem-colour",
            )
        )
    frame = pd.DataFrame(
        {
            "model": [name_of(r.model) for r in results],
            "layer": [r.layer for r in results],
            "filters": [len(r) for r in results],
            "size px": [f"{r.shape[2]}×{r.shape[3]}" for r in results],
            "stride px": [r.stride[0] for r in results],
            "mean frequency": [r.mean_frequency for r in results],
            "energy in luminance": [r.mean_luminance for r in results],
            "mean norm": [float(r.norm.mean()) for r in results],
        }
    )
    formats = dict.fromkeys(("mean frequency", "energy in luminance", "mean norm"), "{:.3f}")
    content.append(
        Table("First layers. Frequencies are power centroids in cycles/pixel.", frame, formats)
    )
    warning = untrained_warning(r.model for r in results)
    return [Section("stem", "Stem filters", tuple(sentences), tuple(content), warning)]


def position_section(results: Sequence[PositionEmbeddings]) -> list[Section]:
    """Cosine similarities of the position embeddings of patches."""
    curve = Picture(
        partial(position_curves, results),
        "Mean cosine similarity between the position embeddings of two patches against their "
        "distance in input pixels.",
        "The band is one standard deviation over the pairs at that distance: it is wide where "
        "similarity depends on direction as well as distance. Dotted lines with open markers are "
        "untrained baselines.",
        "Similarity of position embeddings against distance",
        name="positions-distance",
    )
    rows = [
        {
            "model": name_of(r.model),
            "grid": "×".join(map(str, r.grid)),
            "prefix tokens": r.prefix_tokens,
            "row fraction": r.row_fraction,
            "column fraction": r.column_fraction,
            "interaction": r.interaction_fraction,
            **r.alike(),
        }
        for r in results
    ]
    numbers = (
        "row fraction",
        "column fraction",
        "interaction",
        "neighbours",
        "same row",
        "same column",
        "elsewhere",
    )
    table = Table(
        "Position embeddings: fraction of the energy around the mean embedding explained by the "
        "row, by the column, and only by both together; mean cosine similarity of patches that "
        "share an edge, and of pairs in the same row, in the same column and elsewhere.",
        pd.DataFrame(rows),
        dict.fromkeys(numbers, "{:.3f}"),
    )
    content: list[Picture | Table] = []
    sentences = []
    for r in primary(results):
        name, (height, width), alike = name_of(r.model), r.grid, r.alike()
        rows_iid, columns_iid, _interaction = r.null_fractions
        content.append(
            Picture(
                partial(position_similarity, r),
                f"Cosine similarity between the position embedding of each patch of {name} "
                f"({height}×{width} grid) and those of all patches, as in Fig. 7 of the ViT paper. "
                "Each map is drawn at its patch, which a cross marks.",
                "Red patches have embeddings that point in the same direction, blue ones in the "
                "opposite direction. A network that learned the grid from images shows a red "
                "neighbourhood around each cross; random embeddings show a red point on white.",
                f"Similarity maps of the position embeddings of {name}",
                name=f"positions-{name}",
                vector=False,
            )
        )
        sentences.append(
            f"{name}: the mean cosine similarity is {alike['neighbours']:.2f} between neighbouring "
            f"patches, {alike['same row']:.2f} within a row, {alike['same column']:.2f} within a "
            f"column and {alike['elsewhere']:.2f} elsewhere. The row alone explains "
            f"{percent(r.row_fraction)} of the energy of the embeddings and the column "
            f"{percent(r.column_fraction)} (iid: {percent(rows_iid)} and {percent(columns_iid)}); "
            f"{percent(r.interaction_fraction)} depends on both."
        )
    warning = untrained_warning(r.model for r in results)
    content += [curve, table]
    return [
        Section(
            "positions",
            "Spatial structure of position embeddings",
            tuple(sentences),
            tuple(content),
            warning,
        )
    ]
