"""What the report says about probes: sentences from the numbers, with interval, n and baseline, and
no sentence on nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mixer_probe as mp
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.core.result import Result
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.skipped import Skipped
from mixer_probe.probing import (
    TargetProbe,
    few_shot_probe,
    linear_probe,
    online_code,
    paired_interval,
    pixel_baseline,
)
from mixer_probe.probing.analyses import ROOM, check_target, read_groups, runs_of
from mixer_probe.report import make_sections
from mixer_probe.study import StudySettings, run_analyses, run_study
from tests.probes import (
    accuracy,
    attentive,
    calibrated,
    coded,
    confused,
    control_coded,
    controlled,
    few_shot,
    patch_placed,
    placed,
    randomised,
    record,
    targeted,
)
from tests.tiny import tiny_models


def only(results: list[Any]) -> Section:
    (section,) = make_sections(results)
    return section


EVERYTHING = (
    accuracy("net"),
    few_shot("net"),
    controlled("net"),
    coded("net"),
    control_coded("net"),
    randomised("net"),
    confused("net"),
    calibrated("net"),
    placed("net"),
    attentive("net"),
    patch_placed("net"),
    targeted("net"),
)


@pytest.mark.parametrize("result", EVERYTHING, ids=lambda r: type(r).__name__)
def test_every_kind_has_a_section_with_pictures_a_table_and_what_it_was_measured_on(
    result: Result,
) -> None:
    section = only([result])
    assert section.paragraphs
    assert all("nan" not in text for text in section.paragraphs)
    assert any("40" in text for text in section.paragraphs)  # n
    pictures = [item for item in section.content if isinstance(item, Picture)]
    assert pictures
    assert all(len(p.alt) > 15 and p.reading and p.name.startswith("probe-") for p in pictures)
    tables = [item for item in section.content if isinstance(item, Table)]
    assert any(table.folded for table in tables)


def test_anchors_and_file_names_differ() -> None:
    sections = make_sections([*EVERYTHING, replace(accuracy("net"), method="knn", path_name="k")])
    anchors = [s.anchor for s in sections]
    assert len(set(anchors)) == len(anchors) == 13
    names = [p.file_name for s in sections for p in s.content if isinstance(p, Picture)]
    assert len(set(names)) == len(names)


def test_accuracy_stands_beside_the_twin_the_pixels_and_chance() -> None:
    result = accuracy("net")
    section = only([result, accuracy("raw pixels", family="pixels", layers=1)])
    first, second = section.paragraphs
    assert "highest accuracy 75.0 % [59.8 %, 85.8 %] after l2, n = 40" in first
    assert "Untrained baseline: at most 35.0 %" in first
    assert result.untrained is not None
    gain = paired_interval(result.right[2], result.untrained.right[2])
    assert gain[0] == pytest.approx((30 - 14) / 40)
    assert f"training adds 40.0 points [{100 * gain[1]:.1f}, {100 * gain[2]:.1f}]" in first
    assert second.startswith("Raw pixels: 25.0 %")
    assert "chance: 25.0 %" in second
    assert not section.warnings


def test_the_last_layer_is_told_where_another_is_better() -> None:
    result = accuracy("net")
    order = [0, 2, 1]
    names = ("accuracy", "low", "high", "predicted")
    turned = replace(
        result, untrained=None, **{name: getattr(result, name)[order] for name in names}
    )
    assert (
        "highest accuracy 75.0 % [59.8 %, 85.8 %] after l1, n = 40; 50.0 %"
        in only([turned]).paragraphs[0]
    )


def test_a_layer_that_is_ahead_of_no_other_is_not_called_the_best() -> None:
    result = accuracy("net")
    # 29 and 30 of 40: one image more.
    close = np.where(np.arange(40) < 29, result.labels, (result.labels + 1) % 4)
    predicted = np.stack([result.predicted[0], close, result.predicted[2]])
    said = only([replace(result, predicted=predicted, untrained=None)]).paragraphs[0]
    assert (
        "net: accuracy 75.0 % [59.8 %, 85.8 %] after l2, n = 40 (not distinguishable from 1 other "
        "layer)." in said
    )


def test_layers_that_cannot_be_probed_are_said() -> None:
    result = accuracy("net")
    nothing = np.full(3, np.nan)
    gone = replace(result, accuracy=nothing, low=nothing, high=nothing, untrained=None)
    assert "no layer can be probed" in only([gone]).paragraphs[0]
    assert "after l2" in only([accuracy("net", undefined=True)]).paragraphs[0]


def test_methods_have_sections_of_their_own() -> None:
    sections = make_sections(
        [accuracy("net"), replace(accuracy("net"), method="knn", path_name="k", untrained=None)]
    )
    assert [s.anchor for s in sections] == ["probes", "probes-knn"]
    assert sections[1].title == "Probe accuracy by layer: a k-NN probe"


def test_a_probe_without_a_path_has_no_picture_of_one() -> None:
    centroid = replace(accuracy("net"), method="centroid", path_name="")
    assert len([item for item in only([centroid]).content if isinstance(item, Picture)]) == 1


def test_raw_pixels_alone_are_numbers_without_a_curve() -> None:
    for make in (accuracy, few_shot, controlled, coded, targeted):
        section = only([make("raw pixels", family="pixels", layers=1)])
        assert not [item for item in section.content if isinstance(item, Picture)]
        assert not section.warnings
        assert "untrained" not in " ".join(section.paragraphs)


def test_few_shots_tell_both_ends_and_the_protocol() -> None:
    (text,) = only([few_shot("net")]).paragraphs
    assert (
        "after l2, 60.0 % [50.0 %, 70.0 %] with 1 image per class and 75.0 % [65.0 %, 85.0 %] with "
        "25 images per class" in text
    )
    assert "untrained baseline: 75.0 %" in text
    assert "(big_vision, 3 draws, n = 40, chance 25.0 %)" in text


def test_selectivity_is_told_in_points_and_as_a_share_of_errors() -> None:
    (text,) = only([controlled("net")]).paragraphs
    assert (
        "after l2, accuracy on the semantic groups is 95.0 % [90.0 %, 99.0 %], on random groupings "
        "80.0 %" in text
    )
    assert "selectivity 15.0 points [9.0, 21.0], or 75.0 % [65.0 %, 85.0 %] of the errors" in text
    assert "untrained baseline: at most 37.5 %" in text
    assert "2 groupings, n = 40" in text


def test_a_twin_stands_behind_its_network_and_not_alone() -> None:
    (text,) = only([coded("net"), coded("net?untrained", trained=False)]).paragraphs
    assert (
        "given l2, the labels of 40 images take 20 bits instead of 80: compression 4.00× [3.80, "
        "4.30]" in text
    )
    assert "untrained baseline: at most 1.10× [0.90, 1.40]" in text


def test_the_price_of_a_random_grouping() -> None:
    (text,) = only([control_coded("net")]).paragraphs
    assert "not distinguishable from random groupings (p = 0.33)" in text
    assert (
        "random groupings take 0.150 bits more on average (0.100 to 0.200 over 2 groupings" in text
    )


def test_confusions_name_the_classes() -> None:
    (text,) = only([confused("net")]).paragraphs
    # 9 of 10 ships are right too, and 7 of 10 dogs.
    assert (
        "accuracy per class is at most 100.0 % [72.2 %, 100.0 %] ('truck') and at least 40.0 % "
        "[16.8 %, 68.7 %] ('cat')" in text
    )
    assert (
        "at most 6 of 10 images of a class are predicted as one other class ('cat' as 'dog')"
        in text
    )
    counts = 100 * confused("net").counts
    (text,) = only([replace(confused("net"), counts=counts)]).paragraphs
    assert "accuracy per class is highest for 'truck' with 100.0 %" in text
    assert "lowest for 'cat' with 40.0 %" in text
    assert "the most frequent confusion is 'cat' predicted as 'dog' (600 of 1000 images)" in text


def test_calibration_is_judged_by_its_null() -> None:
    (text,) = only([calibrated("net")]).paragraphs
    assert (
        "mean confidence 80.0 %, accuracy 40.0 %; ECE 40.0 points, significantly miscalibrated"
        in text
    )
    (text,) = only([replace(calibrated("net"), ece=np.full(2, 0.08))]).paragraphs
    assert (
        "ECE 8.0 points, not distinguishable from calibrated (calibrated predictions: mean 5.0, "
        "95th percentile 10.0; n = 40)" in text
    )


def test_places_are_told_in_pixels_with_chance_and_the_twin() -> None:
    (text,) = only([patch_placed("net")]).paragraphs
    assert "12.0 [11.5, 12.5] px after l0 and 2.0 [1.5, 2.5] px after l2; chance: 16.1 px" in text
    assert "untrained baseline: 8.0 [7.5, 8.5] px after l2" in text


def test_positions_and_attention() -> None:
    (text,) = only([placed("net")]).paragraphs
    assert (
        "after l2, 45.0 % at the median position (range 20.0 % to 70.0 %) and 80.0 % [70.0 %, 90.0 "
        "%] from the mean" in text
    )
    (text,) = only([attentive("net")]).paragraphs
    assert f"{16 * 16 / 136:.1f} times uniform attention" in text


def test_targets_have_first_and_last_layer_twin_and_unit() -> None:
    (text,) = only([targeted("net")]).paragraphs
    assert "R² of brightness 0.90 [0.85, 0.94] → 0.40 [0.35, 0.44], untrained baseline 0.40" in text
    assert (
        "accuracy of place 0.90 [0.85, 0.94] → 0.95 [0.90, 0.99], untrained baseline 0.95, chance "
        "0.50" in text
    )
    meanings = next(item for item in only([targeted("net")]).content if isinstance(item, Table))
    assert list(meanings.frame["unit"]) == ["", "degrees", ""]


def test_random_labels_at_chance() -> None:
    (text,) = only([randomised("net")]).paragraphs
    assert (
        "at chance after 3 of 3 layers, 26.0 % on average (expected: 25.0 %; 5 permutations, n = "
        "40)" in text
    )


def test_untrained_networks_are_warned_of() -> None:
    for result in (accuracy("net"), patch_placed("net"), targeted("net")):
        alone = replace(result, model=record("net", trained=False), untrained=None)
        assert "net is untrained" in only([alone]).warnings[0]


# -- the study -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probed() -> list[Result]:
    """All probes of one tiny network, on few images; of a second one those that cost little."""
    images, train = (
        mp.load_images("demo", limit=40),
        mp.load_images("demo", split="train", limit=60),
    )
    settings = StudySettings(targets=("brightness",))
    cheap = tuple(name for name in ROOM.names if name not in ("mdl", "control-mdl", "attentive"))
    results: list[Result] = []
    for model, probes in ((tiny_models()[0], ROOM.names), (tiny_models()[2], cheap)):
        results += run_analyses([model], {"probing": probes}, images, train, settings, strict=False)
    return results


def of(results: list[Result], kind: str) -> list[Any]:
    return [r for r in results if type(r).__name__ == kind]


def test_the_study_has_every_probe_of_every_network(probed: list[Result]) -> None:
    counts = {
        kind: len(of(probed, kind)) for kind in dict.fromkeys(type(r).__name__ for r in probed)
    }
    assert counts == {
        "PatchPosition": 2,
        "PositionProbe": 4,  # of untrained baselines too
        "AttentiveResult": 2,
        "ProbeResult": 4,  # and raw pixels each time
        "FewShotResult": 4,
        "ConfusionMatrix": 2,
        "Calibration": 2,
        "ControlTask": 4,
        "OnlineCode": 3,
        "ControlCode": 2,
        "RandomLabels": 2,
        "TargetProbe": 4,
    }
    assert [r.model.name for r in of(probed, "ProbeResult")] == [
        "tiny-mixer",
        "raw pixels",
        "tiny-resnet",
        "raw pixels",
    ]
    assert all(
        r.untrained
        for kind in ("ProbeResult", "FewShotResult", "ControlTask")
        for r in of(probed, kind)[::2]
    )
    # A ResNet's last stages are one position at 32 px, which has no place.
    assert all(grid[0] > 1 for r in of(probed, "PatchPosition") for grid in r.grids)


def test_numbers_of_the_study_are_those_of_the_probes(probed: list[Result]) -> None:
    images, train = (
        mp.load_images("demo", limit=40),
        mp.load_images("demo", split="train", limit=60),
    )
    runs = [mp.extract(tiny_models()[0], source) for source in (train, images)]
    found = few_shot_probe(runs[0], runs[1], (1, 5))
    assert of(probed, "FewShotResult")[0].shots == (1, 5)  # each class has six images
    np.testing.assert_array_equal(of(probed, "FewShotResult")[0].accuracy, found.accuracy)
    raw = linear_probe(*pixel_baseline(train, images))
    np.testing.assert_array_equal(of(probed, "ProbeResult")[1].accuracy, raw.accuracy)
    code = online_code(
        runs[0].only(["blocks.0", "blocks.1"]),
        fractions=(0.0625, 0.125, 0.25, 0.5, 1.0),
        l2=(0.1, 1, 10),
    )
    np.testing.assert_allclose(of(probed, "OnlineCode")[0].bits, code.bits)


def test_probes_can_be_left_out() -> None:
    images = mp.load_images("demo", limit=40)
    found = run_study(
        tiny_models()[:1],
        images,
        None,
        StudySettings(permutations=0, analyses={"probing": (), "attribution": ()}),
    )
    kinds = {type(r).__name__ for r in found}
    assert "SimilarityMatrix" in kinds
    assert not kinds & {
        "ProbeResult",
        "FewShotResult",
        "ControlTask",
        "OnlineCode",
        "PatchPosition",
        "Skipped",
    }


def test_one_reason_is_told_once() -> None:
    """No grouping of classes that are not CIFAR-10's is known: one Skipped for all networks."""
    images = replace(
        mp.load_images("demo", limit=40), class_names=tuple(f"c{k}" for k in range(10))
    )
    results = run_analyses(
        tiny_models()[:2], {"probing": ("control", "accuracy")}, images, strict=False
    )
    assert [r.step for r in results if isinstance(r, Skipped)] == ["control tasks of tiny-mixer"]
    assert len(of(results, "ProbeResult")) == 3


