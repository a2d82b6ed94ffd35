"""How results of every type are shown, in the order of a report: those of the catalogue, and those
of reports themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixer_probe import catalog
from mixer_probe.core.analysis import View
from mixer_probe.core.section import Section
from mixer_probe.core.skipped import Skipped
from mixer_probe.models import ModelCard
from mixer_probe.models.views import models_section
from mixer_probe.report.diff import ReportDiff
from mixer_probe.report.narrative import Narrative
from mixer_probe.report.sections_diff import diff_section
from mixer_probe.report.sections_narrative import narrative_sections


def skipped_section(results: Sequence[Skipped]) -> list[Section]:
    """Analyses that were requested and could not be run."""
    sentences = tuple(f"{r.step}: {r.reason}" for r in results)
    return [Section("skipped", "Skipped analyses", sentences)]


def all_views() -> dict[type[Any], View]:
    """The view of every type of result, in the order of a report."""
    first = (View(Narrative, narrative_sections), View(ModelCard, models_section))
    last = (View(ReportDiff, diff_section), View(Skipped, skipped_section))
    return {view.result: view for view in (*first, *catalog.views(), *last)}
