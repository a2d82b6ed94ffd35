"""What moved between two reports: against published intervals, simulated chance, and reports that
differ in planted places."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from timm.models.mlp_mixer import MlpMixer

import mixer_probe as mp
from mixer_probe.core.errors import StoreError
from mixer_probe.core.result import (
    ImagesRecord,
    ModelRecord,
    Result,
    SavedResults,
    load_results,
    save_results,
    storable,
)
from mixer_probe.core.section import Picture
from mixer_probe.core.skipped import Skipped
from mixer_probe.report import ReportDiff, compare_reports, make_sections
from mixer_probe.report.diff import _ANSWERS, _KEYS, _ONLY, interval_columns
from mixer_probe.report.sections_diff import findings
from mixer_probe.report.views import all_views
from mixer_probe.stats import wilson_interval
from mixer_probe.stats.differences import difference_interval, difference_p
from tests.probing.conftest import FakeRepresentations
from tests.report.test_saved_results import made

MODEL = ModelRecord("zoo:a", "mixer", True, "file a.safetensors", "a" * 64, 10)
OTHER = replace(MODEL, name="zoo:b", fingerprint="b" * 64)
IMAGES = ImagesRecord("demo", "test", 100, 10, "c" * 64)


# -- the interval of a difference ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right_1", "n_1", "right_2", "n_2", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, table II, method 10, cases (a) to (d)
        (56, 70, 48, 80, 0.0524, 0.3339),
        (9, 10, 3, 10, 0.1705, 0.8090),
        (6, 7, 2, 7, 0.0582, 0.8062),
        (5, 56, 0, 29, -0.0381, 0.1926),
    ],
)
def test_the_interval_of_a_difference_of_shares_is_newcombes(
    right_1: int, n_1: int, right_2: int, n_2: int, low: float, high: float
) -> None:
    first, second = ((r / n, *wilson_interval(r, n)) for r, n in ((right_1, n_1), (right_2, n_2)))
    assert difference_interval(*second, *first) == pytest.approx([low, high], abs=5e-5)


def symmetric(value: float, error: float) -> tuple[float, float, float]:
    z = norm.ppf(0.975)
    return value, value - z * error, value + z * error


def test_symmetric_intervals_give_the_z_test() -> None:
    a, b = symmetric(1.0, 0.3), symmetric(2.0, 0.4)
    np.testing.assert_allclose(
        difference_interval(*a, *b), [1 - norm.ppf(0.975) * 0.5, 1 + norm.ppf(0.975) * 0.5]
    )
    assert difference_p(*a, *b) == pytest.approx(2 * norm.sf(1 / 0.5))
    assert difference_p(*b, *a) == pytest.approx(2 * norm.sf(1 / 0.5))
    assert difference_p(*a, *a) == 1


def test_p_and_interval_agree_where_the_intervals_are_lopsided() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2000))
    down_a, up_a, down_b, up_b = rng.exponential(size=(4, 2000))
    arguments = (a, a - down_a, a + up_a, b, b - down_b, b + up_b)
    low, high = difference_interval(*arguments).T
    np.testing.assert_array_equal(difference_p(*arguments) < 0.05, (low > 0) | (high < 0))


def test_an_interval_without_width_leaves_no_doubt() -> None:
    assert difference_p(1.0, 1.0, 1.0, 2.0, 2.0, 2.0) == 0
    # Quantiles of resamples may lie on one side of the value.
    assert 0 < difference_p(1.0, 1.1, 1.3, 1.2, 1.0, 1.4) < 1


def test_one_in_twenty_moves_by_chance() -> None:
    """And what the other rules would say, which the module's docstring tells: 0.6 % and 17 %."""
    rng = np.random.default_rng(0)
    z, n = norm.ppf(0.975), 200_000
    a, b = rng.normal(size=(2, n))
    bounds = difference_interval(a, a - z, a + z, b, b - z, b + z)
    moved = (bounds[:, 0] > 0) | (bounds[:, 1] < 0)
    assert moved.mean() == pytest.approx(0.05, abs=0.002)
    assert (np.abs(a - b) > 2 * z).mean() == pytest.approx(
        2 * norm.sf(2 * z / np.sqrt(2)), abs=0.001
    )
    assert 2 * norm.sf(2 * z / np.sqrt(2)) == pytest.approx(0.006, abs=0.0005)
    assert 2 * norm.sf(z / np.sqrt(2)) == pytest.approx(0.166, abs=0.0005)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.93])
