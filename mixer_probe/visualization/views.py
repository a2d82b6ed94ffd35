"""What optimised images say about units, and how far beyond real images they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import images_text, join, name_of, untrained_warning
from mixer_probe.visualization import FeatureVisualization
from mixer_probe.visualization.figures import feature_ascent, feature_pictures

_NAMES = {"fourier": "Fourier", "maco": "MACO"}
# More rows than a page is high.
_MOST_ROWS = 8


def visualization_section(results: Sequence[FeatureVisualization]) -> list[Section]:
    """What excites single units."""
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    formats = {"depth": "{:.2f}", **dict.fromkeys(("activation", "strongest_real", "relative"), "{:.3g}"), "percentile": "{:.1f}"}
    kinds = [c for c in ("channel", "hidden_unit", "class", "direction") if c in frame]
    # A unit of one kind has no number of another.
    frame[kinds] = frame[kinds].astype("Int64").astype(str).replace("<NA>", "")
    table = Table("Every picture.", frame, formats, folded=True)
    sentences = tuple(_sentence(r) for r in results)
    warnings = (*untrained_warning(r.model for r in results), *_dead(results))
    return [Section("visualization", "What excites single units", sentences, (*_pictures(results), table), warnings)]


def _pictures(results: Sequence[FeatureVisualization]) -> list[Picture]:
    units = sum(len(r.units) for r in results)
    rest = f" The first {_MOST_ROWS} of {units} units are drawn." if units > _MOST_ROWS else ""
    pictures = Picture(
        feature_pictures(results, limit=_MOST_ROWS),
        "Images made by gradient ascent to excite a unit, from several seeds, beside the strongest of "
        f"{join(dict.fromkeys(images_text(r.images) for r in results))}.{rest}",
        "Fourier: free Fourier coefficients under random shifts, zooms and rotations (Olah et al. 2017). MACO: the average "
        "spectrum of the real images with free phases, under crops and noise (Fel et al. 2023); pixels are paler the less the "
        "unit depended on them. Trust what all seeds and the real images share: an optimised image shows what suffices to excite "
        "a unit, not what the unit is for, and activations beyond 1× are ones that none of these real images reaches.",
        "Optimised images of units beside the real images that excite them most",
        vector=False,
        name="feature-visualization",
    )
    ascent = Picture(
        feature_ascent(results, limit=_MOST_ROWS),
        "The objective during the ascent, averaged over transformed views; a line a seed.",
        "Lines still rising at the end ask for more steps; seeds that end at different heights found different images.",
        "Line plots of the activation of units during gradient ascent",
        name="feature-ascent",
    )
    return [pictures, ascent]


def _sentence(result: FeatureVisualization) -> str:
    parts = [_method_text(result, m) for m in range(len(result.methods))]
    return (
        f"{name_of(result.model)}, {result.layer.name} ({result.objective}): {'; '.join(parts)}. Compared with "
        f"{images_text(result.images)}; {result.steps} steps, {len(result.seeds)} "
        f"seed{'s' if len(result.seeds) > 1 else ''}."
    )


def _method_text(result: FeatureVisualization, m: int) -> str:
    stronger = int(result.stronger[:, m].sum())
    relative = result.relative[:, m][np.isfinite(result.relative[:, m])]
    typical = f", {np.median(relative):.2g} times the strongest in the median" if len(relative) else ""
    of = f"{stronger} of {len(result.units)} units" if len(result.units) > 1 else ("the unit" if stronger else "no unit")
    return f"{_NAMES[result.methods[m]]} excites {of} more than every real image does{typical}"


def _dead(results: Sequence[FeatureVisualization]) -> tuple[str, ...]:
    """The units that nothing excites."""
    names = [
        f"{r.label(int(u))} of {r.layer.name} of {name_of(r.model)}"
        for r in results
        for u in np.flatnonzero(np.isnan(r.activation).any((1, 2)))
    ]
    if not names:
        return ()
    return (f"No pixel moves {join(names)} in some or all seeds, so there is no picture of what excites it.",)
