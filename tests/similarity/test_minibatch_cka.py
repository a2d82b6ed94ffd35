"""Sums over minibatches: one batch is the Gram form, many estimate the same, sorted ones would
not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mixer_probe as mp
from mixer_probe.core.errors import MeasureError, OutOfMemoryWarning
from mixer_probe.similarity import MinibatchCKA, StreamingCKA, cka, compare, hsic
from tests.tiny import tiny_models


def features(seed: int, n: int, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, p)) * random.uniform(0.2, 2, size=p) + 5
    return X, np.tanh(X @ random.normal(size=(p, q)) / p) + 0.3 * random.normal(size=(n, q))


def test_gram_moments_and_one_minibatch_agree(make_reps):
    X, Y = features(0, 90, 12, 150)
    runs = make_reps({"x": X}), make_reps({"y": Y, "z": X[:, :5]})
    found = [
        compare(*runs, method=method, permutations=0, resamples=0).values
        for method in ("gram", "moments", "minibatch")
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[2], found[0], rtol=0, atol=1e-12)
    stream, batch = StreamingCKA(), MinibatchCKA()
    for accumulator in (stream, batch):
        accumulator.update({"x": X}, {"y": Y, "z": X[:, :5]})
        np.testing.assert_allclose(accumulator.compute().values, found[0], rtol=0, atol=1e-12)


def test_it_is_the_ratio_of_sums_and_no_mean_of_ratios():
    X, Y = features(1, 50, 4, 6)
    parts = [slice(0, 20), slice(20, 30), slice(30, 50)]
    accumulator = MinibatchCKA()
    sums = np.zeros(3)
    for part in parts:
        x, y = X[part], Y[part]
        accumulator.update({"x": x}, {"y": y})
        sums += len(x) * np.array(
            [hsic(K, L) for K, L in ((x @ x.T, y @ y.T), (x @ x.T, x @ x.T), (y @ y.T, y @ y.T))]
        )
    value = accumulator.compute().values[0, 0]
    assert value == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), abs=1e-11)
    assert abs(value - np.mean([cka(X[part], Y[part]) for part in parts])) > 1e-4


def test_batches_estimate_what_all_images_give():
    X, Y = features(2, 6000, 10, 20)
    accumulator = MinibatchCKA()
    for start in range(0, 6000, 60):
        accumulator.update({"x": X[start : start + 60]}, {"y": Y[start : start + 60]})
    matrix = accumulator.compute()
    truth = cka(X, Y)
    assert matrix.values[0, 0] == pytest.approx(truth, abs=0.01)
    assert matrix.interval.low[0, 0] < truth < matrix.interval.high[0, 0]
    assert matrix.interval.high[0, 0] - matrix.interval.low[0, 0] < 0.05
    assert matrix.interval.method == "jackknife over the 100 batches"


def test_parts_merge_to_the_whole():
    X, Y = features(3, 120, 5, 7)
    whole, first, second = MinibatchCKA(), MinibatchCKA(), MinibatchCKA()
    for start in range(0, 120, 20):
        batch = {"x": X[start : start + 20]}, {"y": Y[start : start + 20]}
        whole.update(*batch)
        (first if start < 60 else second).update(*batch)
    first.merge(second)
    first.merge(MinibatchCKA())
    np.testing.assert_allclose(first.compute().values, whole.compute().values, rtol=0, atol=1e-13)
    assert first.n == whole.n == 120


def test_independent_noise_is_not_above_its_null():
    random = np.random.default_rng(4)
    accumulator = MinibatchCKA(permutations=60)
    for _ in range(30):
        a = {f"a{i}": random.normal(size=(16, 40)) for i in range(8)}
        accumulator.update(a, {f"b{i}": random.normal(size=(16, 25)) for i in range(8)})
    matrix = accumulator.compute()
    assert matrix.above_null.mean() < 0.2
    # Of every batch the variance of the null is exactly 2 / (n (n - 3)), and 30 batches divide it
    # by 30.
    np.testing.assert_allclose(matrix.null.mean, 0, atol=5 * (2 / (16 * 13) / 30) ** 0.5 / 60**0.5)
    assert np.median(matrix.null.quantile95) == pytest.approx(
        1.645 * (2 / (16 * 13) / 30) ** 0.5, rel=0.15
    )
    assert matrix.values.max() < matrix.null.maximum95 * 1.3


def test_small_batches_are_left_out_and_counted():
    X, Y = features(5, 23, 4, 4)
    accumulator = MinibatchCKA()
    accumulator.update({"x": X[:20]}, {"y": Y[:20]})
    accumulator.update({"x": X[20:]}, {"y": Y[20:]})
    assert (accumulator.n, accumulator.left_out) == (20, 3)
    assert accumulator.compute().values[0, 0] == pytest.approx(cka(X[:20], Y[:20]), abs=1e-12)
    with pytest.raises(MeasureError, match="no batch of 4 images or more"):
        MinibatchCKA().compute()


def test_images_left_out_by_a_part_are_counted_after_a_merge():
    X, Y = features(5, 23, 4, 4)
    whole, part = MinibatchCKA(), MinibatchCKA()
    whole.update({"x": X[:20]}, {"y": Y[:20]})
    part.update({"x": X[20:]}, {"y": Y[20:]})
    whole.merge(part)
    assert (whole.n, whole.left_out) == (20, 3)


def test_other_layers_are_refused():
    X, Y = features(6, 20, 4, 4)
    accumulator = MinibatchCKA()
    accumulator.update({"x": X}, {"y": Y})
    with pytest.raises(MeasureError, match="layers of all batches must be the same"):
        accumulator.update({"x": X[:, :3]}, {"y": Y})
    with pytest.raises(MeasureError, match="different numbers of images"):
        accumulator.update({"x": X[:10]}, {"y": Y})
    other = MinibatchCKA()
    other.update({"y": X}, {"y": Y})
    with pytest.raises(MeasureError, match="different layers or permutations"):
        accumulator.merge(other)


def test_a_layer_that_is_constant_everywhere_is_nan_and_one_with_nan_only_itself():
    X, Y = features(7, 40, 4, 4)
    bad = np.where(np.arange(40)[:, None] == 30, np.nan, X)
    accumulator = MinibatchCKA()
    for part in (slice(0, 20), slice(20, 40)):
        accumulator.update(
            {"x": X[part], "nan": bad[part], "one": np.ones((20, 2))}, {"y": Y[part]}
        )
    values = accumulator.compute().values[:, 0]
    np.testing.assert_array_equal(np.isnan(values), [False, True, True])


@pytest.mark.parametrize("grid", [None, 2])
def test_models_position_by_position(grid):
    mixer, vit, _ = tiny_models()
    images = mp.load_images("demo", limit=48)
    one_batch = mp.compare_models(mixer, vit, images, positions="flatten", grid=grid, batch_size=48)
    stored = mp.compare(
        mp.extract(mixer, images, reduce="none"), mp.extract(vit, images, reduce="none"), grid=grid
    )
    np.testing.assert_allclose(one_batch.values, stored.values, rtol=0, atol=1e-5)
    assert (one_batch.method, one_batch.reduce, one_batch.grid) == (
        "minibatch",
        "flatten",
        grid and (grid, grid),
    )
    assert one_batch.p_a == stored.p_a
    assert one_batch.images == images.record
    assert one_batch.null.method == "random pairings within each batch"


def test_images_sorted_by_class_are_shuffled_into_batches():
    mixer, vit, _ = tiny_models()
    images = mp.load_images("demo", limit=200)
    order = np.argsort(images.labels, kind="stable")
    found = [
        mp.compare_models(mixer, vit, i, method="minibatch", batch_size=20)
        for i in (images, images.subset(order))
    ]
    exact = mp.compare_models(mixer, vit, images)
    for matrix in found:
        assert np.abs(matrix.values - exact.values).max() < 0.1
    assert (
        mp.compare_models(mixer, vit, torch.rand(20, *mixer.input.size), method="minibatch").n == 20
    )


def test_what_streaming_cannot_do_is_said():
    mixer, vit, _ = tiny_models()
    images = mp.load_images("demo", limit=20)
    for options, message in (
        ({"method": "gram"}, "extract both models and use compare"),
        ({"method": "moments", "positions": "flatten"}, "too wide for moments"),
        ({"grid": 2}, "grid is for positions='flatten'"),
        ({"positions": "flatten", "estimator": "biased"}, "unbiased only"),
        ({"positions": "all"}, "unknown positions 'all'"),
        ({"positions": "flatten", "grid": 50}, "too coarse for 50×50"),
    ):
        with pytest.raises(MeasureError, match=message):
            mp.compare_models(mixer, vit, images, **options)


def test_a_batch_that_memory_cuts_is_no_batch_of_the_estimator(monkeypatch):
    mixer, vit, _ = tiny_models()
    forward = vit.module.forward

    def scarce(batch):
        if len(batch) > 8:
            raise torch.OutOfMemoryError("simulated")
        return forward(batch)

    monkeypatch.setattr(vit.module, "forward", scarce)
    with pytest.warns(OutOfMemoryWarning), pytest.raises(MeasureError, match="set batch_size=8"):
        mp.compare_models(
            mixer, vit, mp.load_images("demo", limit=32), positions="flatten", batch_size=16
        )
