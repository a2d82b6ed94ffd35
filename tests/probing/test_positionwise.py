"""Probes by position and attentive probes: a class planted in one quadrant is found there and
nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.base import clone

import mixer_probe as mp
from mixer_probe.core.errors import ImagesError, MeasureError, NonFiniteWarning
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.models.layer import Layer
from mixer_probe.probing import AttentiveProbe, attentive_probe, position_probe, ridge_path
from tests.probing.conftest import FakeRepresentations

SIDE, CHANNELS = 4, 6
# The upper right quadrant.
QUADRANT = np.zeros((SIDE, SIDE), dtype=bool)
QUADRANT[:2, 2:] = True


class Positions(FakeRepresentations):
    """Representations [image, position, channel] with one prefix token, by layer."""

    def __init__(self, features, labels, split, *, prefix=None, grids=None):
        super().__init__(features, labels, split)
        self.reduce = "none"
        self.prefixes = prefix or {}
        grids = grids or {}
        self.layers = tuple(
            Layer(
                name,
                "block",
                i / 2,
                grids.get(name, (SIDE, SIDE)),
                X.shape[-1],
                int(name in self.prefixes),
                X.shape[1],
                order=i,
            )
            if X.ndim == 3
            else Layer(name, "head", 1.0, None, X.shape[-1], 0, 0, order=i)
            for i, (name, X) in enumerate(features.items())
        )

    def prefix(self, name):
        return self.prefixes[name]


def planted(n: int, seed: int, distance: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Two classes, `distance` apart in the first channel of the quadrant; the last channel marks
    it."""
    random = np.random.default_rng(seed)
    y = np.arange(n) % 2
    X = random.normal(size=(n, SIDE * SIDE, CHANNELS)).astype(np.float32)
    X[:, QUADRANT.ravel(), 0] += (distance * (y - 0.5))[:, None].astype(np.float32)
    X[:, QUADRANT.ravel(), -1] += 4
    return X, y


def runs(n_train: int = 1000, n_test: int = 1000) -> tuple[Positions, Positions]:
    sides = []
    for n, split, seed in ((n_train, "train", 0), (n_test, "test", 1)):
        X, y = planted(n, seed)
        token = (
            np.random.default_rng(seed + 5).normal(size=(n, 1, CHANNELS)) + 10 * y[:, None, None]
        )
        sides.append(Positions({"block": X, "head": X[:, 0]}, y, split, prefix={"block": token}))
    return sides[0], sides[1]


# -- one probe a position --------------------------------------------------------------------------


def test_the_map_is_the_bayes_accuracy_in_the_quadrant_and_chance_elsewhere():
    result = position_probe(*runs())
    assert [layer.name for layer in result.layers] == ["block"]
    accuracy, low, high = result.accuracy[0], result.low[0], result.high[0]
    assert accuracy.shape == (SIDE, SIDE)
    # 1,000 images: a standard error of 1.2 and of 1.6 points.
    np.testing.assert_allclose(accuracy[QUADRANT], norm.cdf(1), atol=0.045)
    np.testing.assert_allclose(accuracy[~QUADRANT], 0.5, atol=0.06)
    inside = (low <= np.where(QUADRANT, norm.cdf(1), 0.5)) & (
        high >= np.where(QUADRANT, norm.cdf(1), 0.5)
    )
    assert inside.mean() > 0.8
    assert low[QUADRANT].min() > 0.7
    # Two standard deviations in each of four places are one of twice as many in their mean.
    assert result.pooled[0] == pytest.approx(norm.cdf(1 * 4 / 16**0.5), abs=0.04)
    assert result.prefix[0].tolist() == [1]
    assert result.chance == 0.5


