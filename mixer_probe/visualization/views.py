"""The report on feature visualizations: optimised images beside the real images that activate a
unit most."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import images_text, join, name_of, untrained_warning
from mixer_probe.visualization import FeatureVisualization
from mixer_probe.visualization.figures import feature_ascent, feature_pictures

_NAMES = {"fourier": "Fourier", "maco": "MACO"}
# Rows that fit on a page.
_MOST_ROWS = 8


def visualization_section(results: Sequence[FeatureVisualization]) -> list[Section]:
    """Feature visualization of single units."""
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    formats = {
        "depth": "{:.2f}",
        **dict.fromkeys(("activation", "strongest_real", "relative"), "{:.3g}"),
        "percentile": "{:.1f}",
    }
    kinds = [c for c in ("channel", "hidden_unit", "class", "direction") if c in frame]
    # A unit of one kind has no number of another.
    frame[kinds] = frame[kinds].astype("Int64").astype(str).replace("<NA>", "")
    table = Table("Every optimised image.", frame, formats, folded=True)
    units = sum(len(r.units) for r in results)
    rest = f" The first {_MOST_ROWS} of {units} units are shown." if units > _MOST_ROWS else ""
    pictures = Picture(
        partial(feature_pictures, results, limit=_MOST_ROWS),
        "Images optimised by gradient ascent to activate a unit, from several seeds, beside the "
        "real images with the highest activation among "
        f"{join(dict.fromkeys(images_text(r.images) for r in results))}.{rest}",
        "Fourier: free Fourier coefficients under random shifts, zooms and rotations (Olah et al. "
        "2017). MACO: the average amplitude spectrum of the real images with free phases, under "
        "crops and noise (Fel et al. 2023); paler pixels influenced the unit less. Rely on "
        "features that all seeds and the real images share: an optimised image shows what is "
        "sufficient to activate a unit, not its function. Activations above 1× are reached by none "
        "of these real images.",
        "Optimised images of units beside the real images with the highest activation",
        vector=False,
        name="feature-visualization",
    )
    ascent = Picture(
        partial(feature_ascent, results, limit=_MOST_ROWS),
        "Objective during gradient ascent, averaged over transformed views; one line per seed.",
        "Curves that still rise at the end need more steps; seeds with different final values "
        "converged to different images.",
        "Line plots of the activation of units during gradient ascent",
        name="feature-ascent",
    )
    sentences, dead = [], []
    for r in results:
        parts = []
        for m, method in enumerate(r.methods):
            stronger, relative = (
                int(r.stronger[:, m].sum()),
                r.relative[:, m][np.isfinite(r.relative[:, m])],
            )
            typical = (
                f", median {np.median(relative):.2g} times the strongest real image"
                if len(relative)
                else ""
            )
            of = (
                f"{stronger} of {len(r.units)} units"
                if len(r.units) > 1
                else ("the unit" if stronger else "no unit")
            )
            parts.append(
                f"{_NAMES[method]} activates {of} more strongly than every real image{typical}"
            )
        sentences.append(
            f"{name_of(r.model)}, {r.layer.name} ({r.objective}): {'; '.join(parts)}. Compared "
            f"with {images_text(r.images)}; {r.steps} steps, {len(r.seeds)} "
            f"seed{'s' if len(r.seeds) > 1 else ''}."
        )
        silent = np.flatnonzero(np.isnan(r.activation).any((1, 2)))
        dead += [f"{r.label(int(u))} of {r.layer.name} of {name_of(r.model)}" for u in silent]
    warnings = untrained_warning(r.model for r in results)
    if dead:
        warnings += (
            f"No pixel affects {join(dead)} in some or all seeds, so there is no optimised image.",
        )
    return [
        Section(
            "visualization",
            "Feature visualization",
            tuple(sentences),
            (pictures, ascent, table),
            warnings,
        )
    ]
