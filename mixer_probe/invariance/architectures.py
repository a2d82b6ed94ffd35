"""Robustness by architecture: the accuracy that networks of each family retain under each kind of
distortion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ImagesRecord, Result
from mixer_probe.invariance.accuracy import DistortionAccuracy
from mixer_probe.invariance.consistency import check_comparable
from mixer_probe.stats import delta_interval


@dataclass(frozen=True)
class ArchitectureComparison(Result):
    """What is `kept` [group, kind] of the accuracy above chance, (distorted - chance) / (plain -
    chance), averaged over the strengths of a kind and over the networks of a group; `gap` [group,
    group, kind] is the first group's minus the second's.

    95 % intervals are over images, for all networks and strengths at once (delta method): they say
    what other images would give for these very networks, not what other training seeds would.
    `by_network` [network, kind] shows how far those lie apart."""

    title: ClassVar[str] = "Architectures under distortions"

    groups: Annotated[tuple[str, ...], "group"]
    networks: Annotated[tuple[str, ...], "network"]
    members: Annotated[tuple[str, ...], "network"]
    images: ImagesRecord
    kinds: Annotated[tuple[str, ...], "kind"]
    strengths: Annotated[tuple[str, ...], "kind"]
    kept: Annotated[np.ndarray, "group", "kind"]
    low: Annotated[np.ndarray, "group", "kind"]
    high: Annotated[np.ndarray, "group", "kind"]
    gap: Annotated[np.ndarray, "group", "group", "kind"]
    gap_low: Annotated[np.ndarray, "group", "group", "kind"]
    gap_high: Annotated[np.ndarray, "group", "group", "kind"]
    by_network: Annotated[np.ndarray, "network", "kind"]
    n: int

    def networks_of(self, group: str) -> list[int]:
        """Indices of the networks of a group."""
        return [i for i, member in enumerate(self.members) if member == group]

    def to_frame(self) -> pd.DataFrame:
        """One row per group and kind, with the gap to the group that retains most under that
        kind."""
        rows = []
        for k, kind in enumerate(self.kinds):
            best = int(self.kept[:, k].argmax())
            for g, group in enumerate(self.groups):
                own = self.networks_of(group)
                rows.append(
                    {
                        "kind": kind,
                        "strengths": self.strengths[k],
                        "group": group,
                        "networks": len(own),
                        "kept": float(self.kept[g, k]),
                        "low": float(self.low[g, k]),
                        "high": float(self.high[g, k]),
                        "lowest_network": float(self.by_network[own, k].min()),
                        "highest_network": float(self.by_network[own, k].max()),
                        "best_group": self.groups[best],
                        "behind_best": float(self.gap[best, g, k]),
                        "behind_low": float(self.gap_low[best, g, k]),
                        "behind_high": float(self.gap_high[best, g, k]),
                        "n": self.n,
                    }
                )
        return pd.DataFrame(rows)


def compare_architectures(results: Sequence[DistortionAccuracy]) -> ArchitectureComparison:
    """The accuracy that each family retains, from its trained networks that are above chance.

    Raises MeasureError for networks under other distortions or of other images, or fewer than two
    that are above chance."""
    readers = [r for r in results if r.model.trained and r.reads_class]
    if len(readers) < 2:
        raise MeasureError(
            f"only {len(readers)} of the networks are above chance; a comparison of families needs "
            "two"
        )
    check_comparable(readers)
    first, groups = readers[0], tuple(dict.fromkeys(r.model.family for r in readers))
    weights = np.array([[r.model.family == g for r in readers] for g in groups], dtype=np.float64)
    weights /= weights.sum(axis=1, keepdims=True)
    # Per network: what it retains under each kind, the influence of each image on it, and the most
    # it could change.
    means, influences, most = [], [], []
    for r in readers:
        values, by_image, change = r.kept_by_image()
        rows = [r.filter_type(kind) for kind in r.kinds]
        means.append(np.stack([values[row].mean() for row in rows]))
        influences.append(np.stack([by_image[row].mean(axis=0) for row in rows]))
        most.append(change)
    by_network = np.stack(means)
    kept, grouped = weights @ by_network, np.einsum("gm,mkn->gkn", weights, np.stack(influences))
    gap, reach = kept[:, None] - kept[None], (weights @ np.stack(most))[:, None]
    both = reach[:, None] + reach[None]
    return ArchitectureComparison(
        groups,
        tuple(r.model.name for r in readers),
        tuple(r.model.family for r in readers),
        first.images,
        first.kinds,
        tuple(
            ", ".join(first.distortions[i].strength_text for i in first.filter_type(kind))
            for kind in first.kinds
        ),
        kept,
        *delta_interval(kept, grouped, limits=(kept - reach, kept + reach)),
        gap,
        *delta_interval(gap, grouped[:, None] - grouped[None], limits=(gap - both, gap + both)),
        by_network,
        first.n,
    )