def test_every_position_is_the_ridge_probe_of_its_features_with_a_shared_penalty():
    train, test = runs(200, 100)
    l2 = [1.0, 100.0, 1e5]
    result = position_probe(train, test, l2)
    paths = [ridge_path(train["block"][:, s], train.labels, l2) for s in range(SIDE * SIDE)]
    total = np.array([path.left_out_accuracy() for path in paths]).sum(axis=0)
    chosen = max(i for i in range(3) if np.isclose(total[i], total.max()))
    assert result.l2.tolist() == [l2[chosen]]
    for s, path in enumerate(paths):
        row, column = divmod(s, SIDE)
        assert (
            result.accuracy[0][row, column]
            == (path.predict(test["block"][:, s])[chosen] == test.labels).mean()
        )
        assert result.left_out[0][row, column] == path.left_out_accuracy()[chosen]


def test_positions_in_a_table_and_in_a_file():
    result = position_probe(*runs(100, 60))
    frame = result.to_frame()
    assert frame.place.value_counts().to_dict() == {"position": 16, "prefix": 1, "pooled": 1}
    row = frame[(frame.row == 1) & (frame.column == 2)].iloc[0]
    assert (row.accuracy, row.low, row.high) == (
        result.accuracy[0][1, 2],
        result.low[0][1, 2],
        result.high[0][1, 2],
    )
    assert row["index"] == 6
    assert frame[frame.place == "pooled"].accuracy.tolist() == result.pooled.tolist()
    assert from_dict(to_dict(result)).to_frame().equals(frame)


def test_layers_of_other_grids_and_of_none():
    sides = []
    for n, split in ((60, "train"), (40, "test")):
        X, y = planted(n, n)
        features = {"fine": X, "coarse": X[:, :6], "units": X[:, :5]}
        sides.append(Positions(features, y, split, grids={"coarse": (2, 3), "units": None}))
    result = position_probe(*sides)
    assert [part.shape for part in result.accuracy] == [(4, 4), (2, 3), (1, 5)]
    assert [len(part) for part in result.prefix] == [0, 0, 0]
    assert len(result.to_frame()) == 16 + 6 + 5 + 3


def test_positions_that_are_not_finite_have_no_number():
    train, test = runs(60, 40)
    train.features["block"][3, 5, 2] = np.nan
    test.features["block"][1, 7, 2] = np.inf
    with pytest.warns(NonFiniteWarning, match="layer 'block'.* 2 of its features"):
        result = position_probe(train, test)
    assert np.flatnonzero(np.isnan(result.accuracy[0])).tolist() == [5, 7]
    assert np.isnan(result.pooled[0])
    assert np.isfinite(result.l2[0])
    with pytest.warns(NonFiniteWarning):
        assert np.isnan(attentive_probe(train, test).accuracy[0])


def test_constant_positions_are_at_chance():
    train, test = runs(60, 40)
    for run in (train, test):
        run.features["block"][:, 0] = 3.3
    assert position_probe(train, test).accuracy[0][0, 0] == 0.5


@pytest.mark.parametrize("probe", [position_probe, attentive_probe])
def test_refusals_are_one_sentence(make_reps, probe):
    train, test = runs(20, 10)
    flat = [
        make_reps({"a": run["head"]}, run.labels, split)
        for run, split in ((train, "train"), (test, "test"))
    ]
    with pytest.raises(MeasureError, match="reduce='mean': take reduce='none'"):
        probe(*flat)
    heads = [
        Positions({"head": run["head"]}, run.labels, split)
        for run, split in ((train, "train"), (test, "test"))
    ]
    with pytest.raises(MeasureError, match="none of the layers has positions: head"):
        probe(*heads)
    with pytest.raises(ImagesError, match="also in train"):
        probe(train, train)
    train.labels = np.zeros(20, dtype=int)
    with pytest.raises(ImagesError, match=r"all the train images .* are of class 'cat'"):
        probe(train, test)


# -- attention -------------------------------------------------------------------------------------