def test_one_in_twenty_shares_moves_by_chance(fraction: float) -> None:
    rng = np.random.default_rng(1)
    n = 300
    first, second = rng.binomial(n, fraction, size=(2, 20_000))
    sides = [(right / n, *wilson_interval(right, np.full(20_000, n))) for right in (first, second)]
    p = difference_p(*sides[0], *sides[1])
    # Counts are whole, so that the share cannot be 5 % exactly.
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.012)


# -- which numbers have an interval ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "found", "bounds"),
    [
        ("layer accuracy low high chance", {"accuracy": ("low", "high")}, "low high"),
        ("r2 low_r2 high_r2 row_r2", {"r2": ("low_r2", "high_r2")}, "low_r2 high_r2"),
        ("cka cka_low cka_high", {"cka": ("cka_low", "cka_high")}, "cka_low cka_high"),
        (
            "behind_best behind_low behind_high",
            {"behind_best": ("behind_low", "behind_high")},
            "behind_low behind_high",
        ),
        # Of images and of draws alone: parts of the interval of the same number.
        (
            "accuracy low high images_low images_high seeds_low seeds_high",
            {"accuracy": ("low", "high")},
            "low high images_low images_high seeds_low seeds_high",
        ),
        # What independent errors give, not how well kappa is known.
        ("kappa low high null_low null_high", {"kappa": ("low", "high")}, "low high"),
        ("null_count_50 null_count_50_low null_count_50_high", {}, ""),
        ("unit_null_count_50 unit_null_count_50_low unit_null_count_50_high", {}, ""),
        ("selective random random_low random_high", {}, ""),
        ("ece ece_null ece_null_high", {}, ""),
        ("control_accuracy control_lowest control_highest", {}, ""),
        ("low high", {}, ""),
        ("follow slow_high", {}, ""),
    ],
)
def test_intervals_are_found_by_their_names(
    columns: str, found: dict[str, tuple[str, str]], bounds: str
) -> None:
    assert interval_columns(columns.split()) == (found, set(bounds.split()))


# -- planted differences ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured(Result):
    title: ClassVar[str] = "Measured"

    model: ModelRecord
    images: ImagesRecord
    measure: str
    layers: tuple[str, ...]
    score: np.ndarray
    arm: float = 0.1
    norm: tuple[float, ...] = ()
    word: str = "same"

    def to_frame(self) -> pd.DataFrame:
        norms = self.norm or (1.0,) * len(self.layers)
        bounds = {"score": self.score, "low": self.score - self.arm, "high": self.score + self.arm}
        return pd.DataFrame(
            {
                "model": self.model.name,
                "layer": self.layers,
                **bounds,
                "norm": norms,
                "word": self.word,
            }
        )


def measured(
    score: Any, model: ModelRecord = MODEL, measure: str = "x", **changes: Any
) -> Measured:
    layers = tuple(f"blocks.{i}" for i in range(len(score)))
    return Measured(
        model, IMAGES, measure, changes.pop("layers", layers), np.array(score), **changes
    )


def test_equal_reports_hold_the_same(tmp_path: Path) -> None:
    results = [measured([0.1, 0.2, np.nan]), measured([0.3], OTHER), Skipped("a", "b")]
    for name in "ab":
        save_results(results, tmp_path / name / "results.json", {"study": {"seed": 0}})
    found = compare_reports(tmp_path / "a", tmp_path / "b" / "results.json")
    assert found.same
    assert (found.matched, found.compared, found.values.shape) == (3, 3, (0, 6))
    assert findings(found) == (
        f"{tmp_path}/a and {tmp_path}/b/results.json are identical: 3 results, 3 numbers with an "
        "interval and 10 numbers and text values without.",
    )
    assert found.expected == 0


