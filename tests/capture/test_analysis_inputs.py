"""`Inputs`: what takes work is done once, errors too, and a network that has left memory leaves its
representations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.capture import Inputs, analysis_inputs
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.core.settings import StudySettings
from mixer_probe.study import run_analyses
from tests.networks import CASES
from tests.tiny import tiny_models


def test_work_and_errors_are_kept() -> None:
    inputs, calls = Inputs(tiny_models()[0]), []

    def fail() -> None:
        calls.append("fail")
        raise MeasureError("no")

    for _ in range(2):
        with pytest.raises(MeasureError, match="no"):
            inputs.keep("a", fail)
    assert calls == ["fail"]
    assert inputs.keep("b", lambda: 1) == inputs.keep("b", lambda: 2) == 1


def test_a_closed_network_leaves_its_representations() -> None:
    images = mp.load_images("demo", limit=20)
    inputs = Inputs(CASES["mixer"].model(), images)
    first = inputs.test["blocks.0"]
    fit, rest = inputs.parts
    assert sorted([*fit.ids, *rest.ids]) == sorted(images.ids)
    assert inputs.baseline is not None
    assert not inputs.baseline.record.trained
    inputs.close()
    np.testing.assert_array_equal(inputs.test["blocks.0"], first)
    with pytest.raises(AssertionError, match="has left memory"):
        _ = inputs.model


def test_large_representations_lie_in_a_folder_until_the_study_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = mp.load_images("demo", limit=20)
    model, settings = CASES["mixer"].model(), StudySettings(layers="blocks.0")
    expected = mp.extract(model, images, "blocks.0")["blocks.0"]
    monkeypatch.setattr(analysis_inputs, "IN_MEMORY", expected.nbytes)
    for given in ({}, {"runs": tmp_path}):
        shared: dict[str, Any] = dict(given)
        inputs = Inputs(model, images, None, settings, shared)
        inputs.extract(images, "blocks.0")
        assert shared == given
        inputs.extract(images, "blocks.0", reduce="none", part="positions")
        # The head of `whole` makes the run a little too large.
        found = inputs.test
        inputs.close()
        np.testing.assert_array_equal(found["blocks.0"], expected)
        folder = shared["runs"]
        assert len(list(folder.glob("*.zarr"))) == 2
        del inputs
        shared.clear()
        assert folder.exists() is bool(given)


def test_baselines_are_of_trained_networks_and_where_they_are_wanted() -> None:
    assert Inputs(CASES["mixer"].model(), settings=StudySettings(baselines=False)).baseline is None
    own = Inputs(CASES["mixer"].model())
    assert own.baseline is not None
    assert own.baseline.baseline is None
    assert own.baseline.trained is own


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(ImagesError, match="the analysis needs images, and none were given"):
        run_analyses(tiny_models()[:1], {"channels": ["statistics"]})
    with pytest.raises(MeasureError, match="there is no room 'wieghts'; closest: weights"):
        run_analyses(tiny_models()[:1], {"wieghts": ["units"]})
