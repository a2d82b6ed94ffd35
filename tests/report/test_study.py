"""The study: which results it makes, what it does with steps that fail, and that it goes on where
it stopped."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.capture.analysis_inputs import halves
from mixer_probe.core.errors import ModelError
from mixer_probe.core.result import Result, load_results, save_results
from mixer_probe.core.skipped import Skipped
from mixer_probe.probing import linear_probe
from mixer_probe.similarity.analyses import OTHER_DRAWS
from mixer_probe.study import StudySettings, run_study
from tests.tiny import tiny_models


def kinds(results: list[Result]) -> Counter[str]:
    return Counter(type(r).__name__ for r in results)


def test_every_analysis_of_every_model_is_there(study: list[Result]) -> None:
    assert kinds(study) == {
        "ModelCard": 3,
        "TokenMixing": 2,  # the Mixer and its untrained baseline
        "SpatialKernels": 6,
        "KernelTying": 4,
        # a ResNet has no kernel of its own for each channel, and attributions of a zero head are
        # nothing
        "Skipped": 2,
        "StemFilters": 3,
        "PositionEmbeddings": 1,
        "WeightSpectra": 6,
        "Anatomy": 3,
        "ChannelStatistics": 3,
        "ClassSelectivity": 6,
        "ChannelsNeeded": 3,
        # six ordered pairs of networks: 2 blocks of two of them, 4 of the third; untrained
        # baselines too
        "ChannelPartners": 32,
        "ChannelPage": 8,
        "AttributionPanel": 1,
        "PerturbationCurves": 2,
        "Faithfulness": 2,
        "RandomisationCheck": 4,
        # of methods on each of two networks, and of the two by each of four methods
        "Agreement": 2 + 4,
        # CKA of six pairs, networks with themselves too, and two more measures of three
        "SimilarityMatrix": 12,
        "ProbeResult": 4,  # and raw pixels
        "FewShotResult": 4,
        "ControlTask": 4,
        "OnlineCode": 7,  # untrained baselines have their own
        "PatchPosition": 3,
        "SpatialMixing": 6,
        "EffectiveReceptiveField": 6,
    }


def test_numbers_equal_the_analyses_by_hand(study: list[Result]) -> None:
    mixer, vit, _ = tiny_models()
    images, train = (
        mp.load_images("demo", limit=60),
        mp.load_images("demo", split="train", limit=60),
    )
    reps = {m.name: mp.extract(m, images) for m in (mixer, vit)}
    by_hand = mp.cka(reps["tiny-mixer"]["blocks.0"], reps["tiny-vit"]["blocks.1"])
    matrices = [r for r in study if type(r).__name__ == "SimilarityMatrix"]
    matrix = next(
        m for m in matrices if (m.model_a.name, m.model_b.name) == ("tiny-mixer", "tiny-vit")
    )
    assert matrix.values[0, 1] == pytest.approx(by_hand, abs=1e-6)
    probe = next(
        r for r in study if type(r).__name__ == "ProbeResult" and r.model.name == "tiny-mixer"
    )
    again = linear_probe(mp.extract(mixer, train), reps["tiny-mixer"])
    np.testing.assert_array_equal(probe.accuracy, again.accuracy)
    assert probe.untrained is not None
    assert probe.untrained.model.name == "tiny-mixer?untrained"
    assert not probe.untrained.model.trained


def test_other_measures_compare_different_networks_only(study: list[Result]) -> None:
    matrices = [r for r in study if type(r).__name__ == "SimilarityMatrix"]
    assert [m.measure for m in matrices] == ["cka"] * 6 + ["procrustes"] * 3 + ["mutual_knn"] * 3
    assert all(m.model_a != m.model_b for m in matrices[6:])
    # CKA leaves out every one of the 60 images in turn, Procrustes groups of them; mutual k-NN has
    # no interval.
    assert {m.interval.resamples for m in matrices[:6]} == {60}
    assert {m.interval.resamples for m in matrices[6:9]} == {OTHER_DRAWS}
    assert {m.interval.resamples for m in matrices[9:]} == {0}


def test_results_save_and_load(study: list[Result], tmp_path: Path) -> None:
    again = load_results(save_results(study, tmp_path / "results.json"))
    assert kinds(list(again)) == kinds(study)
    for old, new in zip(study, again, strict=True):
        assert new.to_frame().equals(old.to_frame())


def test_images_without_labels_leave_the_probes_out(tmp_path: Path) -> None:
    for i, image in enumerate(mp.load_images("demo", limit=8)):
        image.save(tmp_path / f"{i}.png")
    results = run_study(
        tiny_models()[:1], mp.load_images(str(tmp_path)), None, StudySettings(permutations=0)
    )
    skipped = [r for r in results if isinstance(r, Skipped)]
    assert [s.step for s in skipped] == [
        "linear probe",
        "class selectivity",
        "attributions of tiny-mixer",
    ]
    assert all("have no labels" in s.reason for s in skipped[:2])
    assert "its head is zero" in skipped[2].reason
    assert kinds(results)["SimilarityMatrix"] == 1


def test_a_model_that_cannot_be_loaded_does_not_stop_the_others() -> None:
    def missing() -> mp.Model:
        raise ModelError("no such weights")

    images = mp.load_images("demo", limit=20)
    results = run_study(
        [missing, tiny_models()[0]], images, None, StudySettings(permutations=0, baselines=False)
    )
    assert (
        next(r.reason for r in results if isinstance(r, Skipped) and r.step == "loading a model")
        == "no such weights"
    )
    assert kinds(results)["ModelCard"] == 1
    with pytest.raises(ModelError, match="no such weights"):
        run_study([missing], images)


def test_an_interrupted_study_goes_on_with_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = mp.load_images("demo", limit=20)
    settings = StudySettings(
        permutations=0,
        baselines=False,
        analyses={"probing": ("accuracy",), "channels": (), "attribution": ()},
    )
    first = run_study(tiny_models()[:1], images, None, settings, store=tmp_path)
    # A hook of one's own would make it another network; so the pass over the images itself is what
    # must not happen.
    monkeypatch.setattr(
        "mixer_probe.capture.extraction._pieces",
        lambda *_: pytest.fail("the images were seen again"),
    )
    second = run_study(tiny_models()[:1], images, None, settings, store=tmp_path)
    a, b = (
        next(r for r in results if type(r).__name__ == "SimilarityMatrix")
        for results in (first, second)
    )
    np.testing.assert_array_equal(a.values, b.values)


def test_halves_hold_every_class_and_no_image_twice() -> None:
    reps = mp.extract(tiny_models()[0], mp.load_images("demo", limit=45), "blocks.0")
    assert reps.labels is not None
    fit, rest = halves(reps.labels, "demo", reps.class_names, seed=3)
    assert sorted([*fit, *rest]) == list(range(45))
    assert set(reps.labels[fit]) == set(reps.labels[rest]) == set(range(10))
    np.testing.assert_array_equal(halves(reps.labels, "demo", reps.class_names, seed=3)[0], fit)
    # Without labels the halves are of the images alone.
    assert sorted(np.concatenate(halves(None, "demo", None, 0, 45))) == list(range(45))
