"""The report on attention: distance per head, rollout, prefix tokens, and tokens of large norm."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.words import images_text, name_of, primary, untrained_warning
from mixer_probe.mixing.attention import AttentionDistance
from mixer_probe.mixing.figures.attention import attention_distances, high_norm_maps
from mixer_probe.mixing.findings.attention import attention_sentences, high_norm_sentence
from mixer_probe.mixing.views.panels import by_networks

_VALUE_PATH = (
    "Attention weights are not the whole path of information: values are projected, added to the "
    "residual stream and changed by MLPs. From where a block really reads is measured by its "
    "Jacobian (spatial mixing), beside which these numbers should be read."
)


def attention_section(results: Sequence[AttentionDistance]) -> list[Section]:
    """Attention distance, and tokens of large norm."""
    own = primary(results)
    images = images_text(results[0].images)
    distances = [
        Picture(
            partial(attention_distances, group),
            "Mean attention distance of every head by block (Raghu et al. 2021), and attention of "
            f"patches to prefix tokens; {images}.",
            "Dots: heads. Squares: mean over heads; dotted with open markers: untrained baseline. "
            "Triangles: rollout (Abnar and Zuidema 2020), the product of (A + I) / 2 up to a "
            "block. Dashed: uniform attention. Bands: 95 % intervals over images. Prefix tokens "
            "are dropped and rows renormalised before distances are taken.",
            "Mean attention distance of heads against the block",
            name=f"attention-distance{end}",
        )
        for end, group in by_networks(results)
    ]
    formats = {
        column: "{:.3f}"
        for column in table_of(own).columns
        if column not in ("model", "trained", "block", "head", "n")
    }
    table = Table("Every block and head.", table_of(results), formats, folded=True)
    sentences = [text for r in own for text in attention_sentences(r, results)]
    first = Section(
        "attention",
        "Attention distance",
        (*sentences, _VALUE_PATH),
        (*distances, table),
        untrained_warning(r.model for r in results),
    )
    maps = [
        Picture(
            partial(high_norm_maps, r),
            f"Patch tokens of large norm in {name_of(r.model)}, {images_text(r.images)}.",
            "Above: number per image, with 95 % intervals over images. Below: fraction of images "
            "in which a position is one.",
            f"Tokens of large norm in {name_of(r.model)} by block and position",
            vector=False,
            name=f"high-norm-{r.model.name}",
            folded=k > 0,
        )
        for k, r in enumerate(own)
        if r.tokens.count.value.any()
    ]
    counts = pd.concat([_counts(r) for r in results], ignore_index=True)
    text = (
        "A patch token has a large norm beyond median + 6 × 1.4826 × MAD of the norms after its "
        "block, and at least twice their median. Darcet et al. (2024) found such tokens in large "
        "ViTs, which use them in place of registers; they cut DINOv2's norms at 150, a scale that "
        "other networks do not have."
    )
    norms = Table(
        "Norms of patch tokens after every block, and those beyond the cut.",
        counts,
        dict.fromkeys(counts.columns[2:], "{:.3g}"),
        folded=True,
    )
    second = Section(
        "high-norm-tokens",
        "Tokens of large norm",
        (text, *(high_norm_sentence(r) for r in own)),
        (*maps, norms),
        see=("attention",),
    )
    return [first, second]


def _counts(result: AttentionDistance) -> pd.DataFrame:
    tokens = result.tokens
    return pd.DataFrame(
        {
            "model": result.model.name,
            "block": [layer.name for layer in result.blocks],
            "median": tokens.median,
            "cut": tokens.cut,
            "largest": tokens.largest,
            "per_image": tokens.count.value,
            "per_image_low": tokens.count.low,
            "per_image_high": tokens.count.high,
            "images": tokens.images,
            "images_low": tokens.images_low,
            "images_high": tokens.images_high,
        }
    )
