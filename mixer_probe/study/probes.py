"""Runs the analyses of the room `probing` over networks: for the report and the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mixer_probe.core.analysis import Analysis
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.progress import task
from mixer_probe.core.result import Result
from mixer_probe.core.settings import StudySettings
from mixer_probe.core.skipped import Skipped
from mixer_probe.images import Images
from mixer_probe.models import Model
from mixer_probe.probing.analyses import PIXELS, ROOM, Readings, by_position, patch_positions

Pair = tuple[Images, Images]


def probe_results(found: Sequence[Readings], s: StudySettings, names: Sequence[str]) -> list[Result]:
    """The analyses `names` of all networks; what fails is `Skipped`, once for the same reason."""
    results: list[Result] = []
    with task("probes", len(names) * len(found)) as advance:
        for name in names:
            reasons: set[str] = set()
            for readings in found:
                results += _attempt(ROOM[name], readings, s, reasons)
                advance(1)
    return results


def _attempt(analysis: Analysis, readings: Readings, s: StudySettings, reasons: set[str]) -> list[Result]:
    model = readings.fit.model
    if model.family == "pixels" and analysis.name not in PIXELS:
        return []
    try:
        return list(analysis.run(readings, s))
    except MixerProbeError as error:
        if str(error) in reasons:
            return []
        reasons.add(str(error))
        return [Skipped.because(f"{analysis.title} of {model.name}", error)]


def place_results(model: Model, twin: Model | None, pair: Callable[[], Pair], images: Images, s: StudySettings) -> list[Result]:
    """The probes of places that `s` asks for: of the network on `images` (patch position), and of positions, fitted and tested
    on `pair`, for the untrained `twin` too."""
    results: list[Result] = []
    if "patch-position" in s.probes:
        results += _places(f"patch position of {model.name}", lambda: [patch_positions(model, images, s)])
    if {"positions", "attentive"} & set(s.probes):
        for one in (model, twin):
            if one is not None:
                results += _places(f"probes by position of {one.name}", lambda one=one: by_position(one, pair(), s))  # type: ignore[misc]
    return results


def _places(step: str, work: Callable[[], list[Result]]) -> list[Result]:
    try:
        return work()
    except MixerProbeError as error:
        return [Skipped.because(step, error)]
