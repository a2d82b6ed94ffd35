"""Few-shot probes: the protocol of big_vision transcribed, draws that are nested, and what is
refused."""

from __future__ import annotations

import numpy as np
import pytest

from mixer_probe.core.errors import ImagesError, MeasureError, NonFiniteWarning
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.linear.stratification import few_of_each
from mixer_probe.probing import (
    RidgeProbe,
    big_vision_probe,
    combined_interval,
    few_shot_probe,
    images_interval,
    linear_probe,
    ridge_path,
)


def sides(make_reps, n: int = 150, classes: int = 3, **kwargs):
    centres = np.random.default_rng(99).normal(size=(classes, 40))
    found = []
    for seed, split in ((0, "train"), (1, "test")):
        random = np.random.default_rng(seed)
        y = random.permutation(np.arange(n) % classes)
        X = 3 + 2 * (centres[y] * 0.6 + random.normal(size=(n, 40)))
        found.append(make_reps({"narrow": X[:, :6].copy(), "wide": X}, y, split, **kwargs))
    return found


def transcribed(x: np.ndarray, y: np.ndarray, test: np.ndarray, l2: float = 2.0**10) -> np.ndarray:
    """SCIENCE's formula, line by line."""
    mean, std = x.mean(axis=0, keepdims=True), x.std(axis=0, keepdims=True) + 1e-5
    x, test = ((part - mean) / std for part in (x, test))
    x, test = (np.concatenate([part, np.full((len(part), 1), 100.0)], axis=1) for part in (x, test))
    targets = 2.0 * np.eye(y.max() + 1)[y] - 1.0
    n, d = x.shape
    if d > n:
        weights = x.T @ np.linalg.inv(x @ x.T + l2 * np.eye(n)) @ targets
    else:
        weights = np.linalg.inv(x.T @ x + l2 * np.eye(d)) @ x.T @ targets
    return test @ weights


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(("n", "p"), [(60, 8), (20, 50), (40, 39), (40, 40)])
def test_big_vision_is_its_formula(n, p, classes):
    random = np.random.default_rng(0)
    y = np.arange(n) % classes
    X, new = (5 + 3 * random.normal(size=(rows, p)) for rows in (n, 30))
    X[:, 2] = 1.0
    weights, bias = big_vision_probe(X, y)
    np.testing.assert_allclose(
        new @ weights.numpy() + bias.numpy(), transcribed(X, y, new), rtol=0, atol=1e-9
    )


def test_the_preset_is_the_formula_on_each_draw(make_reps):
    train, test = sides(make_reps)
    result = few_shot_probe(train, test)
    assert result.shots == (1, 5, 10, 25)
    assert result.accuracy.shape == (2, 4, 3)
    for i, name in enumerate(("narrow", "wide")):
        right = np.zeros((4, 3, 150), dtype=bool)
        for j, shots in enumerate(result.shots):
            for seed in range(3):
                rows = few_of_each(train.labels, shots, seed)
                scores = transcribed(train[name][rows], train.labels[rows], test[name])
                right[j, seed] = scores.argmax(1) == test.labels
        np.testing.assert_allclose(result.accuracy[i], right.mean(-1), rtol=0, atol=1e-12)
        np.testing.assert_allclose([result.low[i], result.high[i]], combined_interval(right))
        np.testing.assert_allclose(
            [result.images_low[i], result.images_high[i]], images_interval(right)
        )
    assert (result.chosen == 1024).all()
    # More shots, more accuracy; and the intervals hold their means.
    assert (np.diff(result.mean, axis=1) > 0).all()
    assert ((result.low <= result.mean) & (result.mean <= result.high)).all()
    assert (result.high - result.low >= result.images_high - result.images_low - 1e-12).all()


def test_draws_have_so_many_of_each_class_and_are_nested():
    y = np.random.default_rng(0).integers(4, size=300)
    for seed in range(3):
        few, more = few_of_each(y, 3, seed), few_of_each(y, 10, seed)
        assert np.bincount(y[few]).tolist() == [3] * 4
        assert set(few) < set(more)
    assert set(few_of_each(y, 3, 0)) != set(few_of_each(y, 3, 1))


