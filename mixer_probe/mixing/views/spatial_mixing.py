"""The report on spatial mixing: who reads from where."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from mixer_probe.core.section import Picture, Section, Table, chunks, table_of
from mixer_probe.core.words import images_text, primary, untrained_baseline, untrained_warning
from mixer_probe.mixing.figures.spatial_mixing import (
    QUANTITY_TITLES,
    VIEW_TITLES,
    mixing_distance,
    mixing_maps,
    mixing_quantities,
)
from mixer_probe.mixing.findings.spatial_mixing import (
    architecture_sentence,
    distance_sentence,
    overall,
    training_sentence,
)
from mixer_probe.mixing.quantities import SpatialMixing

_MOST_ROWS = 6


def spatial_mixing_section(results: Sequence[SpatialMixing]) -> list[Section]:
    """From where the blocks of all networks read, on one axis."""
    first = results[0]
    views = [v for v in VIEW_TITLES if any(v in r.views for r in results)]
    vectors = f"{first.probes} random vector{'s' if first.probes > 1 else ''}"
    of = f"{images_text(first.images)}; {vectors} per position and image"
    sentences = [architecture_sentence(results)]
    for r in primary(results):
        baseline = untrained_baseline(r, [other for other in results if other.views == r.views])
        sentences.append(distance_sentence(r))
        if baseline is not None:
            sentences.append(training_sentence(r, baseline))
    text = (
        "How much of what moves position i comes from position j is the energy of the Jacobian "
        "between them, averaged over images. Branch: the part of a block that mixes positions, "
        "without its skip connection; block: with it; cumulative: from the image to the block. "
        "Uniform mixing reads from all positions alike; its distance depends on the grid, so "
        "distances are divided by it."
    )
    distance = Picture(
        partial(mixing_distance, results),
        f"Mean mixing distance relative to uniform mixing, against depth ({of}).",
        "0: a position reads from itself alone. 1: from all positions alike. Bands: 95 % intervals "
        "over images, random vectors and sampled positions (jackknife over groups of images).",
        "Mean mixing distance against depth, per view",
        name="mixing-distance",
    )
    # Branches that are all exactly zero have no quantities.
    known = [v for v in views if any(v in r.views and not _zero(r, v).all() for r in results)]
    view = (known or views)[0]
    quantities = Picture(
        partial(mixing_quantities, results, view),
        f"How the mixing is structured, against depth ({VIEW_TITLES[view].lower()}; {of}).",
        "Effective positions: exp of the entropy of a row, divided by the number of positions. "
        "Participation ratio: of the singular values. Translation-structured: 1 for a convolution, "
        "0 for independent entries. Dynamic: part of the Jacobian that depends on the image, 0 for "
        "a linear layer; estimates of a small fraction may be negative.",
        "Quantities of spatial mixing against depth",
        name="mixing-quantities",
    )
    maps = [
        Picture(
            partial(mixing_maps, part, view),
            f"From where the positions of one cell read ({VIEW_TITLES[view].lower()}; {of}).",
            "Frame: the cell. Colour: energy of a source cell relative to uniform mixing, on one "
            "log scale for all maps; one position of the cell was measured, or their mean.",
            "Maps of where positions read from, per network and layer",
            vector=False,
            name=f"mixing-maps-{k}" if k else "mixing-maps",
            folded=k > 0,
        )
        for k, part in enumerate(chunks([r for r in results if view in r.views], _MOST_ROWS))
    ]
    rows = []
    for r in results:
        for v in r.views:
            row: dict[str, object] = {"model": r.model.name, "view": v, "form": _form(r, v)}
            for q in r.quantities:
                n = overall(r, v, q)
                row[QUANTITY_TITLES[q].lower()] = (
                    "–" if np.isnan(n.value) else f"{n.value:.3g} [{n.low:.3g}, {n.high:.3g}]"
                )
            rows.append(row)
    means = Table(
        "Means over blocks of every quantity, with 95 % intervals. Prefix tokens (class, "
        "distillation, register) are left out and rows renormalised; their own mass has a column.",
        pd.DataFrame(rows),
    )
    frame = table_of(results)
    formats = dict.fromkeys(("value", "se", "low", "high", "uniform_px"), "{:.3g}")
    table = Table("Every block.", frame, formats | {"depth": "{:.2f}"}, folded=True)
    return [
        Section(
            "spatial-mixing",
            "Spatial mixing",
            (text, *filter(None, sentences)),
            (distance, means, *maps, *([quantities] if known else []), table),
            untrained_warning(r.model for r in results),
        )
    ]


def _form(r: SpatialMixing, view: str) -> str:
    return r.forms[r.views.index(view)]


def _zero(r: SpatialMixing, view: str) -> np.ndarray:
    found: np.ndarray = r.zero[r.views.index(view)]
    return found