# Without the bias only the noisy mark of the quadrant says where to look.
@pytest.mark.parametrize(
    ("settings", "fraction"), [({}, 0.8), ({"position_bias": False, "lr": 0.05}, 0.6)], ids=str
)
def test_attention_goes_to_where_the_class_is(settings, fraction):
    result = attentive_probe(*runs(), **settings)
    attention = result.attention[0]
    assert attention.sum() == pytest.approx(1)
    assert attention[QUADRANT].sum() > fraction
    assert attention[QUADRANT].min() > 3 * attention[~QUADRANT].max()
    # The mean over the quadrant alone has half the deviation of one place.
    assert result.accuracy[0] == pytest.approx(norm.cdf(2), abs=0.03)
    assert result.low[0] < result.accuracy[0] < result.high[0]
    frame = result.to_frame()
    assert frame.focus[0] == attention.max() * 16
    assert from_dict(to_dict(result)).to_frame().equals(frame)


def test_without_anything_to_find_the_attentive_probe_is_at_chance():
    sides = []
    for n, split, seed in ((400, "train", 0), (1000, "test", 1)):
        X = np.random.default_rng(seed).normal(size=(n, 16, CHANNELS))
        sides.append(Positions({"block": X}, np.arange(n) % 2, split))
    result = attentive_probe(*sides)
    assert result.accuracy[0] == pytest.approx(0.5, abs=0.06)


def test_a_seed_repeats_itself_and_leaves_other_random_numbers_alone():
    X, y = planted(100, 0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (AttentiveProbe(seed=3, epochs=3).fit(X, y) for _ in range(2))
    np.testing.assert_array_equal(torch.rand(3), expected)
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))
    assert not np.array_equal(AttentiveProbe(seed=4, epochs=3).fit(X, y).query_, first.query_)
    np.testing.assert_allclose(first.predict_proba(X).sum(axis=1), 1)
    np.testing.assert_allclose(first.attention(X).sum(axis=1), 1, rtol=1e-5)


def test_an_attentive_probe_is_the_formula():
    X, y = planted(50, 0)
    probe = AttentiveProbe(epochs=2).fit(X, np.array(["cat", "dog"])[y])
    Z = (X - X.mean(axis=(0, 1))) / X.std(axis=(0, 1))
    a = np.exp(Z @ probe.query_ / CHANNELS**0.5 + probe.bias_)
    a /= a.sum(axis=1, keepdims=True)
    logits = np.einsum("ns,nsp->np", a, Z) @ probe.coef_.T + probe.intercept_
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probe.predict_proba(X), p, atol=1e-5)
    np.testing.assert_allclose(probe.attention(X), a, atol=1e-5)
    assert set(probe.predict(X)) <= {"cat", "dog"}


def test_bad_input_of_the_attentive_estimator():
    X, y = planted(20, 0)
    with pytest.raises(MeasureError, match=r"\[image, position, channel\] is needed"):
        AttentiveProbe().fit(X[:, 0], y)
    with pytest.raises(MeasureError, match="one class: 1"):
        AttentiveProbe().fit(X, np.ones(20, dtype=int))
    with pytest.raises(MeasureError, match="20 images and 19 labels"):
        AttentiveProbe().fit(X, y[:19])
    probe = clone(AttentiveProbe(epochs=1)).fit(X, y)
    with pytest.raises(MeasureError, match="8 positions of 6 channels"):
        probe.predict(X[:, :8])
    X[0, 0, 0] = np.nan
    with pytest.raises(MeasureError, match="1 of the features are NaN"):
        AttentiveProbe().fit(X, y)


def test_a_network_of_the_zoo():
    model = mp.load_model("zoo:vit-s0")
    sides = [
        mp.extract(model, mp.load_images("demo", split=s, limit=80), ["blocks.7"], reduce="none")
        for s in ("train", "test")
    ]
    result = position_probe(*sides)
    layer = result.layers[0]
    assert result.accuracy[0].shape == layer.grid
    assert len(result.prefix[0]) == layer.prefix_tokens
    assert result.pooled[0] > 2 * result.chance
    assert attentive_probe(*sides, epochs=2).attention[0].sum() == pytest.approx(1)
