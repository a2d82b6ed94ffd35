"""Every analysis of the room, from the study to the report and the file."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.core.analysis import Analysis
from mixer_probe.core.errors import MixerProbeWarning
from mixer_probe.core.result import Result, load_results, save_results
from mixer_probe.core.section import Picture, Table
from mixer_probe.mixing import MixingSettings
from mixer_probe.mixing.analyses import ROOM
from mixer_probe.report import make_sections
from mixer_probe.study import run_analyses

NETWORKS = ("zoo:mixer", "zoo:vit")


@cache
def networks() -> tuple[mp.Model, ...]:
    return tuple(mp.load_model(name, device="cpu") for name in NETWORKS)


@cache
def few_images() -> mp.Images:
    """Six images of each of two classes."""
    images = mp.load_images("demo", split="test")
    assert images.labels is not None
    chosen = [np.flatnonzero(images.labels == k)[:6] for k in (0, 1)]
    return images.subset(np.sort(np.concatenate(chosen)))


@cache
def results_of(name: str) -> list[Result]:
    """What an analysis gives of a Mixer and a ViT, where it is for them, and of their untrained
    baselines."""
    models = [m for m in networks() if m.family in ROOM[name].families]
    settings = MixingSettings(
        images=2, reading_images=6, positions=4, lesion_images=6, units=3, unit_images=3
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixerProbeWarning)
        return run_analyses(models, {"mixing": [name]}, few_images(), mixing=settings)


def of_analyses(test: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("analysis", ROOM.analyses, ids=lambda a: a.name)(test)  # type: ignore[arg-type,no-any-return]


@of_analyses
def test_every_network_that_an_analysis_is_for_has_its_results(analysis: Analysis) -> None:
    results = results_of(analysis.name)
    assert {type(r) for r in results} == set(analysis.results)
    if not analysis.of_one:
        return
    names = [m.name for m in networks() if m.family in analysis.families]
    baselines = [f"{name}?untrained" for name in names] if analysis.baseline else []
    for k, kind in enumerate(analysis.results):
        found = {r.model.name for r in results if isinstance(r, kind)}  # type: ignore[attr-defined]
        assert set(names) <= found <= {*names, *baselines}
        # What follows the first result may need a network that is above chance.
        assert k or found == {*names, *baselines}


@of_analyses
def test_every_result_has_a_section_that_can_be_drawn(analysis: Analysis) -> None:
    results = results_of(analysis.name)
    views = {view.result for view in ROOM.views}
    assert set(analysis.results) <= views
    sections = make_sections(results)
    assert sections
    for section in sections:
        assert all(section.paragraphs), section.anchor
        assert "nan" not in " ".join(section.paragraphs).replace("–", "").lower().split()
        for item in section.content:
            if isinstance(item, Picture):
                assert item.encoded.startswith(b"<?xml" if item.vector else (b"\x89PNG", b"RIFF"))
                assert all((item.shows, item.reading, item.alt))
            else:
                assert isinstance(item, Table)
                assert len(item.rows)
                assert all(len(row) == len(item.header) for row in item.rows)


@of_analyses
def test_every_result_loads_as_it_was_saved(analysis: Analysis, tmp_path: Path) -> None:
    results = results_of(analysis.name)
    again = load_results(save_results(results, tmp_path / "results.json"))
    assert list(again) == results
    for result in results:
        assert len(result.to_frame())


def test_names_of_analyses_and_anchors_of_sections_are_unique() -> None:
    assert len(set(ROOM.names)) == len(ROOM.names)
    anchors = [s.anchor for name in ROOM.names for s in make_sections(results_of(name))]
    assert len(set(anchors)) == len(anchors)
