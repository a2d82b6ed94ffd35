"""Results and figures to one self-contained HTML file."""

from mixer_probe.report.html import make_sections, versions, write_report
from mixer_probe.report.settings import StudySettings
from mixer_probe.report.skipped import Skipped
from mixer_probe.report.study import Study, run_study
from mixer_probe.report.weight_study import weight_results

__all__ = ["Skipped", "Study", "StudySettings", "make_sections", "run_study", "versions", "weight_results", "write_report"]
