"""Analyses of several networks on the same images, step by step, kept on disk."""

from mixer_probe.core.settings import StudySettings
from mixer_probe.study.processes import fill_steps
from mixer_probe.study.result_cache import ResultCache
from mixer_probe.study.study import Study, run_analyses, run_study

__all__ = ["ResultCache", "Study", "StudySettings", "fill_steps", "run_analyses", "run_study"]
