"""Results and figures to one self-contained HTML file."""

from mixer_probe.report.deliver import deliver
from mixer_probe.report.diff import ReportDiff, compare_reports
from mixer_probe.report.html import make_sections, versions, write_report
from mixer_probe.report.narrative import Narrative, narrate
from mixer_probe.report.pages import save_pages
from mixer_probe.report.resume import Steps
from mixer_probe.report.script import present, script_parser
from mixer_probe.report.settings import StudySettings
from mixer_probe.report.skipped import Skipped
from mixer_probe.report.study import Study, run_study
from mixer_probe.report.weight_study import weight_results

__all__ = [
    "Narrative",
    "ReportDiff",
    "Skipped",
    "Steps",
    "Study",
    "StudySettings",
    "compare_reports",
    "deliver",
    "make_sections",
    "narrate",
    "present",
    "run_study",
    "save_pages",
    "script_parser",
    "versions",
    "weight_results",
    "write_report",
]
