"""Linear probes of layers: closed forms, chance, intervals, and what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from mixer_probe.core.errors import ImagesError, MeasureError, NonFiniteWarning
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.probing import (
    FITTERS,
    LogisticProbe,
    ProbePath,
    balanced_interval,
    default_l2,
    linear_probe,
    logistic_path,
    ridge_path,
    wilson_interval,
)

COLUMNS = (
    "model trained layer kind depth l2 accuracy low high balanced_accuracy balanced_low "
    "balanced_high chance n_train n_test classes p method"
)


def labelled(
    n: int, seed: int, widths: tuple[int, ...] = (4, 30), classes: int = 3
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Layers that tell the classes better and better."""
    random = np.random.default_rng(seed)
    y = random.permutation(np.arange(n) % classes)
    centres = np.random.default_rng(99).normal(size=(classes, max(widths)))
    layers = {}
    for i, p in enumerate(widths):
        layers[f"blocks.{i}"] = ((i + 0.3) * centres[y, :p] + random.normal(size=(n, p))).astype(
            np.float32
        )
    return layers, y


@pytest.fixture
def runs(make_reps):
    return make_reps(*labelled(120, 0), "train"), make_reps(*labelled(90, 1), "test")


@pytest.fixture
def twin(make_reps):
    random = np.random.default_rng(2)
    sides = []
    for n, seed, split in ((120, 0, "train"), (90, 1, "test")):
        features, y = labelled(n, seed)
        noise = {name: random.normal(size=X.shape) for name, X in features.items()}
        sides.append(make_reps(noise, y, split, trained=False))
    return tuple(sides)


@pytest.mark.parametrize(
    ("distance", "expected"),
    [(1, 0.6914624612740131), (2, 0.8413447460685429), (4, 0.9772498680518208)],
)
def test_two_gaussians_reach_the_bayes_accuracy(make_reps, distance, expected):
    assert expected == pytest.approx(norm.cdf(distance / 2))
    random = np.random.default_rng(3)
    sides = []
    for n, split in ((4000, "train"), (4000, "test")):
        y = np.arange(n) % 2
        X = random.normal(size=(n, 5))
        X[:, 0] += distance * y
        sides.append(make_reps({"layer": X}, y, split))
    result = linear_probe(*sides)
    assert result.low[0] < expected < result.high[0]
    assert result.accuracy[0] == pytest.approx(expected, abs=0.015)


def test_random_labels_are_at_chance(make_reps):
    random = np.random.default_rng(4)
    sides = []
    for split in ("train", "test"):
        features = {"narrow": random.normal(size=(500, 10)), "wide": random.normal(size=(500, 700))}
        sides.append(make_reps(features, np.arange(500) % 10, split))
    result = linear_probe(*sides)
    assert result.chance == 0.1
    assert ((result.low < 0.1) & (result.high > 0.1)).all()