def test_groups_of_a_table_are_taken(tmp_path: Path) -> None:
    names = tuple(f"c{k}" for k in range(10))
    table = tmp_path / "groups.csv"
    pd.DataFrame({"class": names, "group": ["even", "odd"] * 5}).to_csv(table, index=False)
    images = replace(mp.load_images("demo", limit=40), class_names=names)
    settings = StudySettings(analyses={"probing": ("control",)}, groups=str(table), baselines=False)
    results = run_analyses(tiny_models()[:1], {"probing": ("control",)}, images, settings=settings)
    assert of(results, "ControlTask")[0].groups == ("even", "odd")
    table.write_text("class,kind\nc0,even\n")
    with pytest.raises(ImagesError, match="needs the columns class and group, it has class, kind"):
        read_groups(str(table))
    with pytest.raises(ImagesError, match="cannot read the groups"):
        read_groups(str(tmp_path / "nowhere.csv"))


def test_targets_need_no_labels(tmp_path: Path) -> None:
    for i, image in enumerate(mp.load_images("demo", limit=30)):
        image.save(tmp_path / f"{i}.png")
    settings = StudySettings(
        analyses={"probing": ("accuracy", "targets")}, targets=("brightness", "hue")
    )
    unlabelled = mp.load_images(str(tmp_path))
    results = run_analyses(
        tiny_models()[:1], settings.analyses, unlabelled, settings=settings, strict=False
    )
    assert [r.step for r in results if isinstance(r, Skipped)] == ["linear probe"]
    (found, raw) = of(results, "TargetProbe")
    assert isinstance(found, TargetProbe)
    assert found.targets == ("brightness", "hue")
    assert found.untrained is not None
    assert (found.n_train[0], found.n_test[0]) == (15, 15)
    assert raw.model.name == "raw pixels"