def test_a_planted_move_is_found_and_small_steps_are_not() -> None:
    a = measured([0.1, 0.2, 0.3, 0.4])
    b = measured([0.1 + 1e-9, 0.2 + 0.1, 0.3 + 0.15, 0.4 - 0.14])
    found = compare_reports([a], [b])
    frame = found.to_frame()
    # Beyond the arm of the difference, 0.1 sqrt 2 = 0.1414, is only the third; the first is the
    # same but for rounding.
    assert list(frame["row"]) == ["blocks.2", "blocks.3", "blocks.1"]
    assert list(frame["moved"]) == [True, False, False]
    assert frame["difference"].to_numpy() == pytest.approx([0.15, -0.14, 0.1])
    assert (found.compared, found.expected) == (4, pytest.approx(0.15))
    sentences = " ".join(findings(found))
    assert (
        "Of 4 numbers with an interval, 1 are identical, 2 differ within their intervals, and 1 "
        "changed beyond them" in sentences
    )
    assert "of 3 numbers that differ, about 0.2 would by chance" in sentences
    # One of three numbers moves so far by chance in 11 % of cases; a step of 0.25 in less than 0.2
    # %.
    assert "Largest change" not in sentences
    far = " ".join(findings(compare_reports([a], [measured([0.1, 0.2, 0.3 + 0.25, 0.4 - 0.14])])))
    moved = (
        "Largest change: score of Measured of a, x (blocks.2): 0.3 [0.2, 0.4] -> 0.55 [0.45, "
        "0.65], p = 0.00053, q = 0.0011."
    )
    assert moved in far


def test_false_discoveries_are_counted_by_benjamini_and_hochberg() -> None:
    p = np.array([0.001, 0.02, 0.04, 0.8])
    # By hand: 0.001 x 4 / 1, 0.02 x 4 / 2, 0.04 x 4 / 3, 0.8.
    steps = norm.isf(p / 2) * np.hypot(0.1, 0.1) / norm.ppf(0.975)
    found = compare_reports([measured(np.zeros(4))], [measured(steps)])
    np.testing.assert_allclose(found.p_value, p)
    np.testing.assert_allclose(found.q_value, [0.004, 0.04, 0.16 / 3, 0.8])
    assert (
        "2 of those that changed remain significant at a false discovery rate of 5 %"
        in " ".join(findings(found))
    )


def test_numbers_and_words_without_an_interval_are_listed_apart() -> None:
    a = measured([0.1, 0.2, 0.3], norm=(1.0, 2.0, float("nan")), word="ridge")
    b = measured([0.1, 0.2, 0.3], norm=(1.0, 2.5, float("nan")), word="lasso")
    found = compare_reports([a], [b])
    norms, words = found.changes
    assert (norms.column, norms.rows, norms.differing, norms.row, norms.before, norms.after) == (
        "norm",
        3,
        1,
        "blocks.1",
        2.0,
        2.5,
    )
    assert (words.column, words.differing, words.before, words.after) == (
        "word",
        3,
        "ridge",
        "lasso",
    )
    assert (len(found.values), found.plain, found.same) == (0, 6, False)
    assert list(found.changes_frame()["column"]) == ["norm", "word"]


def test_a_number_that_is_defined_on_one_side_only_is_told() -> None:
    found = compare_reports([measured([0.1, np.nan])], [measured([0.1, 0.4])])
    (change,) = found.changes
    assert (change.column, change.row, change.after, found.compared) == (
        "score",
        "blocks.1",
        0.4,
        1,
    )
    assert np.isnan(change.before)


def test_tolerance_can_be_chosen() -> None:
    a, b = [measured([1.0], norm=(1.0,))], [measured([1.001], norm=(1.001,))]
    assert len(compare_reports(a, b).changes) == 1
    assert compare_reports(a, b, rtol=0.01).same


def test_missing_results_and_rows_are_listed() -> None:
    a = [measured([0.1, 0.2]), measured([0.1], measure="y"), measured([0.1], measure="z")]
    b = [
        measured([0.1], measure="z"),
        measured([0.2, 0.9], layers=("blocks.1", "blocks.7")),
        measured([0.1], OTHER),
    ]
    found = compare_reports(a, b)
    assert found.matched == 2
    assert found.only_a == ("Measured of a, y", "Measured of a, x: 1 rows, the first blocks.0")
    assert found.only_b == ("Measured of b, x", "Measured of a, x: 1 rows, the first blocks.7")
    assert (len(found.values), found.compared) == (0, 2)
    assert "Only in A: Measured of a, y; Measured of a, x: 1 rows" in findings(found)[0]


@storable
@dataclass(frozen=True)
class OfChannel(Result):
    """A number of one channel."""

    title: ClassVar[str] = "Page"

    model: ModelRecord
    layer: str
    channel: int

    def to_frame(self) -> pd.DataFrame:
        return pd.DataFrame(
            {"model": [self.model.name], "layer": self.layer, "channel": self.channel, "score": 1.0}
        )


