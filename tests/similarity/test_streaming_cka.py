"""The one-pass accumulator against CKA of all images at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer_probe.core.errors import MeasureError
from mixer_probe.similarity import StreamingCKA, cka
from mixer_probe.similarity.streaming import Sample

Features = dict[str, np.ndarray]


@pytest.fixture(autouse=True, scope="module", params=[2048, 16], ids=["held", "moments"])
def kept(request) -> Iterator[int]:
    """Images that are held before moments are taken: all of these tests' images, or few of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixer_probe.similarity.streaming.SAMPLE", request.param)
        yield request.param


def two_networks(n: int = 60, mean: float = 5.0) -> tuple[Features, Features]:
    random = np.random.default_rng(0)
    base = random.normal(size=(n, 6))
    curved = np.tanh(base @ random.normal(size=(6, 11))) - mean
    a = {"a0": base + mean, "a1": curved, "wide": random.normal(size=(n, 80))}
    b = {
        "b0": base[:, :4] ** 2 * [1, 3, 10, 0.1],
        "b1": base @ random.normal(size=(6, 9)) + 30 * mean,
    }
    return a, b


def exact(a: Features, b: Features, estimator: str = "unbiased") -> np.ndarray:
    return np.array(
        [[cka(X, Y, estimator=estimator, method="gram") for Y in b.values()] for X in a.values()]
    )


def take(features: Features, rows: np.ndarray) -> Features:
    return {name: X[rows] for name, X in features.items()}


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("cuts", [[], [1], [59], [7, 8, 40], list(range(1, 60))])
def test_any_split_into_batches(cuts, estimator):
    a, b = two_networks()
    stream = StreamingCKA()
    for rows in np.split(np.arange(60), cuts):
        stream.update(take(a, rows), take(b, rows))
    np.testing.assert_allclose(
        stream.compute(estimator).values, exact(a, b, estimator), rtol=0, atol=1e-12
    )


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_any_tree_of_merges(seed):
    random = np.random.default_rng(seed)
    a, b = two_networks()
    streams = [StreamingCKA() for _ in range(4)]
    for rows in np.array_split(random.permutation(60), random.integers(1, 12)):
        streams[random.integers(4)].update(take(a, rows), take(b, rows))
    while len(streams) > 1:
        other = streams.pop(random.integers(len(streams)))
        streams[random.integers(len(streams))].merge(other)
    assert streams[0].n == 60
    np.testing.assert_allclose(streams[0].compute().values, exact(a, b), rtol=0, atol=1e-12)


def test_merging_shards_that_lie_far_apart():
    """Shards sorted by class have origins that differ by much more than their own spread."""
    a, b = two_networks()
    order = np.argsort(a["a0"][:, 0])
    far = {name: X + 50 * (np.arange(60) >= 30)[:, None] for name, X in take(a, order).items()}
    near = take(b, order)
    first, second = StreamingCKA(), StreamingCKA()
    first.update(take(far, np.arange(30)), take(near, np.arange(30)))
    second.update(take(far, np.arange(30, 60)), take(near, np.arange(30, 60)))
    first.merge(second)
    np.testing.assert_allclose(first.compute().values, exact(far, near), rtol=0, atol=1e-12)


def test_merge_leaves_the_other_as_it_is_and_goes_both_ways():
    a, b = two_networks()
    first, second = StreamingCKA(), StreamingCKA()
    first.update(take(a, np.arange(20)), take(b, np.arange(20)))
    second.update(take(a, np.arange(20, 60)), take(b, np.arange(20, 60)))
    before, kept = second.compute().values, copy.deepcopy(first)
    first.merge(second)
    np.testing.assert_array_equal(second.compute().values, before)
    second.merge(kept)
    np.testing.assert_allclose(second.compute().values, first.compute().values, rtol=0, atol=1e-13)


def test_mean_far_above_the_spread_in_float32():
    a, b = two_networks(n=300, mean=0)
    expected = exact(a, b)
    stream = StreamingCKA()
    for rows in np.array_split(np.arange(300), 7):
        far = [
            {k: (X[rows] + 100 * X.std()).astype("f4") for k, X in side.items()} for side in (a, b)
        ]
        stream.update(*far)
    np.testing.assert_allclose(stream.compute().values, expected, rtol=0, atol=1e-5)


def test_more_may_follow_a_result():
    a, b = two_networks()
    stream = StreamingCKA()
    stream.update(take(a, np.arange(30)), take(b, np.arange(30)))
    stream.compute()
    stream.update(take(a, np.arange(30, 60)), take(b, np.arange(30, 60)))
    np.testing.assert_allclose(stream.compute().values, exact(a, b), rtol=0, atol=1e-12)


def test_what_the_result_carries(kept):
    a, b = two_networks()
    stream = StreamingCKA()
    stream.update({name: torch.from_numpy(X) for name, X in a.items()}, dict(reversed(b.items())))
    stream.update(take(a, np.arange(3)), take(b, np.arange(3)))
    matrix = stream.compute()
    assert [layer.name for layer in matrix.layers_a] == ["a0", "a1", "wide"]
    assert [layer.name for layer in matrix.layers_b] == ["b1", "b0"]
    assert matrix.p_a == (6, 11, 80)
    assert (matrix.n, matrix.method, matrix.estimator, matrix.null.permutations) == (
        63,
        "gram" if kept > 63 else "moments",
        "unbiased",
        100,
    )
    assert len(matrix.to_frame()) == 6


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_bad_layers_stay_in_their_own_cells(estimator):
    a, b = two_networks()
    constant = np.tile([0.1, 0.7, 1e9 / 7], (60, 1))
    b |= {"constant": constant, "nan": np.full((60, 2), np.nan), "inf": b["b0"].copy()}
    b["inf"][50, 0] = np.inf
    stream, half = StreamingCKA(), StreamingCKA()
    stream.update(take(a, np.arange(30)), take(b, np.arange(30)))
    half.update(take(a, np.arange(30, 60)), take(b, np.arange(30, 60)))
    stream.merge(half)
    values = stream.compute(estimator).values
    assert np.isnan(values[:, 2:]).all()
    expected = exact(a, dict(list(b.items())[:2]), estimator)
    np.testing.assert_allclose(values[:, :2], expected, rtol=0, atol=1e-12)