def test_a_method_chooses_from_its_path_on_the_draw_alone(make_reps):
    train, test = sides(make_reps)
    values = [1.0, 30.0, 1000.0]
    result = few_shot_probe(train, test, (5, 20), 2, "ridge", values=values)
    for j, shots in enumerate((5, 20)):
        for seed in range(2):
            rows = few_of_each(train.labels, shots, seed)
            path = ridge_path(train["wide"][rows], train.labels[rows], values)
            assert result.chosen[1, j, seed] == path.best_l2()
            expected = RidgeProbe.of(path, path.best_l2()).score(test["wide"], test.labels)
            assert result.accuracy[1, j, seed] == pytest.approx(expected, abs=1e-12)


def test_shots_of_a_linear_probe(make_reps):
    train, test = sides(make_reps)
    twin = sides(make_reps, trained=False)
    result = linear_probe(train, test, untrained=tuple(twin), shots=("all", 1, 5), seeds=2)
    alone = few_shot_probe(train, test, (1, 5), 2, "ridge")
    np.testing.assert_array_equal(result.few_shot.accuracy, alone.accuracy)
    assert result.untrained.few_shot.shots == (1, 5)
    assert linear_probe(train, test).few_shot is None


def test_tables_and_storing(make_reps):
    train, test = sides(make_reps)
    twin = sides(make_reps, trained=False)
    result = few_shot_probe(train, test, (1, 5), 3, untrained=tuple(twin))
    frame, draws = result.to_frame(), result.draws_frame()
    assert len(frame) == 2 * 2 * 2
    assert len(draws) == 3 * len(frame)
    keys = ["trained", "layer", "shots"]
    means = draws.groupby(keys).accuracy.mean()
    np.testing.assert_allclose(frame.set_index(keys).accuracy.loc[means.index], means)
    back = from_dict(to_dict(result))
    assert back.to_frame().equals(frame)
    assert back.draws_frame().equals(draws)


def test_layers_that_are_not_finite_are_nan_and_named(make_reps):
    train, test = sides(make_reps)
    test.features["narrow"][0, 0] = np.nan
    with pytest.warns(NonFiniteWarning, match="layer 'narrow': 1 of its features"):
        result = few_shot_probe(train, test, (1, 5))
    assert np.isnan(result.mean[0]).all()
    assert np.isnan(result.low[0]).all()
    assert np.isfinite(result.mean[1]).all()


def test_images_that_are_too_few(make_reps):
    train, test = sides(make_reps, n=30)
    train.labels = np.array([0] * 15 + [1] * 12 + [2] * 3)
    with pytest.raises(
        ImagesError,
        match=(
            r"class 'frog' has 3 images in train, fewer than the "
            r"5 shots asked for: take at most 3"
        ),
    ):
        few_shot_probe(train, test, (1, 5))
    with pytest.raises(
        ImagesError, match="class 'frog' has 3 images in train, fewer than the 25 shots"
    ):
        linear_probe(train, test, shots=("all", 25))
    train.labels[27:29] = 0
    with pytest.raises(
        ImagesError, match=r"class 'frog' has 1 image in train, fewer than the 2 shots"
    ):
        few_shot_probe(train, test, (2,))
    train.labels[29] = 0
    with pytest.raises(ImagesError, match="do not have: 'frog'"):
        few_shot_probe(train, test, (1,))
    with pytest.raises(ImagesError, match="30 test images are also in train"):
        few_shot_probe(train, train, (1,))
    train.labels = None
    with pytest.raises(ImagesError, match=r"train images \(noise\) have no labels"):
        few_shot_probe(train, test, (1,))


def test_settings_that_make_no_sense(make_reps):
    train, test = sides(make_reps)
    with pytest.raises(
        MeasureError, match="no few-shot protocol 'big_visoin'; closest: big_vision"
    ):
        few_shot_probe(train, test, preset="big_visoin")
    for shots in ((), (0, 5), (2.5,), ("all", 5)):
        with pytest.raises(MeasureError, match="shots are positive numbers"):
            few_shot_probe(train, test, shots)
    with pytest.raises(MeasureError, match="seeds is a whole number, 1 or more"):
        few_shot_probe(train, test, seeds=0)
    with pytest.raises(MeasureError, match="big_vision protocol has one penalty"):
        few_shot_probe(train, test, values=[1.0])