def test_channels_of_one_report_alone_are_named_with_their_numbers() -> None:
    a = [OfChannel(MODEL, "blocks.0", c) for c in (3, 17)]
    b = [OfChannel(MODEL, "blocks.0", c) for c in (3, 5)] + [OfChannel(MODEL, "blocks.1", 17)]
    found = compare_reports(a, b)
    assert found.only_a == ("Page of a, blocks.0:17",)
    assert found.only_b == ("Page of a, blocks.0:5", "Page of a, blocks.1:17")


def seeded(seed: int) -> list[Result]:
    """One network's results, all of whose draws are made with one seed."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = [
        {f"l{i}": rng.standard_normal((60, 8)) + labels[:, None] for i in range(2)}
        for _ in range(2)
    ]
    reps = [FakeRepresentations(one, labels, "x") for one in features]
    torch.manual_seed(0)
    network = MlpMixer(img_size=16, patch_size=4, embed_dim=8, num_blocks=2, num_classes=3)
    model = mp.load_model(
        network, input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, device="cpu"
    )
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return [
        mp.class_selectivity(reps[0], permutations=99, seed=seed),
        mp.channel_partners(*reps, "l0", "l1", permutations=99, seed=seed),
        *(
            mp.compare(*reps, m, permutations=39, resamples=40, seed=seed)
            for m in ("cka", "procrustes")
        ),
        mp.token_mixing(model, surrogates=99, seed=seed),
        mp.kernel_tying(model, images, seed=seed),
        mp.spatial_kernels(model, draws=99, seed=seed),
        mp.weight_spectra(model, seed=seed),
    ]


def test_another_seed_moves_nothing() -> None:
    found = compare_reports(seeded(0), seeded(1))
    assert found.matched == 8
    assert found.only_a == found.only_b == ()
    assert found.compared > 0
    assert found.moved.sum() <= found.expected
    assert not (found.q_value < 0.05).any()


def test_results_of_one_kind_are_matched_in_their_order_where_nothing_else_tells_them_apart() -> (
    None
):
    found = compare_reports(
        [measured([0.1]), measured([0.9])], [measured([0.1]), measured([0.5]), measured([0.7])]
    )
    assert found.values[:, [0, 3]].tolist() == [[0.9, 0.5]]
    assert found.only_b == ("Measured of a, x",)


def test_other_weights_images_and_settings_are_told() -> None:
    a = SavedResults(
        (measured([0.1]), measured([0.1], OTHER)), {"study": {"seed": 0, "permutations": 100}}
    )
    b = SavedResults(
        (
            replace(
                measured([0.1], replace(MODEL, fingerprint="d" * 64, weights="random")),
                images=replace(IMAGES, n=50),
            ),
            replace(measured([0.1], OTHER), images=replace(IMAGES, n=50)),
        ),
        {"study": {"seed": 0, "permutations": 20}},
    )
    found = compare_reports(a, b)
    assert found.notes == (
        "zoo:a has other weights, settings or preprocessing: aaaaaaaaaaaa (file a.safetensors) in "
        "A, dddddddddddd (random) in B",
        "demo/test: 100 images in A, 50 in B",
        "setting permutations: 100 in A, 20 in B",
    )
    assert not found.same
    same_number = [replace(measured([0.1]), images=replace(IMAGES, fingerprint="e" * 64))]
    assert compare_reports([measured([0.1])], same_number).notes == (
        "demo/test: other images or classes",
    )


def test_a_network_of_another_name_can_be_matched() -> None:
    twin, other_twin = (replace(m, name=f"{m.name}?untrained") for m in (MODEL, OTHER))
    a, b = (
        [measured([0.1]), measured([0.2], twin)],
        [measured([0.9], OTHER), measured([0.2], other_twin)],
    )
    nothing = compare_reports(a, b)
    assert nothing.matched == 0
    assert "have no result in common" in findings(nothing)[0]
    found = compare_reports(a, b, same={"zoo:a": "zoo:b"})
    assert (found.matched, found.moved.tolist()) == (2, [True])
    with pytest.raises(
        StoreError, match=r"there is no network 'zoo:x' in A; it has zoo:a, zoo:a\?untrained"
    ):
        compare_reports(a, b, same={"zoo:x": "zoo:b"})


def test_the_comparison_is_a_result_with_a_section(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = measured(rng.normal(size=40))
    found = compare_reports([a], [measured(a.score + 0.07 * rng.normal(size=40), norm=(2.0,) * 40)])
    (again,) = load_results(save_results([found], tmp_path / "r.json"))
    assert isinstance(again, ReportDiff)
    pd.testing.assert_frame_equal(again.to_frame(), found.to_frame())
    (section,) = make_sections([again])
    assert section.paragraphs[:-1] == findings(found)
    assert [type(c).__name__ for c in section.content] == ["Picture", "Table", "Table"]
    picture = section.content[0]
    assert isinstance(picture, Picture)
    left, right = picture.figure.axes
    assert len(left.get_yticks()) == 24
    points = right.lines[-1].get_xydata()
    # The k-th smallest of n p-values is (k - 1/2) / n by chance.
    np.testing.assert_allclose(2 * norm.sf(points[:, 0]), (np.arange(40) + 0.5) / 40)
    np.testing.assert_allclose(2 * norm.sf(points[:, 1]), np.sort(found.p_value))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot read results from .*: No such file"),
        ("{", "is not a results file: it is not valid JSON"),
        ('{"a": 1}', "is not a results file of this version"),
        (
            '{"format": "mixer-probe results 0"}',
            r"\(expected format 'mixer-probe results 2', found 'mixer-probe results 0'\)",
        ),
    ],
)
def test_what_is_no_results_file_is_told(
    tmp_path: Path, content: str | None, sentence: str
) -> None:
    save_results([measured([0.1])], tmp_path / "good.json")
    if content is not None:
        (tmp_path / "bad.json").write_text(content)
    with pytest.raises(StoreError, match=sentence):
        compare_reports(tmp_path / "good.json", tmp_path / "bad.json")
    with pytest.raises(
        StoreError, match=r"cannot read results from .*: there is no results\.json in this folder"
    ):
        compare_reports(tmp_path, tmp_path / "good.json")


# How many columns of each table have an interval; the other kinds have none.
WITH_INTERVALS = {
    "SimilarityMatrix": 1,
    "ConceptSharing": 3,
    "ConceptAtoms": 6,
    "ProbeResult": 2,
    "FewShotResult": 1,
    "ClassLens": 3,
    "Stitching": 3,
    "Lesions": 2,
    "UnitImportance": 3,
    "ControlTask": 3,
    "OnlineCode": 1,
    "RandomLabels": 1,
    "PositionProbe": 1,
    "AttentionDistance": 4,
    "AttentiveResult": 1,
    "FrequencyProfile": 4,
    "PatchPosition": 3,
    "TargetProbe": 1,
    "TokenComponents": 1,
    "ModelCost": 1,
    "AccuracyCost": 1,
    "PerturbationCurves": 2,
    "Faithfulness": 1,
    "RandomisationCheck": 4,
    "Agreement": 1,
    "DistortionAccuracy": 4,
    "ArchitectureComparison": 2,
    "EffectiveReceptiveField": 8,
    "ErrorConsistency": 1,
    "RepresentationShift": 2,
    "ResidualStream": 3,
    "SpatialMixing": 1,
}


def test_every_number_of_every_kind_is_compared() -> None:
    """No kind has rows that cannot be told apart, and each has the intervals that its author gave
    it."""
    results = [result for kind in all_views() if kind is not ReportDiff for result in made(kind)]
    found = compare_reports(results, results)
    assert found.same
    assert found.matched == len(results)
    finite = 0
    for result in results:
        frame = result.to_frame()
        columns, _ = interval_columns(
            [c for c in frame if c in _ONLY.get(type(result).__name__, frame)]
        )
        assert len(columns) == WITH_INTERVALS.get(type(result).__name__, 0), (
            type(result).__name__,
            columns,
        )
        for column, bounds in columns.items():
            finite += int(
                np.isfinite(frame[[column, *bounds]].to_numpy(dtype=float)).all(axis=1).sum()
            )
    assert found.compared == finite > 200
    # Every row is found by its own key wherever it stands; sentences of a narrative may be about
    # the same.
    for result in results:
        keys = [
            c for c in result.to_frame() if c in _KEYS - _ANSWERS.get(type(result).__name__, set())
        ]
        assert (
            type(result).__name__ == "Narrative" or not result.to_frame().duplicated(keys).any()
        ), (type(result).__name__, keys)