def test_empty_batches_and_empty_accumulators_change_nothing():
    a, b = two_networks()
    stream = StreamingCKA()
    stream.update(take(a, np.arange(0)), take(b, np.arange(0)))
    stream.merge(StreamingCKA())
    assert stream.n == 0
    with pytest.raises(MeasureError, match="0 images are too few"):
        stream.compute()


def test_bad_batches_are_refused_and_change_nothing():
    a, b = two_networks()
    stream = StreamingCKA()
    stream.update(a, b)
    before = stream.compute().values
    with pytest.raises(MeasureError, match=r"different numbers of images: \[59, 60\]"):
        stream.update(a, {**b, "b0": b["b0"][1:]})
    with pytest.raises(MeasureError, match="layer 'b1' has no channels here and 9 before"):
        stream.update(a, {"b0": b["b0"]})
    with pytest.raises(MeasureError, match="layer 'a0' has 2 channels here and 6 before"):
        stream.update({**a, "a0": a["a0"][:, :2]}, b)
    with pytest.raises(MeasureError, match="flatten"):
        stream.update({"a0": np.zeros((5, 2, 2))}, b)
    with pytest.raises(MeasureError, match="no layer"):
        stream.update({}, b)
    turned = StreamingCKA()
    turned.update(dict(reversed(a.items())), b)
    with pytest.raises(MeasureError, match="different order"):
        stream.merge(turned)
    np.testing.assert_array_equal(stream.compute().values, before)


@pytest.mark.gpu
def test_on_cuda():
    a, b = two_networks(n=200, mean=30)
    stream, host = StreamingCKA(), StreamingCKA()
    for rows in np.array_split(np.arange(200), 3):
        sides = [{k: torch.from_numpy(X[rows]).float() for k, X in side.items()} for side in (a, b)]
        host.update(*sides)
        stream.update(*[{k: X.cuda() for k, X in side.items()} for side in sides])
    np.testing.assert_allclose(stream.compute().values, host.compute().values, rtol=0, atol=1e-12)
    stream.merge(host)
    assert stream.n == 400
    X, Y = torch.from_numpy(a["wide"]).cuda(), torch.from_numpy(b["b1"]).cuda()
    for kernel in ("linear", "rbf"):
        assert cka(X, Y, kernel=kernel) == pytest.approx(
            cka(a["wide"], b["b1"], kernel=kernel), abs=1e-12
        )


def test_every_way_of_holding_and_merging_gives_the_same(kept):
    a, b = two_networks()
    parts = [
        StreamingCKA(keep=k, hold=hold)
        for k, hold in ((100, True), (0, True), (30, True), (100, False))
    ]
    for part, rows in zip(parts, np.array_split(np.arange(60), 4), strict=True):
        part.update(take(a, rows), take(b, rows))
    for i in range(4):
        whole = copy.deepcopy(parts[i])
        for part in parts[:i] + parts[i + 1 :]:
            whole.merge(part)
        assert whole.n == 60
        np.testing.assert_allclose(
            whole.compute(permutations=0, resamples=0).values, exact(a, b), rtol=0, atol=1e-12
        )


def test_features_of_a_wider_type_are_held_exactly():
    a, b = two_networks()
    stream = StreamingCKA()
    narrow = [{name: X[:30].astype(np.float32) for name, X in side.items()} for side in (a, b)]
    stream.update(*narrow)
    stream.update(take(a, np.arange(30, 60)), take(b, np.arange(30, 60)))
    mixed = [
        {name: np.concatenate([X, side[name][30:]]) for name, X in part.items()}
        for part, side in zip(narrow, (a, b))
    ]
    np.testing.assert_allclose(stream.compute().values, exact(*mixed), rtol=0, atol=1e-12)


def test_a_sample_of_a_long_stream_is_even():
    """Each of 400 images stays with probability 1 / 8, wherever it came and however the stream was
    cut."""
    counts = np.zeros(400)
    for seed in range(200):
        parts = [Sample(50, seed) for _ in range(2)]
        marks = torch.arange(400.0, dtype=torch.float64)[:, None] + 1000 * seed
        for start in range(0, 400, 25):
            batch = marks[start : start + 25]
            parts[start >= 150].add(batch, batch)
        parts[0].merge(parts[1])
        stayed = parts[0].layers(({"x": 1}, {"y": 1}))[0][0]
        assert len(stayed) == parts[0].n == 50
        kept_rows = parts[0]._rows[0][:50, 0] - 1000 * seed
        counts[kept_rows.long().numpy()] += 1
    # Binomial counts of mean 25 and standard deviation 4.7.
    assert counts.sum() == 200 * 50
    assert np.abs(counts - 25).max() < 5 * 4.7
    assert abs(counts[:150].mean() - 25) < 1.2
    assert abs(counts[350:].mean() - 25) < 2
