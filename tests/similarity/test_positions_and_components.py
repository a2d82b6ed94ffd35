"""Positions on a common grid, and similarity without leading principal components."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mixer_probe.core.errors import MeasureError, UndefinedSimilarityWarning
from mixer_probe.models.layer import Layer
from mixer_probe.similarity import cka, compare
from mixer_probe.similarity.inputs import to_grid


def with_positions(make_reps, seed: int, grid: int, channels: int, n: int = 30):
    random = np.random.default_rng(seed)
    reps = make_reps(
        {"blocks.0": random.normal(size=(n, grid * grid, channels)).astype(np.float32)},
        reduce="none",
    )
    reps.layers = (Layer("blocks.0", "block", 1.0, (grid, grid), channels, 0, grid * grid),)
    return reps


def test_positions_are_compared_flattened(make_reps):
    a, b = with_positions(make_reps, 0, 3, 4), with_positions(make_reps, 1, 2, 5)
    matrix = compare(a, b)
    expected = cka(a["blocks.0"].reshape(30, -1), b["blocks.0"].reshape(30, -1))
    assert matrix.values[0, 0] == pytest.approx(expected, abs=1e-12)
    assert (matrix.p_a, matrix.p_b, matrix.reduce) == ((36,), (20,), "none")


def test_a_common_grid_averages_the_positions_of_each_cell(make_reps):
    a, b = with_positions(make_reps, 0, 4, 3), with_positions(make_reps, 1, 6, 2)
    matrix = compare(a, b, grid=2)
    pooled = []
    for reps, cell, channels in ((a, 2, 3), (b, 3, 2)):
        X = reps["blocks.0"].astype(float).reshape(30, 2, cell, 2, cell, channels).mean((2, 4))
        pooled.append(X.reshape(30, -1))
    assert matrix.values[0, 0] == pytest.approx(cka(*pooled), abs=1e-6)
    assert (matrix.p_a, matrix.p_b, matrix.grid) == ((12,), (8,), (2, 2))


@pytest.mark.filterwarnings("error")
def test_representations_that_may_not_be_written_to_are_averaged_too(make_reps):
    reps, locked = (
        with_positions(make_reps, 0, 4, 3, n=1100),
        with_positions(make_reps, 0, 4, 3, n=1100),
    )
    locked["blocks.0"].flags.writeable = False
    values, expected = (
        compare(one, one, "cca", grid=2, permutations=0, resamples=0).values
        for one in (locked, reps)
    )
    np.testing.assert_array_equal(values, expected)


def test_layers_without_positions_stay_as_they_are(make_reps):
    a = with_positions(make_reps, 0, 4, 3)
    head = make_reps({"head": np.random.default_rng(2).normal(size=(30, 7))})
    assert compare(a, head, grid=2).p_b == (7,)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ((7, 7), r"grid of 3×3 positions, too coarse for 7×7"),
        (None, "form no grid of rows and columns"),
    ],
)
def test_grids_that_do_not_fit(grid, message):
    layer = Layer("blocks.0", "block", 1.0, grid and (3, 3), 2, 0, 9)
    with pytest.raises(MeasureError, match=message):
        to_grid(torch.zeros(2, 9, 2), layer, grid or (2, 2))


def dominated(seed: int, n: int, p: int) -> np.ndarray:
    """Noise, and one component that all representations share and that outweighs everything."""
    common = np.random.default_rng(99).normal(size=(n, 1))
    random = np.random.default_rng(seed)
    return random.normal(size=(n, p)) + 30 * common @ random.normal(size=(1, p)) + 100


@pytest.mark.parametrize(("p", "q"), [(5, 8), (90, 8), (90, 120)])
def test_without_the_dominant_component_nothing_is_left_in_common(make_reps, p, q):
    X, Y = dominated(0, 60, p), dominated(1, 60, q)
    assert cka(X, Y) > 0.9
    by_svd = []
    for Z in (X, Y):
        U, s, V = np.linalg.svd(Z - Z.mean(0), full_matrices=False)
        by_svd.append(U[:, 1:] * s[1:] @ V[1:])
    assert cka(X, Y, without_top_pc=1) == pytest.approx(cka(*by_svd), abs=1e-9)
    runs = make_reps({"x": X}), make_reps({"y": Y})
    for method in ("gram", "moments", "minibatch"):
        matrix = compare(*runs, without_top_pc=1, method=method)
        assert matrix.values[0, 0] == pytest.approx(cka(*by_svd), abs=1e-9)
        assert matrix.above_null[0, 0] == (matrix.values[0, 0] > matrix.null.quantile95[0, 0])
        assert matrix.label == "CKA (linear, unbiased, without 1 PC)"
    rsa = compare(*runs, "rsa_euclidean", without_top_pc=1)
    assert rsa.values[0, 0] == pytest.approx(
        compare(*(make_reps({"x": Z}) for Z in by_svd), "rsa_euclidean").values[0, 0]
    )


def test_taking_out_more_components_than_there_are_is_not_defined(make_reps):
    X, Y = dominated(0, 60, 3), dominated(1, 60, 5)
    assert np.isnan(cka(X, Y, without_top_pc=3))
    assert np.isfinite(cka(X, Y, without_top_pc=2))
    with pytest.warns(UndefinedSimilarityWarning, match="1 of 1"):
        matrix = compare(make_reps({"x": X}), make_reps({"y": Y}), without_top_pc=3)
    assert np.isnan(matrix.values).all()
    with pytest.raises(MeasureError, match="0 or more, not -2"):
        cka(X, Y, without_top_pc=-2)
