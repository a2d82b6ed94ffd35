"""The report on principal components of positions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.words import (
    images_text,
    name_of,
    primary,
    untrained_baseline,
    untrained_warning,
)
from mixer_probe.mixing.components import TokenComponents
from mixer_probe.mixing.figures.components import component_curves, component_maps
from mixer_probe.mixing.findings.components import component_sentence, component_training_sentence


def component_section(results: Sequence[TokenComponents]) -> list[Section]:
    """What the first three components of the positions look like over the images."""
    first, own = results[0], primary(results)
    sentences = []
    for r in own:
        baseline = untrained_baseline(r, results)
        sentences.append(component_sentence(r))
        if baseline is not None:
            sentences.append(component_training_sentence(r, baseline))
    maps = [
        Picture(
            partial(component_maps, r),
            f"First three principal components of the positions of {name_of(r.model)}, over "
            f"{len(r.shown)} of {images_text(r.images)}.",
            "Red, green and blue: components 1, 2 and 3, each from its 2 % to its 98 % quantile "
            "over the images shown. One basis per layer for all images: within a column, equal "
            "colours are equal features; between columns, colours are unrelated. Signs make the "
            "loading of largest magnitude positive. One square per position, not smoothed.",
            f"Colour maps of the components of positions of {name_of(r.model)}",
            vector=False,
            photo=True,
            dpi=120,
            name=f"components-{r.model.name}",
            folded=r not in own,
        )
        for r in results
    ]
    curves = Picture(
        partial(component_curves, results),
        "Fraction of the variance of all positions in the first and in the first three principal "
        f"components, against depth ({images_text(first.images)}).",
        "Left: of these images. Right: estimated for other images of the kind, with bands: 95 % "
        "intervals over images (jackknife). Thin grey lines: channels that are "
        "independent of each other and have the same variances. Colour maps show only this "
        "fraction of what a layer represents.",
        "Explained variance of three components of positions against depth",
        name="components-variance",
    )
    fractions = [c for c in first.to_frame().columns if c.startswith(("expl", "exp", "tog"))]
    table = Table(
        "Every layer: fraction of the variance of all positions of these images in components 1 to "
        "3, that of independent channels, and the fraction of the three together with its "
        "interval over images.",
        table_of(results),
        {**dict.fromkeys(fractions, "{:.3f}"), "depth": "{:.2f}"},
        folded=True,
    )
    scaled = "divided by their standard deviations" if first.standardized else "not rescaled"
    text = (
        "Principal components of the activations at all positions of all images, as in DINOv2 "
        f"(Oquab et al. 2023). Channels are centred and {scaled}; prefix tokens are left out."
    )
    return [
        Section(
            "components",
            "Principal components of positions",
            (text, *filter(None, sentences)),
            (*maps, curves, table),
            untrained_warning(r.model for r in results),
        )
    ]