def test_another_data_set_is_matched_by_names_of_classes() -> None:
    train = mp.load_images("demo", split="train", limit=40)
    other = replace(mp.load_images("demo", limit=30), name="elsewhere", ids=train.ids[:30])
    order = np.random.default_rng(0).permutation(10)
    renamed = replace(
        other,
        labels=np.argsort(order)[other.labels],
        class_names=tuple(train.class_names[k] for k in order),  # type: ignore[index]
    )
    results = []
    for images in (other, renamed):
        settings = StudySettings(
            analyses={"probing": ("accuracy", "targets")}, targets=("brightness",), baselines=False
        )
        results.append(run_analyses(tiny_models()[:1], settings.analyses, images, train, settings))
    for kind in ("ProbeResult", "TargetProbe"):
        a, b = (of(found, kind)[0] for found in results)
        pd.testing.assert_frame_equal(a.to_frame(), b.to_frame())


def test_classes_that_only_the_test_images_have_are_an_error() -> None:
    train = mp.load_images("demo", split="train", limit=40)
    names = ("emu", *train.class_names[1:])  # type: ignore[index]
    other = replace(mp.load_images("demo", limit=40), name="elsewhere", class_names=names)
    runs = [mp.extract(tiny_models()[0], images, "blocks.0") for images in (train, other)]
    with pytest.raises(ImagesError, match="'emu'"):
        runs_of(runs[0], runs[1])


def test_names_of_probes_and_targets_are_checked() -> None:
    assert ROOM.check(["mdl", "accuracy", "mdl"]) == ("mdl", "accuracy")
    with pytest.raises(MeasureError, match="no probe analysis 'acuracy'; closest: accuracy"):
        ROOM.check(["acuracy"])
    assert check_target("a:b/c.csv:age") == "a:b/c.csv:age"
    with pytest.raises(
        MeasureError,
        match=r"FILE\.csv:COLUMN or a property of images, not 'brightnes'; closest: brightness",
    ):
        check_target("brightnes")
