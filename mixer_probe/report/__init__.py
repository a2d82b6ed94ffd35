"""Results and figures to one self-contained HTML file."""

from mixer_probe.report.deliver import deliver
from mixer_probe.report.diff import ReportDiff, compare_reports
from mixer_probe.report.html import make_sections, versions, write_report
from mixer_probe.report.narrative import Narrative, narrate
from mixer_probe.report.pages import save_pages
from mixer_probe.report.script import present, script_parser

__all__ = [
    "Narrative",
    "ReportDiff",
    "compare_reports",
    "deliver",
    "make_sections",
    "narrate",
    "present",
    "save_pages",
    "script_parser",
    "versions",
    "write_report",
]