def test_interval_covers_at_its_level():
    random = np.random.default_rng(5)
    fractions = random.uniform(0, 1, size=5000)
    bounds = np.array([wilson_interval(int(k), 100) for k in random.binomial(100, fractions)])
    assert 0.94 < ((bounds[:, 0] <= fractions) & (fractions <= bounds[:, 1])).mean() < 0.96


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_of_the_literature(right, n, low, high):
    assert wilson_interval(right, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(n - right, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_interval_by_hand():
    # z^2 = 3.8414588; half = z sqrt(0.025 + z^2 / 400) / (1 + z^2 / 10)
    assert wilson_interval(5, 10) == pytest.approx((0.2365931, 0.7634069), abs=1e-7)
    with pytest.raises(MeasureError, match="3 of 2 is no proportion"):
        wilson_interval(3, 2)


def test_every_layer_is_the_best_penalty_of_scikit_learn(runs):
    train, test = runs
    result = linear_probe(train, test)
    for i, layer in enumerate(train.layers):
        scaler = StandardScaler().fit(train[layer.name].astype(float))
        Z, new = (scaler.transform(run[layer.name].astype(float)) for run in runs)
        for l2, accuracy in zip(result.path_l2, result.path_test[i], strict=True):
            predicted = RidgeClassifier(alpha=l2).fit(Z, train.labels).predict(new)
            assert accuracy == (predicted == test.labels).mean()
            if l2 == result.l2[i]:
                assert result.accuracy[i] == accuracy
                expected = balanced_accuracy_score(test.labels, predicted)
                assert result.balanced_accuracy[i] == pytest.approx(expected)


def test_the_penalty_is_chosen_on_the_training_images_alone(runs):
    train, test = runs
    result = linear_probe(train, test)
    for i, layer in enumerate(train.layers):
        path = ridge_path(train[layer.name], train.labels, result.path_l2)
        np.testing.assert_array_equal(result.path_left_out[i], path.leave_one_out_accuracy())
        assert result.l2[i] == path.best_l2()
    test.labels = (test.labels + 1) % 3
    np.testing.assert_array_equal(linear_probe(train, test).l2, result.l2)


def test_penalties_of_ones_own_in_any_order(runs):
    result = linear_probe(*runs, l2=[100.0, 1.0, 10.0])
    np.testing.assert_array_equal(result.path_l2, [1, 10, 100])
    with pytest.raises(MeasureError, match="positive"):
        linear_probe(*runs, l2=[0.0, 1.0])
    np.testing.assert_array_equal(default_l2(200), 2 * default_l2(100))


def test_tables_of_a_network_and_its_untrained_twin(runs, twin):
    result = linear_probe(*runs, untrained=twin)
    frame = result.to_frame()
    assert " ".join(frame.columns) == COLUMNS
    assert frame.trained.tolist() == [True, True, False, False]
    assert frame.layer.tolist() == ["blocks.0", "blocks.1"] * 2
    assert frame.depth.tolist() == [0, 1] * 2
    assert (frame[["n_train", "n_test", "classes"]] == [120, 90, 3]).all(axis=None)
    assert frame.p.tolist() == [4, 30] * 2
    assert ((frame.low <= frame.accuracy) & (frame.accuracy <= frame.high)).all()
    assert frame.accuracy[1] > frame.accuracy[0] > frame.accuracy[2:].max()
    path = result.path_frame()
    assert len(path) == 2 * 2 * 15
    chosen = path[path.chosen]
    assert chosen.test_accuracy.tolist() == frame.accuracy.tolist()
    assert chosen.l2.tolist() == frame.l2.tolist()
    one = result.layer_path(1)
    assert one.drop(columns=["n_test", "low", "high"]).equals(
        path[path.layer == "blocks.1"].reset_index(drop=True)
    )
    for row in one.itertuples():
        assert (row.low, row.high) == pytest.approx(
            wilson_interval(round(row.test_accuracy * 90), 90)
        )


def test_it_survives_storing(runs, twin):
    result = linear_probe(*runs, untrained=twin)
    back = from_dict(to_dict(result))
    assert back.to_frame().equals(result.to_frame())
    assert back.path_frame().equals(result.path_frame())


def test_unbalanced_classes(make_reps):
    random = np.random.default_rng(6)
    y = (np.arange(200) % 10 == 0).astype(int)
    noise = [{"noise": random.normal(size=(200, 3))} for _ in range(2)]
    result = linear_probe(make_reps(noise[0], y, "train"), make_reps(noise[1], y, "test"))
    assert result.chance == 0.9
    assert result.accuracy[0] == pytest.approx(0.9, abs=0.02)
    assert result.balanced_accuracy[0] == pytest.approx(0.5, abs=0.05)


def test_wide_duplicate_and_constant_columns_without_warnings(make_reps):
    sides = []
    for n, seed, split in ((60, 0, "train"), (90, 1, "test")):
        features, y = labelled(n, seed, widths=(200,))
        X = features["blocks.0"]
        sides.append(
            make_reps({"plain": X, "odd": np.hstack([X, X, np.full((n, 5), 0.1, "f4")])}, y, split)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = linear_probe(*sides)
    assert result.p == (200, 405)
    # Doubled columns move the penalty by a factor of 2, which is between two steps of the path.
    assert result.accuracy[1] == pytest.approx(result.accuracy[0], abs=0.05)


def test_a_class_that_the_test_images_lack(make_reps, runs):
    train, test = runs
    keep = test.labels != 2
    fewer = make_reps({k: X[keep] for k, X in test.features.items()}, test.labels[keep], "test")
    result = linear_probe(train, fewer)
    assert result.classes == 3
    assert np.isfinite(result.balanced_accuracy).all()


def test_layers_that_are_not_finite_are_nan_and_named(runs):
    train, test = runs
    test.features["blocks.0"][3, 1] = np.inf
    with pytest.warns(NonFiniteWarning, match=r"layer 'blocks.0': 1 of its features"):
        result = linear_probe(train, test)
    assert np.isnan(
        [result.l2[0], result.accuracy[0], result.low[0], result.balanced_accuracy[0]]
    ).all()
    assert np.isnan(result.path_test[0]).all()
    assert np.isfinite(result.accuracy[1])
    assert result.p == (4, 30)


def test_images_that_cannot_be_probed(make_reps, runs):
    train, test = runs
    other = make_reps(test.features, None, "test")
    with pytest.raises(ImagesError, match=r"test images \(noise\) have no labels"):
        linear_probe(train, other)
    other.labels, other.ids = test.labels, (*test.ids[:5], train.ids[7], *test.ids[6:])
    with pytest.raises(
        ImagesError, match="1 test images are also in train, the first is 'train-7'"
    ):
        linear_probe(train, other)
    train.labels = np.where(train.labels == 1, 0, train.labels)
    with pytest.raises(
        ImagesError, match=r"test images .* have 1 class that .* do not have: 'dog'"
    ):
        linear_probe(train, test)
    train.labels = np.full(120, 2)
    with pytest.raises(ImagesError, match=r"all the train images .* are of class 'frog'"):
        linear_probe(train, test)


def test_representations_that_cannot_be_probed(make_reps, runs, twin):
    train, test = runs
    with pytest.raises(MeasureError, match="mixer is trained"):
        linear_probe(train, test, untrained=runs)
    with pytest.raises(MeasureError, match="different train images"):
        linear_probe(
            train, test, untrained=(make_reps(*labelled(99, 0), "train", trained=False), twin[1])
        )
    with pytest.raises(MeasureError, match="two networks"):
        linear_probe(train, twin[1])
    with pytest.raises(MeasureError, match=r"layer 'blocks\.1' is only in one"):
        linear_probe(train, make_reps(*labelled(90, 1, widths=(4,)), "test"))
    positions = {name: np.zeros((120, 4, X.shape[1])) for name, X in train.features.items()}
    with pytest.raises(MeasureError, match=r"has shape \(120, 4, \d+\).*reduce='mean'"):
        linear_probe(make_reps(positions, train.labels, "train"), test)
    test.reduce = "prefix"
    with pytest.raises(MeasureError, match="reduce='mean' and test with 'prefix'"):
        linear_probe(train, test)


@pytest.mark.parametrize("method", FITTERS)
def test_every_method_gives_the_same_kind_of_result(runs, method):
    train, test = runs
    result = linear_probe(train, test, method=method)
    path = FITTERS[method](train["blocks.1"], train.labels)
    assert isinstance(path, ProbePath)
    assert (result.method, result.path_name) == (method, path.name)
    np.testing.assert_array_equal(result.path_values, path.values)
    best = np.flatnonzero(path.left_out_accuracy() == path.left_out_accuracy().max())[-1]
    np.testing.assert_allclose(result.path_left_out[1], path.left_out_accuracy())
    predicted = path.predict(test["blocks.1"])
    assert predicted.shape == (len(path.values), 90)
    np.testing.assert_array_equal(path.scores(test["blocks.1"])[best].argmax(-1), predicted[best])
    np.testing.assert_array_equal(result.predicted[1], predicted[best])
    np.testing.assert_allclose(result.path_test[1], (predicted == test.labels).mean(1))
    np.testing.assert_array_equal(result.right.mean(1), result.accuracy)
    # Layer 1 tells these classes well, whatever the probe.
    assert result.low[1] > 0.6 > result.high[0]
    frame, path_frame = result.to_frame(), result.path_frame()
    assert len(path_frame) == 2 * len(path.values)
    assert path_frame[path_frame.chosen].test_accuracy.tolist() == frame.accuracy.tolist()
    assert from_dict(to_dict(result)).to_frame().equals(frame)
    if path.name != "l2":
        with pytest.raises(MeasureError, match="has no l2"):
            _ = result.l2
        with pytest.raises(MeasureError, match="has no l2"):
            linear_probe(train, test, [1.0], method=method)


@pytest.mark.parametrize("method", ["logistic", "knn"])
def test_probabilities_are_kept_when_asked_for(runs, method):
    result = linear_probe(*runs, method=method, probabilities=True)
    assert result.probabilities.shape == (2, 90, 3)
    np.testing.assert_allclose(result.probabilities.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(result.probabilities.argmax(-1), result.predicted)
    assert linear_probe(*runs, method=method).probabilities is None


def test_what_was_predicted_is_kept(runs):
    result = linear_probe(*runs)
    assert result.class_names == ("cat", "dog", "frog")
    assert result.class_labels.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(result.labels, runs[1].labels)
    low, high = balanced_interval(result.predicted, result.labels)
    np.testing.assert_array_equal([result.balanced_low, result.balanced_high], [low, high])
    assert ((low <= result.balanced_accuracy) & (result.balanced_accuracy <= high)).all()


def test_methods_and_paths_that_do_not_exist(runs):
    with pytest.raises(MeasureError, match="no probe 'logistics'; closest: logistic"):
        linear_probe(*runs, method="logistics")
    with pytest.raises(
        MeasureError, match="a ridge probe has no probabilities; those with: logistic, knn"
    ):
        linear_probe(*runs, probabilities=True)
    with pytest.raises(MeasureError, match="give one of both"):
        linear_probe(*runs, [1.0], values=[1.0])


def test_labels_that_are_not_one_an_image(runs):
    train, test = runs
    train.labels = train.labels[:-1]
    with pytest.raises(ImagesError, match="119 labels for 120 images"):
        linear_probe(train, test)


def test_logistic_probes_are_the_paths_of_every_layer(make_reps):
    y = np.arange(200) % 3
    X = np.random.default_rng(0).normal(size=(200, 10)) + 2 * np.eye(3, 10)[y]
    train = make_reps({"a": X[:120], "b": X[:120, :4]}, y[:120], "train")
    test = make_reps({"a": X[120:], "b": X[120:, :4]}, y[120:], "test")
    result = linear_probe(train, test, method="logistic", probabilities=True)
    for i, layer in enumerate("ab"):
        path = logistic_path(train[layer], train.labels)
        assert result.l2[i] == path.best_l2()
        np.testing.assert_array_equal(
            result.predicted[i], LogisticProbe.of(path, path.best_l2()).predict(test[layer])
        )
    np.testing.assert_allclose(result.probabilities.sum(axis=-1), 1, rtol=1e-6)
