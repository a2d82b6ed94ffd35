"""Channel statistics against NumPy on activations that plain hooks caught in float64."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.resnet import BasicBlock, ResNet

import mixer_probe as mp
from mixer_probe.channels import ChannelMoments, ChannelStatistics, channel_moments
from mixer_probe.channels.clusters import clusters_of
from mixer_probe.channels.moments import measured
from mixer_probe.channels.quantiles import (
    ABSOLUTE_ERROR,
    BUCKETS,
    LEVELS,
    RELATIVE_ERROR,
    bucket_of,
    bucket_values,
)
from mixer_probe.core.errors import LayerError, NonFiniteWarning
from mixer_probe.core.result import ImagesRecord, ModelRecord, from_dict, to_dict
from tests.networks import as_model, module_output, noise, randomised

MODEL = ModelRecord("hand", "mixer", True, "made by hand", "0" * 64, 1)
IMAGES = ImagesRecord("noise", "", 0, 0, "1" * 64)


def layer_of(channels: int, positions: int = 1, name: str = "x") -> mp.Layer:
    return mp.Layer(name, "block", 1.0, (1, positions), channels, 0, positions)


def statistics_of(
    values: np.ndarray, batches: list[int] | None = None, parts: int = 1, **options: bool | None
) -> ChannelStatistics:
    """Of [image, position, channel] in batches, dealt out to `parts` accumulators that are merged
    from the last to the first."""
    layer = layer_of(values.shape[2], values.shape[1])
    accumulators = [ChannelMoments() for _ in range(parts)]
    bounds = np.cumsum([0, *(batches or [len(values)])])
    for k, (start, stop) in enumerate(pairwise(bounds)):
        found = measured(layer, torch.from_numpy(values[start:stop].copy()), None, **options)
        accumulators[k % parts].update({"x": found}, stop - start)
    while len(accumulators) > 1:
        last = accumulators.pop()
        accumulators[-1].merge(last)
    return accumulators[0].compute(MODEL, IMAGES, [layer])


def mixture(n: int = 60, positions: int = 7, seed: int = 0) -> np.ndarray:
    """Channels of many shapes in float32: far from zero, skewed, heavy-tailed, mostly zero,
    negative, tiny, huge."""
    rng = np.random.default_rng(seed)
    draw = rng.standard_normal((n, positions, 8))
    columns = [
        draw[..., 0],
        30 + draw[..., 1],
        np.exp(draw[..., 2]),
        rng.standard_t(2, (n, positions)),
        np.maximum(draw[..., 4] - 0.5, 0),
        -np.exp(draw[..., 5] / 2),
        1e-4 * draw[..., 6],
        5e3 * draw[..., 7] + draw[..., 0] * 5e3,
    ]
    return np.stack(columns, -1).astype(np.float32)


@pytest.fixture(scope="module")
def resnet() -> mp.Model:
    return as_model(
        randomised(ResNet(BasicBlock, [2, 2, 2, 2], channels=(8, 8, 16, 16), stem_width=8)), 64
    )


def caught(model: mp.Model, images: torch.Tensor, name: str) -> np.ndarray:
    """[value, channel] in float64, in batches of three: those of another size may differ in the
    last bit."""
    found = torch.cat([module_output(model, batch, name) for batch in images.split(3)])
    return found.double().permute(0, 2, 3, 1).flatten(0, 2).numpy()


def test_statistics_equal_numpy_at_any_batch_size(resnet: mp.Model) -> None:
    images = noise(7, 64)
    layers = ["bn1", "layer1.0", "layer4.1"]
    found = mp.channel_statistics(resnet, images, layers, batch_size=3)
    for i, name in enumerate(layers):
        values = caught(resnet, images, name)
        assert found.values[i] == len(values)
        np.testing.assert_allclose(found.mean[i], values.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.std[i], values.std(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(found.minimum[i], values.min(0))
        np.testing.assert_array_equal(found.maximum[i], values.max(0))
        np.testing.assert_allclose(found.fraction_zero[i], (values == 0).mean(0), atol=1e-12)
        np.testing.assert_allclose(found.fraction_nonpositive[i], (values <= 0).mean(0), atol=1e-12)
    assert found.n == 7
    # bn1 is seen before the in-place ReLU that follows it.
    assert found.minimum[0].max() < 0


def test_dead_channels_are_those_that_never_change(resnet: mp.Model) -> None:
    with torch.no_grad():
        resnet.module.layer1[0].bn2.weight[5] = 0
        resnet.module.layer1[0].bn2.bias[5] = 0.25
    found = mp.channel_statistics(resnet, noise(2, 64), ["layer1.0.bn2"])
    assert np.flatnonzero(found.dead[0]).tolist() == [5]
    assert found.mean[0][5] == pytest.approx(0.25)
    assert found.fraction_zero[0][5] == 0.0


def test_merging_equals_one_pass_even_far_from_zero(resnet: mp.Model) -> None:
    generator = torch.Generator().manual_seed(0)
    values = 1e4 + torch.randn(60, 9, 4, generator=generator, dtype=torch.float64)
    layer = mp.Layer("x", "block", 1.0, (3, 3), 4, 0, 9)
    parts = [ChannelMoments(), ChannelMoments()]
    for k, chunk in enumerate(values.split(17)):
        parts[k % 2].update({"x": channel_moments(layer, chunk, None)}, len(chunk))
    parts[0].merge(parts[1])
    record = resnet.record
    images = mp.load_images("demo", limit=10).record
    found = parts[0].compute(record, images, [layer])
    flat = values.reshape(-1, 4).numpy()
    np.testing.assert_allclose(found.mean[0], flat.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.std[0], flat.std(0), rtol=1e-9)
    assert found.n == 60


def test_prefix_tokens_do_not_count() -> None:
    model = mp.load_model("vit_tiny_patch16_224", pretrained=False, device="cpu")
    found = mp.channel_statistics(model, torch.randn(2, 3, 224, 224), "blocks.0")
    assert found.values == (2 * 196,)


def test_tables_and_storage(resnet: mp.Model) -> None:
    found = mp.channel_statistics(resnet, noise(2, 64), "blocks")
    assert len(found.to_frame()) == 2 * (8 + 8 + 16 + 16)
    assert found.summary()["layer"].tolist() == [layer.name for layer in found.layers]
    again = from_dict(to_dict(found))
    assert again.to_frame().equals(found.to_frame())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=8), st.integers(1, 4), st.integers(0, 3))
def test_all_statistics_equal_numpy_for_any_split_and_merge_order(
    batches: list[int], parts: int, seed: int
) -> None:
    values = mixture(sum(batches), seed=seed)
    found = statistics_of(values, batches, min(parts, len(batches)))
    flat = values.reshape(-1, 8).astype(np.float64)
    np.testing.assert_allclose(found.mean[0], flat.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.std[0], flat.std(0), rtol=1e-9)
    np.testing.assert_allclose(found.skew[0], scipy.stats.skew(flat), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.kurtosis[0], scipy.stats.kurtosis(flat), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found.minimum[0], flat.min(0))
    np.testing.assert_array_equal(found.maximum[0], flat.max(0))
    np.testing.assert_allclose(found.fraction_nonpositive[0], (flat <= 0).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.fraction_zero[0], (flat == 0).mean(0), rtol=1e-12)
    exact = np.quantile(flat, LEVELS, axis=0, method="inverted_cdf").T
    error = np.abs(found.quantiles[0] - exact)
    assert (error <= np.maximum(RELATIVE_ERROR * np.abs(exact), ABSOLUTE_ERROR) * (1 + 1e-6)).all()
    covariance = np.cov(flat.T, bias=True)
    ratio = np.trace(covariance) ** 2 / (covariance**2).sum()
    assert found.participation is not None
    assert found.participation[0] == pytest.approx(ratio, rel=1e-6)


def test_the_sketch_is_the_same_to_the_last_bit_in_any_order() -> None:
    values = mixture(90)
    first = statistics_of(values)
    for batches, parts in (([90], 1), ([30] * 3, 3), ([1] * 90, 2), ([7, 80, 3], 2)):
        again = statistics_of(values, batches, parts)
        np.testing.assert_array_equal(again.quantiles[0], first.quantiles[0])
        np.testing.assert_array_equal(again.fraction_massive[0], first.fraction_massive[0])


def test_buckets_keep_the_order_and_the_stated_error_over_the_whole_range() -> None:
    magnitudes = np.geomspace(2.0**-30, 2.0**15.99, 20_001)
    values = np.concatenate([-magnitudes[::-1], [0.0], magnitudes]).astype(np.float32)
    places = bucket_of(torch.from_numpy(values)).numpy()
    assert (np.diff(places) >= 0).all()
    assert places.min() >= 0
    assert places.max() < BUCKETS
    error = np.abs(bucket_values()[places] - values)
    assert (error <= np.maximum(RELATIVE_ERROR * np.abs(values), ABSOLUTE_ERROR)).all()
    assert bucket_of(torch.tensor([torch.inf, -torch.inf, -0.0])).tolist() == [
        BUCKETS - 1,
        0,
        BUCKETS // 2,
    ]


def test_far_from_zero_the_higher_moments_keep_their_digits() -> None:
    values = 1e6 + np.random.default_rng(0).gamma(2.0, size=(500, 4, 3))
    found = statistics_of(values, [100] * 5, 2)
    flat = values.reshape(-1, 3)
    np.testing.assert_allclose(found.skew[0], scipy.stats.skew(flat), rtol=1e-5)
    np.testing.assert_allclose(found.kurtosis[0], scipy.stats.kurtosis(flat), rtol=1e-5)


def test_merging_leaves_the_other_as_it_is_and_batches_of_another_device_type_add_up() -> None:
    values = mixture(40)
    layer = layer_of(8, 7)
    a, b = ChannelMoments(), ChannelMoments()
    a.merge(b)
    b.update({"x": channel_moments(layer, torch.from_numpy(values), None)}, 40)
    before = b.compute(MODEL, IMAGES, [layer]).to_frame()
    a.merge(b)
    a.merge(b)
    assert b.compute(MODEL, IMAGES, [layer]).to_frame().equals(before)
    twice = a.compute(MODEL, IMAGES, [layer])
    assert twice.n == 80
    np.testing.assert_allclose(twice.std[0], before["std"], rtol=1e-12)
    np.testing.assert_allclose(twice.kurtosis[0], before["kurtosis"], rtol=1e-9)


def test_counts_beyond_int32_stay_right() -> None:
    layer = layer_of(1)
    half = channel_moments(layer, torch.tensor([[[1.0]], [[3.0]]]), None)
    assert half.counts is not None
    half.counts *= 2**30 - 1
    half.central.count = 2**31 - 2
    moments = ChannelMoments()
    for _ in range(3):
        moments.update({"x": half.copy()}, 1)
    counts = moments._state["x"].counts
    assert counts is not None
    assert counts.sum().item() == 3 * (2**31 - 2)


def test_dead_always_on_and_massive_channels_are_the_planted_ones() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((50, 20, 6)).astype(np.float32)
    values[..., 1] = 0.25
    values[..., 2] = 5 + np.abs(values[..., 2])
    values[3, 4, 5] = -150.0
    found = statistics_of(values, [20, 30])
    assert found.dead[0].tolist() == [False, True, False, False, False, False]
    assert found.always_on[0].tolist() == [False, False, True, False, False, False]
    assert found.massive[0].tolist() == [False, False, False, False, False, True]
    median = np.median(np.abs(values))
    assert found.median_magnitude is not None
    assert found.median_magnitude[0] == pytest.approx(median, rel=RELATIVE_ERROR)
    assert found.largest_ratio[0][5] == pytest.approx(150 / median, rel=2 * RELATIVE_ERROR)
    assert found.fraction_massive[0].tolist() == [0, 0, 0, 0, 0, 1 / 1000]
    assert np.isnan(found.skew[0][1])
    assert np.isnan(found.kurtosis[0][1])


def test_the_median_magnitude_of_a_relu_is_that_of_what_it_lets_through() -> None:
    values = np.maximum(np.random.default_rng(0).standard_normal((400, 5, 4)) - 1, 0).astype(
        np.float32
    )
    found = statistics_of(values)
    assert found.median_magnitude is not None
    assert found.median_magnitude[0] == pytest.approx(
        np.median(values[values > 0]), rel=RELATIVE_ERROR
    )


def test_participation_ratio_of_known_spectra() -> None:
    # Columns of a Hadamard matrix are orthogonal and of equal length.
    columns = scipy.linalg.hadamard(16)[:, 1:5].astype(np.float32)
    assert statistics_of(columns[:, None]).participation[0] == pytest.approx(4)
    assert statistics_of((columns * [3, 1, 0, 0]).astype(np.float32)[:, None]).participation[
        0
    ] == pytest.approx(100 / 82)


def test_clusters_are_the_planted_groups_and_the_nearest_is_the_twin() -> None:
    rng = np.random.default_rng(0)
    sources = rng.standard_normal((3000, 3))
    which = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])
    signs = np.array([1, -1, 1, 1, 1, 1, -1, 1, 1])
    values = sources[:, which] * signs + 0.3 * rng.standard_normal((3000, 9))
    values = np.concatenate([values, np.full((3000, 1), 2.0)], axis=1).astype(np.float32)
    found = statistics_of(values[:, None], [1000] * 3)
    assert found.cluster[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 3, 3, 0]
    r = np.corrcoef(values[:, :9].T.astype(np.float64))
    np.fill_diagonal(r, 0)
    np.testing.assert_array_equal(found.nearest[0][:9], np.abs(r).argmax(1))
    np.testing.assert_allclose(
        found.nearest_correlation[0][:9], r[np.arange(9), np.abs(r).argmax(1)], rtol=1e-5
    )
    assert found.nearest[0][9] == -1
    assert np.isnan(found.nearest_correlation[0][9])


def test_one_cluster_or_none_where_all_or_no_channels_correlate() -> None:
    assert clusters_of(np.ones((5, 5))).tolist() == [1] * 5
    assert sorted(clusters_of(np.eye(5))) == [1, 2, 3, 4, 5]


def test_values_that_are_not_finite_are_named_and_spoil_their_channel_alone() -> None:
    values = mixture(20)
    values[3, 2, 1] = np.nan
    values[4, 1, 2] = np.inf
    with pytest.warns(NonFiniteWarning, match="2 of 8 channels of layer 'x' of hand"):
        found = statistics_of(values)
    clean = statistics_of(np.delete(values, [1, 2], axis=2))
    np.testing.assert_array_equal(
        np.isnan(found.quantiles[0]).all(1), [False, True, True, *[False] * 5]
    )
    np.testing.assert_allclose(np.delete(found.kurtosis[0], [1, 2]), clean.kurtosis[0], rtol=1e-12)
    assert found.participation is not None
    assert np.isnan(found.participation[0])


def test_what_is_not_asked_for_is_absent() -> None:
    values = mixture(20)
    found = statistics_of(values, quantiles=False, covariance=False)
    assert np.isnan(found.quantiles[0]).all()
    assert found.participation is not None
    assert np.isnan(found.participation[0])
    assert (found.cluster[0] == 0).all()
    np.testing.assert_array_equal(found.std[0], statistics_of(values).std[0])
    wide = channel_moments(layer_of(2049), torch.zeros(2, 1, 2049), None)
    assert wide.scatter is None


def test_results_of_an_earlier_version_still_open() -> None:
    data = to_dict(statistics_of(mixture(20)))
    later = (
        "skew",
        "kurtosis",
        "quantiles",
        "median_magnitude",
        "fraction_massive",
        "participation",
        "nearest",
        "cluster",
    )
    for name in (*later, "nearest_correlation"):
        del data[name]
    found = from_dict(data)
    assert "skew" not in found.to_frame()
    assert "participation" not in found.summary()
    assert found.summary()["dead"].tolist() == [0]


def test_layers_are_found_by_name() -> None:
    found = statistics_of(mixture(20))
    assert found.index("x") == 0
    with pytest.raises(LayerError, match="no layer 'y' in these results of hand"):
        found.index("y")
