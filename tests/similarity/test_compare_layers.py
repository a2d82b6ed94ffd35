"""Matrices of layers against layers, and their nulls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mixer_probe.core.errors import MeasureError, UndefinedSimilarityWarning
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.similarity import cka, compare
from mixer_probe.similarity.allpairs import Settings
from mixer_probe.similarity.engine import choose
from mixer_probe.similarity.inputs import LayerFeatures
from mixer_probe.similarity.nulls import draw_pairings, upper_quantile
from mixer_probe.similarity.views import similarity_section
from tests.similarity.features import features

METHODS = ["moments", "gram"]


def layers(
    seed: int, widths: tuple[int, ...], n: int = 40, prefix: str = "blocks."
) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        f"{prefix}{i}": random.normal(size=(n, p)).astype(np.float32) + i
        for i, p in enumerate(widths)
    }


@pytest.fixture
def runs(make_reps):
    return make_reps(layers(0, (3, 8, 50)), "one"), make_reps(
        layers(1, (5, 60), prefix="layer"), "two"
    )


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize(
    ("method", "kernel"), [("moments", "linear"), ("gram", "linear"), ("gram", "rbf")]
)
def test_values_and_null_are_those_of_cka(runs, estimator, method, kernel):
    a, b = runs
    options = {"estimator": estimator, "kernel": kernel}
    matrix = compare(a, b, **options, method=method, permutations=25, seed=3)
    (pairings,) = draw_pairings(40, 25, 3)
    orders = pairings.partners().numpy()
    pairs = [[(X, Y) for Y in b.features.values()] for X in a.features.values()]
    expected = np.array(
        [[[cka(X, Y[o], **options) for X, Y in row] for row in pairs] for o in orders]
    )
    np.testing.assert_allclose(matrix.values, expected[0], rtol=0, atol=1e-13)
    close = {"rtol": 0, "atol": 1e-13}
    np.testing.assert_allclose(matrix.null.mean, expected[1:].mean(0), **close)
    np.testing.assert_allclose(matrix.null.quantile95, np.sort(expected[1:], axis=0)[24], **close)
    np.testing.assert_allclose(matrix.null.maximum, expected[1:].max((1, 2)), **close)


def test_blocks_of_layers_give_the_same(runs, monkeypatch):
    whole = {method: compare(*runs, method=method) for method in METHODS}
    monkeypatch.setattr("mixer_probe.similarity.allpairs.LARGE", 1)
    monkeypatch.setattr("mixer_probe.similarity.engine.LARGE", 8 * 70)
    monkeypatch.setattr("mixer_probe.similarity.engine.ROWS", 7)
    for method in METHODS:
        parts = compare(*runs, method=method)
        np.testing.assert_allclose(parts.values, whole[method].values, rtol=0, atol=1e-13)
        np.testing.assert_allclose(
            parts.null.quantile95, whole[method].null.quantile95, rtol=0, atol=1e-13
        )
        np.testing.assert_allclose(
            parts.interval.low, whole[method].interval.low, rtol=0, atol=1e-13
        )


def test_a_network_against_itself(make_reps):
    reps = make_reps(layers(2, (4, 30)))
    matrix = compare(reps, reps)
    np.testing.assert_allclose(np.diag(matrix.values), 1, rtol=0, atol=1e-13)
    np.testing.assert_allclose(matrix.values, matrix.values.T, rtol=0, atol=1e-13)
    assert matrix.null.quantile95.max() < 0.5
    assert (np.diag(matrix.values) > matrix.null.maximum95).all()


@pytest.mark.parametrize("method", METHODS)
def test_independent_layers_exceed_their_quantile_in_five_percent_of_cells(make_reps, method):
    widths = tuple(range(2, 26))
    a, b = make_reps(layers(3, widths)), make_reps(layers(4, widths))
    matrix = compare(a, b, permutations=99, method=method)
    above = (matrix.values > matrix.null.quantile95).mean()
    # 576 cells, of which those of one row or column are not independent.
    assert 0.02 < above < 0.09
    assert abs(matrix.null.mean).max() < 0.05
    assert matrix.values.max() <= np.sort(matrix.null.maximum)[-2]


def test_the_biased_null_shows_the_bias(make_reps):
    matrix = compare(make_reps(layers(5, (400,))), make_reps(layers(6, (400,))), estimator="biased")
    assert matrix.values[0, 0] > 0.85
    assert matrix.null.mean[0, 0] == pytest.approx(matrix.values[0, 0], abs=0.02)


def test_seed_decides_the_null_and_not_the_values(runs):
    first, again, other = (compare(*runs, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.null.maximum, again.null.maximum)
    np.testing.assert_allclose(first.values, other.values, rtol=0, atol=1e-14)
    assert (first.null.maximum != other.null.maximum).any()


def test_quantile_is_the_order_statistic_that_keeps_the_level():
    values = np.arange(1.0, 101)
    assert upper_quantile(values) == 96
    assert upper_quantile(values[:19]) == 19
    assert upper_quantile(np.arange(1.0, 100)) == 95


@pytest.mark.parametrize(("n", "permutations"), [(7, 0), (7, 3), (8, 7), (8, 30)])
def test_pairings(n, permutations):
    drawn = draw_pairings(n, permutations, seed=0)
    partners = np.concatenate([pairings.partners().numpy() for pairings in drawn])
    np.testing.assert_array_equal(partners[0], np.arange(n))
    np.testing.assert_array_equal(
        np.sort(partners, axis=1), np.tile(np.arange(n), (permutations + 1, 1))
    )
    assert (partners[1:] != np.arange(n)).all()
    assert len(drawn) == max(1, -(-permutations // (n - 1)))
    first = {tuple(row) for row in partners[:n]}
    assert len(first) == min(n, permutations + 1)


@pytest.mark.parametrize("n", [29, 30])
@pytest.mark.parametrize("method", METHODS)
def test_more_permutations_than_images(make_reps, n, method):
    a, b = make_reps(layers(16, (3, 40), n=n)), make_reps(layers(17, (5,), n=n))
    matrix = compare(a, b, permutations=70, method=method)
    orders = np.concatenate([pairings.partners().numpy() for pairings in draw_pairings(n, 70, 0)])
    expected = [[cka(X, b["blocks.0"][o]) for X in a.features.values()] for o in orders[1:]]
    np.testing.assert_allclose(
        matrix.null.mean[:, 0], np.mean(expected, axis=0), rtol=0, atol=1e-13
    )
    assert len(matrix.null.maximum) == 70


def test_what_the_result_carries(runs):
    a, b = runs
    matrix = compare(a, b, permutations=19)
    assert (matrix.layers_a, matrix.layers_b) == (a.layers, b.layers)
    assert (matrix.model_a, matrix.model_b, matrix.images) == (a.model, b.model, a.images)
    assert (matrix.n, matrix.p_a, matrix.p_b, matrix.null.permutations) == (
        40,
        (3, 8, 50),
        (5, 60),
        19,
    )
    assert (matrix.measure, matrix.estimator, matrix.kernel) == ("cka", "unbiased", "linear")
    assert (matrix.reduce, matrix.seed, matrix.bandwidth) == ("mean", 0, None)
    frame = matrix.to_frame()
    columns = (
        "layer_a depth_a layer_b depth_b measure value low high null_mean null_q95 above_null "
        "calibrated n p_a p_b estimator method"
    )
    assert " ".join(frame.columns) == columns
    row = frame[(frame.layer_a == "blocks.2") & (frame.layer_b == "layer0")].iloc[0]
    assert (row.value, row.null_q95) == (matrix.values[2, 0], matrix.null.quantile95[2, 0])
    assert (row.depth_a, row.depth_b, row.p_a, row.p_b, row.n) == (1, 0, 50, 5, 40)


def test_it_survives_storing(runs):
    matrix = compare(*runs, permutations=19)
    back = from_dict(to_dict(matrix))
    np.testing.assert_array_equal(back.values, matrix.values)
    np.testing.assert_array_equal(back.null.maximum, matrix.null.maximum)
    assert back.to_frame().equals(matrix.to_frame())


def test_without_permutations_there_is_no_null(runs):
    matrix = compare(*runs, permutations=0)
    assert matrix.null is None
    assert matrix.to_frame().null_q95.isna().all()


@pytest.mark.parametrize("method", METHODS)
def test_bad_layers_are_nan_in_their_own_cells_and_named(make_reps, method):
    good, other = layers(7, (4, 5)), layers(8, (3, 6), prefix="other.")
    bad = {
        "constant": np.full((40, 3), 0.1, np.float32),
        "nan": np.full((40, 2), np.nan, np.float32),
    }
    with pytest.warns(
        UndefinedSimilarityWarning, match=r"4 of 8 similarities .CKA. are NaN.*constant, nan"
    ):
        matrix = compare(make_reps({**good, **bad}), make_reps(other), method=method)
    assert np.isnan(matrix.values[2:]).all()
    assert np.isnan(matrix.null.quantile95[2:]).all()
    expected = compare(make_reps(good), make_reps(other), method=method)
    np.testing.assert_allclose(matrix.values[:2], expected.values, rtol=0, atol=1e-13)
    np.testing.assert_allclose(matrix.null.maximum, expected.null.maximum, rtol=0, atol=1e-13)


def test_nothing_but_bad_layers(make_reps):
    bad = make_reps({"constant": np.ones((40, 3), np.float32)})
    with pytest.warns(UndefinedSimilarityWarning, match="1 of 1"):
        matrix = compare(bad, make_reps(layers(9, (3,))))
    assert np.isnan(matrix.null.maximum95)


def test_other_images_are_refused(make_reps):
    a, b = make_reps(layers(10, (3,))), make_reps(layers(11, (3,)))
    b.ids = (*b.ids[:7], b.ids[8], b.ids[7], *b.ids[9:])
    with pytest.raises(
        MeasureError, match=r"2 of 40 images differ.* 7: 'image-7' against 'image-8'"
    ):
        compare(a, b)
    with pytest.raises(MeasureError, match="40 images against 30"):
        compare(a, make_reps(layers(12, (3,), n=30)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "cka_linear"}, "unknown measure 'cka_linear'.*cka"),
        ({"measure": ["cka", "ccaa"]}, "unknown measure 'ccaa'.*cca"),
        ({"estimator": "debiased"}, "known: unbiased, biased"),
        ({"permutations": 10}, "take 19 or more, or 0"),
        ({"resamples": 10}, "take 20 or more, or 0"),
        ({"without_top_pc": -1}, "0 or more, not -1"),
        ({"grid": 0}, "each 1 or more, not 0"),
        ({"kernel": "rbf", "method": "moments"}, "no moments form"),
        ({"kernel": "rbf", "method": "minibatch"}, "unbiased linear CKA only"),
        ({"estimator": "biased", "method": "minibatch"}, "unbiased linear CKA only"),
    ],
)
def test_bad_options(runs, options, message):
    with pytest.raises(MeasureError, match=message):
        compare(*runs, **options)


def test_bad_runs(make_reps):
    reps = make_reps(layers(13, (3,)))
    cut = make_reps(layers(13, (3,)))
    cut.features["blocks.0"] = cut.features["blocks.0"][:30]
    with pytest.raises(MeasureError, match=r"'blocks\.0' has 30 rows for 40 images"):
        compare(cut, reps)
    reps.layers = ()
    with pytest.raises(MeasureError, match="no layer"):
        compare(reps, reps)


def test_the_same_images_in_another_order_are_refused_by_their_ids(make_reps):
    a, b = make_reps(layers(10, (3,))), make_reps(layers(11, (3,)))
    b.ids = b.ids[::-1]
    with pytest.raises(
        MeasureError, match="the same images in a different order: 40 of 40 images differ"
    ):
        compare(a, b)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("measure", ["cka", "cca", "rsa"])
def test_too_few_images_are_nan_with_a_warning_and_no_error(make_reps, n, measure):
    with pytest.warns(
        UndefinedSimilarityWarning,
        match=rf"2 of 2 similarities .* {n} images are too few, it needs at least 4",
    ):
        matrix = compare(
            make_reps(layers(14, (3, 2), n=n)), make_reps(layers(15, (3,), n=n)), measure
        )
    assert np.isnan(matrix.values).all()
    assert (matrix.null, matrix.interval) == (None, None)


AUTO = {"method": "auto", "kernel": "linear", "estimator": "unbiased", "sampled": False}


@pytest.mark.parametrize(
    ("options", "n", "widths", "expected"),
    [
        ({}, 1000, (2048, 2048), "gram"),
        ({}, 1000, (8, 8, 8), "moments"),
        ({"sampled": True}, 1000, (8, 8, 8), "gram"),
        ({}, 50_000, (768,), "moments"),
        ({}, 1000, (150_528,), "gram"),
        ({}, 50_000, (150_528,), "minibatch"),
        ({"kernel": "rbf"}, 1000, (8,), "gram"),
        ({"method": "moments"}, 100, (768,), "moments"),
        ({"method": "gram"}, 1000, (8,), "gram"),
        ({"method": "minibatch"}, 1000, (8,), "minibatch"),
    ],
)
def test_the_form_that_fits_and_is_cheaper_is_chosen(make_reps, options, n, widths, expected):
    assert _chosen(make_reps, n, widths, **{**AUTO, **options}) == expected


@pytest.mark.parametrize(
    ("options", "n", "widths", "message"),
    [
        (
            {"kernel": "rbf"},
            50_000,
            (8,),
            r"Gram matrices of 50000 images with 8 features take 130.4 GiB.*at most 8757 images",
        ),
        ({"method": "gram"}, 8000, (150_528,), r"do not fit into 4 GiB: take at most 3566 images"),
        ({"method": "moments"}, 8000, (150_528,), "168.8 GiB.* 2 GiB: average positions"),
        (
            {"estimator": "biased"},
            50_000,
            (150_528,),
            "for 50000 images with 150528 features average the positions",
        ),
    ],
)
def test_what_fits_in_no_form_is_refused_with_what_would(make_reps, options, n, widths, message):
    with pytest.raises(MeasureError, match=message):
        _chosen(make_reps, n, widths, **{**AUTO, **options})


def _chosen(make_reps, n, widths, method, kernel, estimator, sampled):
    reps = make_reps({str(i): np.broadcast_to(np.float32(0), (n, p)) for i, p in enumerate(widths)})
    side = LayerFeatures(reps)
    return choose(method, Settings(estimator, kernel, 0.5), side, side, sampled)


def test_pairs_too_large_for_memory_are_refused_with_what_would_fit(make_reps):
    # 8 GiB for two layers of a sample of 2,048 images: three copies of n x p numbers and the
    # features themselves, 8 bytes each.
    reps = make_reps({"x": np.broadcast_to(np.float32(0), (62_500, 750_000))})
    with pytest.raises(MeasureError, match=r"91.55 GiB.* 8 GiB: take at most 178 images"):
        compare(reps, reps, "cca")


@pytest.mark.parametrize("measure", ["procrustes", "mutual_knn", "rsa", "cka_rbf"])
def test_what_grows_with_the_images_is_that_of_a_sample_of_many(make_reps, monkeypatch, measure):
    X, Y = features(0, n=150)
    rows = np.sort(np.random.default_rng(3).permutation(150)[:60])
    own = compare(*(make_reps({"x": Z[rows]}) for Z in (X, Y)), measure, seed=3)
    monkeypatch.setattr("mixer_probe.similarity.engine.SAMPLE", 60)
    whole = make_reps({"x": X}), make_reps({"x": Y}, "other")
    found = compare(*whole, measure, seed=3)
    assert (found.n, found.p_a, found.images.n) == (60, (7,), 150)
    assert found.values == own.values
    assert found.null == replace(own.null, method="random pairings of 60 of 150 images")
    assert found.interval == own.interval
    caption = similarity_section([compare(*whole), found])[-1].content[0].shows
    assert f"n = 150; n = 60 for {found.label}, a random sample of the 150 images" in caption
    assert compare(*whole, kernel="rbf", method="gram").n == 150


@pytest.mark.parametrize("mean", [0, 10, 1000])
@pytest.mark.parametrize(("n", "p"), [(40, 2100), (300, 6000)])
def test_wide_float32_features_are_right_to_a_billionth(make_reps, n, p, mean):
    """Their products are taken in float32 by blocks of columns; with mean 1000 the features
    themselves keep 14 bits."""
    random = np.random.default_rng(n)
    common = random.normal(size=(n, 20))
    sides = [
        {
            f"{side}{i}": (
                common @ random.normal(size=(20, p)) / 3 + random.normal(size=(n, p)) + mean
            ).astype(np.float32)
        }
        for i, side in enumerate("ab")
    ]
    matrix = compare(*(make_reps(side) for side in sides))
    exact = cka(*(next(iter(side.values())).astype(np.float64) for side in sides))
    assert matrix.method == "gram"
    assert matrix.values[0, 0] == pytest.approx(exact, abs=2e-8)
    assert matrix.values[0, 0] > matrix.null.maximum95


def test_wide_float32_features_that_are_constant_or_not_finite_are_nan(make_reps):
    random = np.random.default_rng(0)
    good = random.normal(size=(300, 2100)).astype(np.float32)
    bad, one = (
        good.copy(),
        np.full((300, 2100), 0.1, np.float32) + np.arange(2100, dtype=np.float32),
    )
    bad[7, 5] = np.inf
    with pytest.warns(UndefinedSimilarityWarning, match="2 of 3 similarities .* in inf, constant"):
        matrix = compare(
            make_reps({"good": good, "inf": bad, "constant": one}), make_reps({"good": good})
        )
    np.testing.assert_array_equal(np.isnan(matrix.values[:, 0]), [False, True, True])
    assert matrix.values[0, 0] == pytest.approx(1, abs=1e-12)
