"""The report on the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.words import images_text, name_of, primary, untrained_warning
from mixer_probe.mixing.figures.residual import logit_contributions, norm_ratios, ratio_maps
from mixer_probe.mixing.findings.residual import residual_sentences
from mixer_probe.mixing.residual import ResidualStream
from mixer_probe.mixing.views.panels import by_networks


def residual_section(results: Sequence[ResidualStream]) -> list[Section]:
    """Skip connections beside branches, and what every branch contributes to the logits."""
    own, images = primary(results), images_text(results[0].images)
    pictures = [
        Picture(
            partial(norm_ratios, group),
            f"Norm of the skip connection divided by that of the branch, |z| / |f(z)|; {images}.",
            "Averaged over positions and images, on a logarithmic axis, layer scale included. "
            "Above 1 (grey) most of a position passes unchanged. Dashed: prefix tokens. "
            "Dotted with open markers: untrained baseline. Bands: 95 % intervals over images. "
            "Drawn as by Raghu et al. (2021).",
            "Norm ratio of skip connection and branch against the block",
            name=f"norm-ratios{end}",
        )
        for end, group in by_networks(results)
    ]
    pictures += [
        Picture(
            partial(logit_contributions, group),
            "What the stem, every branch and the biases add to the logit of the class minus "
            "the mean logit over classes.",
            "The stream after the last block is the sum of the stem and all branches. With the "
            "norms after it frozen at their statistics, the logit is the sum of these bars, "
            "exactly. Lines: 95 % intervals over images. Open bars: untrained baseline. A "
            "branch that later branches build on may contribute nothing itself.",
            "Contributions to the logit by block and branch",
            name=f"logit-contributions{end}",
        )
        for end, group in by_networks([r for r in results if not r.reason])
    ]
    pictures += [
        Picture(
            partial(ratio_maps, r),
            f"Norm ratio at every position in {name_of(r.model)}, mean over images.",
            "One row per branch, on one logarithmic scale.",
            f"Norm ratio of skip connection and branch by position in {name_of(r.model)}",
            vector=False,
            name=f"ratio-maps-{r.model.name}",
            folded=True,
        )
        for r in own
        if any(np.isfinite(m).any() for m in r.maps)
    ]
    frame = table_of(results)
    plain = ("model", "trained", "block", "kind", "zero", "n")
    formats = {column: "{:.4g}" for column in frame.columns if column not in plain}
    table = Table("Every block and branch.", frame, formats, folded=True)
    return [
        Section(
            "residual",
            "Residual stream",
            tuple(text for r in own for text in residual_sentences(r, results)),
            (*pictures, table),
            untrained_warning(r.model for r in results),
        )
    ]
