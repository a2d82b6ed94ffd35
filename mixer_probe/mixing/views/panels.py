"""Networks in groups, so that figures with a panel per network stay legible."""

from __future__ import annotations

from collections.abc import Sequence

from mixer_probe.core.section import chunks
from mixer_probe.core.words import M, base_name, primary

_MOST = 3


def by_networks(results: Sequence[M], most: int = _MOST) -> list[tuple[str, list[M]]]:
    """The results of at most so many networks at a time, their baselines with them, each with an
    ending for the name of a picture: nothing for the first, then "-2", "-3"."""
    found = []
    for k, own in enumerate(chunks(primary(results), most)):
        names = {r.model.name for r in own} | {base_name(r.model.name) for r in own}
        group = [r for r in results if r in own or base_name(r.model.name) in names]
        found.append((f"-{k + 1}" if k else "", group))
    return found
