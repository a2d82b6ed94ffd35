"""What the report says and draws of distortions: sentences on planted cases, figures without texts
on one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import mixer_probe as mp
from mixer_probe.core.errors import MeasureError, UndefinedInvarianceWarning
from mixer_probe.core.section import Picture
from mixer_probe.images import LowPass, PatchShuffle, Shift
from mixer_probe.invariance import (
    compare_architectures,
    distortion_accuracy,
    distortion_examples,
    error_consistency,
    representation_shift,
    standard_distortions,
)
from mixer_probe.invariance.figures import (
    architecture_dots,
    distortion_curves,
    distortion_pictures,
    error_consistency_heatmaps,
    error_consistency_pairs,
    representation_shift_curves,
    telling_rows,
)
from mixer_probe.report import make_sections
from tests.invariance.planted import (
    answers_right,
    bag_of_pixels,
    colours,
    position_reader,
    quadrants,
)
from tests.report.test_figure_layout import outside, overlapping, texts_of
from tests.tiny import tiny_models

DISTORTIONS = (PatchShuffle(2), PatchShuffle(4), LowPass(4.0), Shift(4, 4))


def sentences(*results: Any) -> str:
    return "\n".join(text for section in make_sections(results) for text in section.paragraphs)


def test_a_network_that_ignores_position_is_said_to_lose_nothing() -> None:
    images = colours(60)
    said = sentences(
        distortion_accuracy(bag_of_pixels(images), images, (PatchShuffle(2), Shift(2, 2)))
    )
    assert (
        "bag-of-pixels has an accuracy of 100.0 % [98.4 %, 100.0 %] on undistorted images (n = "
        "240, chance 25.0 %)" in said
    )
    # 1.96^2 / (240 + 1.96^2) = 1.6 %.
    assert (
        "The drop under any distortion is not significantly different from zero (at most 0.0 "
        "points [-1.6, 1.6])." in said
    )
    assert "largest drop" not in said


def test_a_network_that_reads_position_is_said_to_lose_what_it_loses() -> None:
    images = quadrants(60)
    said = sentences(
        distortion_accuracy(position_reader(images), images, (Shift(8, 8), LowPass(8.0)))
    )
    assert "The largest drop is 100.0 points" in said
    assert (
        "under cyclic shift, 8 px down and 8 right; -33.3 % [-35.4 %, -31.2 %] of the accuracy "
        "above chance is retained" in said
    )
    assert (
        "Accuracy is not distinguishable from chance at and beyond cyclic shift, 8 px down and 8 "
        "right." in said
    )


def test_a_network_that_cannot_read_the_class_is_said_to_be_at_chance() -> None:
    images = mp.load_images("demo", limit=50)
    model = position_reader(quadrants(5))
    blind = answers_right(np.arange(100)[None].repeat(5, 0) % 10 == 3, DISTORTIONS, name="blind")
    said = sentences(blind)
    assert "which is not above chance, so no drop can be measured." in said
    assert "largest drop" not in said
    with pytest.raises(
        MeasureError,
        match=r"none of the classes of .* \('airplane', .* is among the 4 of position-reader",
    ):
        distortion_accuracy(model, images)


def test_two_identical_networks_are_said_to_fail_together() -> None:
    right = np.stack([np.arange(200) % 4 > 0] * 5)
    results = [answers_right(right, DISTORTIONS, name=name, family=name) for name in ("one", "two")]
    said = sentences(error_consistency(results), compare_architectures(results))
    assert (
        "On undistorted images, one and two: kappa 1.00 [0.96, 1.00], maximum 1.00 (n = 200; "
        "independent errors: -0." in said
    )
    assert said.count("is not significant") == 3
    assert "Pairs within a family" not in said


def test_perfect_networks_have_no_errors_to_compare() -> None:
    right = np.ones((1, 50), bool)
    with pytest.warns(UndefinedInvarianceWarning):
        found = error_consistency(
            [answers_right(right, name="one"), answers_right(right, name="two")]
        )
    assert "Error consistency is undefined for every pair" in sentences(found)


def test_families_that_lose_differently_are_ranked_with_the_gap() -> None:
    def right(*fractions: float) -> np.ndarray:
        return np.arange(1000)[None] // 10 < 100 * np.array(fractions)[:, None]

    fractions = {"m0": (0.9, 0.3), "m1": (0.9, 0.2), "v0": (0.9, 0.8), "v1": (0.9, 0.7)}
    results = [
        answers_right(
            right(*s), (PatchShuffle(4),), name=name, family="mixer" if name[0] == "m" else "vit"
        )
        for name, s in fractions.items()
    ]
    said = sentences(compare_architectures(results))
    assert said.startswith(
        "Patches shuffled (4×4), retained fraction of the accuracy above chance: ViT 81.2 %"
    )
    assert "Mixer retains less than ViT in every pair of networks, by 62.5 points [" in said
    same_family = sentences(error_consistency(results))
    assert (
        "Pairs within a family have kappas of 1.00, pairs between families 1.00: the family alone "
        "does not determine" in same_family
    )


def test_rows_that_tell_are_those_above_chance() -> None:
    right = np.stack([np.arange(200) % 10 < fraction for fraction in (9, 6, 1, 5, 9)])
    found = error_consistency([answers_right(right, DISTORTIONS, name=n) for n in "ab"])
    # On a 4x4 grid both are at chance, so the 2x2 grid stands for patch shuffles.
    assert telling_rows(found) == [0, 1, 3, 4]


# -- figures ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figures() -> dict[str, Callable[[], Figure]]:
    """Of three tiny networks with the longest names there are, seven made ones, and one alone."""
    images, models = mp.load_images("demo", limit=20), tiny_models()
    distortions = standard_distortions(models[0])
    random = np.random.default_rng(0)
    names = [f"local-dir:a/folder/with/an/almost/endless_name_{k}" for k in range(7)]
    families = ["mixer", "vit", "cnn", "mixer", "vit", "cnn", "mixer"]
    right = (
        random.random((7, 1 + len(distortions), 300))
        < np.linspace(0.9, 0.3, 1 + len(distortions))[:, None]
    )
    many = [
        answers_right(r, distortions, name=n, family=f) for r, n, f in zip(right, names, families)
    ]
    shift = [representation_shift(m, images, DISTORTIONS, permutations=20) for m in models]
    consistency = error_consistency(many)
    examples = distortion_examples(models[0], images, distortions, 1)
    return {
        "accuracy": lambda: distortion_curves(many),
        "kept": lambda: distortion_curves(many, "kept"),
        "agreement": lambda: distortion_curves(many[:1], "agreement"),
        "one kind": lambda: distortion_curves([answers_right(right[0, :2], DISTORTIONS[:1])]),
        "architectures": lambda: architecture_dots(compare_architectures(many)),
        "one architecture": lambda: architecture_dots(compare_architectures([many[0], many[3]])),
        "pairs": lambda: error_consistency_pairs(consistency),
        "pairs of a distortion": lambda: error_consistency_pairs(consistency, 3),
        "one pair": lambda: error_consistency_pairs(error_consistency(many[:2])),
        "maps": lambda: error_consistency_heatmaps(consistency),
        "two maps": lambda: error_consistency_heatmaps(error_consistency(many[:2]), [0, 2]),
        "cka": lambda: representation_shift_curves(shift),
        "cosine": lambda: representation_shift_curves(shift[:1], "cosine"),
        "pictures": lambda: distortion_pictures(examples),
    }


NAMES = [
    "accuracy",
    "kept",
    "agreement",
    "one kind",
    "architectures",
    "one architecture",
    "pairs",
    "pairs of a distortion",
]
NAMES += ["one pair", "maps", "two maps", "cka", "cosine", "pictures"]


@pytest.mark.parametrize("name", NAMES)
def test_no_text_lies_on_another_or_leaves_the_canvas(
    figures: dict[str, Callable[[], Figure]], name: str
) -> None:
    figure = figures[name]()
    texts = texts_of(figure)
    assert texts
    assert not overlapping(texts)
    assert not [text for text, box in texts if outside(box, figure.bbox)]


def test_curves_show_the_numbers() -> None:
    right = np.stack([np.arange(100) < k for k in (90, 80, 60, 50, 40)])
    figure = distortion_curves([answers_right(right, DISTORTIONS)])
    lines = [axes.lines[0].get_ydata().tolist() for axes in figure.axes]
    assert lines == [[90, 80, 60], [90, 50], [90, 40]]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["none", "2×2", "4×4"]
    assert figure.axes[0].lines[1].get_ydata()[0] == 10


def test_maps_are_symmetric_and_leave_the_diagonal_out() -> None:
    right = np.random.default_rng(0).random((3, 1, 200)) < 0.6
    found = error_consistency([answers_right(r, name=n) for r, n in zip(right, "abc")])
    shown = error_consistency_heatmaps(found).axes[0].images[0].get_array()
    assert (
        np.ma.getmaskarray(shown).diagonal().all() or np.isnan(np.asarray(shown)).diagonal().all()
    )
    assert float(shown[0, 1]) == float(shown[1, 0]) == pytest.approx(found.kappa[0, 0, 1])


def test_what_cannot_be_drawn_is_an_error(figures: dict[str, Callable[[], Figure]]) -> None:
    plain = answers_right(np.ones((1, 20), bool))
    with pytest.raises(MeasureError, match="no distortion to draw"):
        distortion_curves([plain])
    with pytest.raises(
        MeasureError, match="unknown value 'loss'; known: accuracy, kept, agreement"
    ):
        distortion_curves([plain], "loss")  # type: ignore[arg-type]
    with pytest.warns(UndefinedInvarianceWarning):
        perfect = error_consistency([plain, plain])
    with pytest.raises(MeasureError, match="no kappa is defined"):
        error_consistency_pairs(perfect)


def test_all_sections_have_their_pictures() -> None:
    images, models = mp.load_images("demo", limit=20), tiny_models()
    right = np.random.default_rng(0).random((2, 5, 60)) < 0.6
    found = [answers_right(r, DISTORTIONS, name=n, family=n) for r, n in zip(right, ("vit", "cnn"))]
    results = [
        distortion_examples(models[0], images, DISTORTIONS, 2),
        *found,
        compare_architectures(found),
        error_consistency(found),
        representation_shift(models[0], images, DISTORTIONS, permutations=20),
    ]
    sections = make_sections(results)
    anchors = [
        "distortion-examples",
        "distortions",
        "architectures-distortions",
        "error-consistency",
        "representation-shift",
    ]
    assert [s.anchor for s in sections] == anchors
    names = [item.file_name for s in sections for item in s.content if isinstance(item, Picture)]
    assert len(names) == len(set(names)) == 9
    for section in sections:
        for item in section.content:
            assert item.data if isinstance(item, Picture) else item.rows
