"""The report on lesions, and on the importance of units."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.words import images_text, primary, untrained_warning
from mixer_probe.mixing.figures.lesions import importance_scatter, lesion_curves
from mixer_probe.mixing.findings.lesions import importance_sentences, lesion_sentences
from mixer_probe.mixing.lesions import Lesions
from mixer_probe.mixing.unit_importance import UnitImportance


def lesions_section(results: Sequence[Lesions]) -> list[Section]:
    """Accuracy without a branch or block."""
    own = primary(results)
    content: list[Picture | Table] = []
    if any(r.layers for r in results):
        content.append(
            Picture(
                partial(lesion_curves, results),
                "Accuracy with one layer ablated, against its depth; "
                f"{images_text(results[0].images)}.",
                "Spatial and channel layers are replaced by their mean over the images, per "
                "position and channel; of a block the input takes the place of the output (Veit et "
                "al. 2016). Crosses: blocks that change the shape are replaced by their mean, "
                "which leaves nothing of the image. Bands: 95 % Wilson intervals over images. "
                "Dashed: intact networks. Where images have no labels of the network, agreement "
                "with its intact predictions is shown.",
                "Accuracy against the depth of the ablated layer",
                name="lesions",
            )
        )
    frame = table_of(results)
    formats = {
        name: "{:.3f}"
        for name in frame.columns
        if name.startswith(("accuracy", "drop", "intact", "chance", "depth"))
    }
    caption = (
        "Every ablated layer: accuracy (Wilson interval) and drop against the intact network "
        "(Tango's interval for paired proportions; McNemar's exact p)."
    )
    content.append(Table(caption, frame, formats | {"p_mcnemar": "{:.1e}"}, folded=True))
    sentences = tuple(text for r in own for text in lesion_sentences(r, results))
    warning = untrained_warning(r.model for r in results)
    return [Section("lesions", "Lesion accuracy", sentences, tuple(content), warning)]


def importance_section(results: Sequence[UnitImportance]) -> list[Section]:
    """Importance of units against their selectivity."""
    own = primary(results)
    content: list[Picture | Table] = []
    if any(np.isfinite(r.auroc).any() for r in own):
        content.append(
            Picture(
                partial(importance_scatter, results),
                "Loss of logit margin when a unit is replaced by its mean, against its class "
                f"selectivity; {images_text(results[0].images)}.",
                "Each point is a unit. The margin is the logit of the true class minus the largest "
                "other one. Bars: 95 % intervals over images. Selectivity is the AUROC of the "
                "class that the unit separates best, from the same images, and above 1/2 for units "
                "that separate nothing as well, since it is the largest of all classes.",
                "Importance of units against their class selectivity",
                name="unit-importance",
            )
        )
    frame = table_of(results)
    formats = {
        name: "{:.3f}"
        for name in frame.columns
        if name.startswith(("margin", "accuracy", "drop", "auroc", "rank", "intact", "depth"))
    }
    content.append(Table("Every ablated unit.", frame, formats, folded=True))
    sentences = tuple(text for r in own for text in importance_sentences(r))
    warning = untrained_warning(r.model for r in results)
    return [
        Section(
            "unit-importance",
            "Unit importance and class selectivity",
            sentences,
            tuple(content),
            warning,
            see=("lesions",),
        )
    ]
