"""Sentences on attention distance and tokens of large norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixer_probe.core.finding import span
from mixer_probe.core.words import interval, name_of, number, untrained_baseline
from mixer_probe.mixing.attention import AttentionDistance
from mixer_probe.mixing.findings.changes import changed


def at(estimates: Any, k: Any, digits: int = 1) -> str:
    """ "10.3 [9.8, 10.9]" of one of several estimates, the value alone where it has no interval."""
    value, low, high = (getattr(estimates, side)[k] for side in ("value", "low", "high"))
    return number(value, low, high, digits) if np.isfinite(low) else f"{value:.{digits}f}"


def attention_sentences(
    result: AttentionDistance, results: Sequence[AttentionDistance]
) -> list[str]:
    """Distances of the first and the last block, of single heads and of rollout, what training
    changed, and attention to prefix tokens."""
    where = "within its windows" if result.windowed.all() else "over all patches"
    first, last = result.distance.value[0], result.distance.value[-1]
    said = [
        f"{name_of(result.model)} attends {at(result.mean, 0)} px far in its first block (heads: "
        f"{span(first[np.isfinite(first)], 1)}), and {at(result.mean, -1)} px in its last (heads: "
        f"{span(last[np.isfinite(last)], 1)}), mean over heads and n = {result.n} images; uniform "
        f"attention {where} has {span(result.uniform.tolist(), 1)} px."
    ]
    baseline = untrained_baseline(result, results)
    if baseline:
        count = int(changed(result.mean, baseline.mean).sum())
        said.append(
            f"Training changed the distance significantly in {count} of {len(result.blocks)} "
            f"blocks (Bonferroni); untrained it is {at(baseline.mean, 0)} px in the first and "
            f"{at(baseline.mean, -1)} px in the last."
        )
    if np.isfinite(result.rollout.value[-1]):
        said.append(
            f"Rolled out from the first block to the last, it is {at(result.rollout, -1)} px."
        )
    prefix = 100 * result.prefix.value
    if np.isfinite(prefix).any():
        said.append(
            f"Patches give {span(prefix[0][np.isfinite(prefix[0])], 1)} % of their attention to "
            f"prefix tokens in the first block, and {span(prefix[-1][np.isfinite(prefix[-1])], 1)} "
            "% in the last."
        )
    return said


def high_norm_sentence(result: AttentionDistance) -> str:
    """In how many images, and how often, patch tokens have a large norm."""
    tokens = result.tokens
    if not tokens.count.value.any():
        return (
            f"{name_of(result.model)} has no patch token of large norm in {result.n} images, after "
            "any block."
        )
    last = interval(tokens.images[-1], tokens.images_low[-1], tokens.images_high[-1])
    counts = span(tokens.count.value.tolist(), 2)
    return (
        f"{name_of(result.model)} has {counts} patch tokens of large norm per "
        f"image, depending on the block; after the last they are in {last} of n = {result.n} "
        f"images, {at(tokens.count, -1, 2)} per image."
    )
