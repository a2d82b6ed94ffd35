"""Results and figures to one self-contained HTML file."""

from mixer_probe.report.diff import ReportDiff, compare_reports
from mixer_probe.report.export import export_report
from mixer_probe.report.html import make_sections, versions, write_report
from mixer_probe.report.narrative import Narrative, narrate
from mixer_probe.report.pages import save_pages
from mixer_probe.report.script import publish, script_parser

__all__ = [
    "Narrative",
    "ReportDiff",
    "compare_reports",
    "export_report",
    "make_sections",
    "narrate",
    "publish",
    "save_pages",
    "script_parser",
    "versions",
    "write_report",
]
