"""The report on effective receptive fields."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mixer_probe.core.section import Picture, Section, Table, chunks, table_of
from mixer_probe.core.words import images_text, primary, untrained_baseline, untrained_warning
from mixer_probe.mixing.figures.receptive_field import receptive_field_curves, receptive_field_maps
from mixer_probe.mixing.findings.receptive_field import receptive_sentence, training_sentence
from mixer_probe.mixing.receptive_field import EffectiveReceptiveField

_MOST_ROWS = 6


def receptive_field_section(results: Sequence[EffectiveReceptiveField]) -> list[Section]:
    """From how much of the image a position reads, by depth."""
    first = results[0]
    sentences = []
    for r in primary(results):
        baseline = untrained_baseline(r, results)
        sentences.append(receptive_sentence(r))
        if baseline is not None:
            sentences.append(training_sentence(r, baseline))
    plural = "s" if first.probes > 1 else ""
    of = f"{images_text(first.images)}, {first.probes} random vector{plural} per image and layer"
    maps = [
        Picture(
            partial(receptive_field_maps, part),
            f"Input-gradient energy of one position of some layers, by pixel ({of}).",
            "Colour: energy of a pixel relative to the maximum of the map, on a log scale; crosses "
            "mark the position, white frames theoretical receptive fields that end within the "
            "image. Above each map: the area that holds half of the energy. Residual connections "
            "keep the pixels of the position itself bright at every depth.",
            "Maps of input-gradient energy per network and layer",
            vector=False,
            name=f"receptive-field-maps-{k}" if k else "receptive-field-maps",
            folded=k > 0,
        )
        for k, part in enumerate(chunks(results, _MOST_ROWS))
    ]
    curves = Picture(
        partial(receptive_field_curves, results),
        "Area of the smallest set of pixels that holds 50 and 95 % of the energy, and correlation "
        f"of the amplitude with a Gaussian of the same centre and width, against depth ({of}).",
        "Area in fractions of the image, on a log scale. Bands: 95 % intervals over images "
        "(jackknife). Dashed: area of the theoretical field of CNNs. Token mixing and attention "
        "can read the whole image from the first block on.",
        "Area of the effective receptive field against depth",
        name="receptive-field-area",
    )
    formats = {
        name: "{:.3g}"
        for name in first.to_frame().columns
        if name not in ("model", "trained", "layer", "row", "column", "n")
    } | {"depth": "{:.2f}"}
    table = Table(
        "Every layer: energy, areas of 50, 95 and 99 % of it (fractions of the image; sides of "
        "squares of this area in px), fraction of pixels with any, centre and sigma of the fitted "
        "Gaussian in px, its correlation, and the side of the theoretical field in px.",
        table_of(results),
        formats,
        folded=True,
    )
    text = (
        "The effective receptive field of a position is the energy of its gradient by the input "
        "pixels, summed over its channels and averaged over images (Luo et al. 2016). A layer "
        "need not use all of the image that its connections reach."
    )
    return [
        Section(
            "receptive-field",
            "Effective receptive field",
            (text, *filter(None, sentences)),
            (*maps, curves, table),
            untrained_warning(r.model for r in results),
        )
    ]
