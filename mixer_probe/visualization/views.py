"""The report on feature visualizations: optimised images beside the real images that activate a unit most."""

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
# More rows than a page is high.
_MOST_ROWS = 8


def visualization_section(results: Sequence[FeatureVisualization]) -> list[Section]:
    """Feature visualization of single units."""
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    formats = {"depth": "{:.2f}", **dict.fromkeys(("activation", "strongest_real", "relative"), "{:.3g}"), "percentile": "{:.1f}"}
    kinds = [c for c in ("channel", "hidden_unit", "class", "direction") if c in frame]
    # A unit of one kind has no number of another.
    frame[kinds] = frame[kinds].astype("Int64").astype(str).replace("<NA>", "")
    table = Table("Every optimised image.", frame, formats, folded=True)
    sentences = tuple(_sentence(r) for r in results)
    warnings = (*untrained_warning(r.model for r in results), *_dead(results))
    return [Section("visualization", "Feature visualization", sentences, (*_pictures(results), table), warnings)]


def _pictures(results: Sequence[FeatureVisualization]) -> list[Picture]:
    units = sum(len(r.units) for r in results)
    rest = f" The first {_MOST_ROWS} of {units} units are shown." if units > _MOST_ROWS else ""
    pictures = Picture(
        partial(feature_pictures, results, limit=_MOST_ROWS),
        "Images optimised by gradient ascent to activate a unit, from several seeds, beside the real images with the highest "
        f"activation among {join(dict.fromkeys(images_text(r.images) for r in results))}.{rest}",
        "Fourier: free Fourier coefficients under random shifts, zooms and rotations (Olah et al. 2017). MACO: the average "
        "amplitude spectrum of the real images with free phases, under crops and noise (Fel et al. 2023); paler pixels "
        "influenced the "
        "unit less. Rely on features that all seeds and the real images share: an optimised image shows what is sufficient to "
        "activate a unit, not its function. Activations above 1× are reached by none of these real images.",
        "Optimised images of units beside the real images with the highest activation",
        vector=False,
        name="feature-visualization",
    )
    ascent = Picture(
        partial(feature_ascent, results, limit=_MOST_ROWS),
        "Objective during gradient ascent, averaged over transformed views; one line per seed.",
        "Curves that still rise at the end need more steps; seeds with different final values converged to different images.",
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
    typical = f", median {np.median(relative):.2g} times the strongest real image" if len(relative) else ""
    of = f"{stronger} of {len(result.units)} units" if len(result.units) > 1 else ("the unit" if stronger else "no unit")
    return f"{_NAMES[result.methods[m]]} activates {of} more strongly than every real image{typical}"


def _dead(results: Sequence[FeatureVisualization]) -> tuple[str, ...]:
    """The units that no input activates."""
    names = [
        f"{r.label(int(u))} of {r.layer.name} of {name_of(r.model)}"
        for r in results
        for u in np.flatnonzero(np.isnan(r.activation).any((1, 2)))
    ]
    if not names:
        return ()
    return (f"No pixel affects {join(names)} in some or all seeds, so there is no optimised image.",)
