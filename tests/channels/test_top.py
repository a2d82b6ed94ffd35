"""Top images against a full sort of what plain hooks caught."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet

import mixer_probe as mp
from mixer_probe.capture import input_pictures
from mixer_probe.capture.stream import as_source
from mixer_probe.channels import (
    RunningTop,
    TopImages,
    activation_maps,
    extremes,
    top_and_lowest,
    top_images,
)
from mixer_probe.channels.top import TopMaps, cell_box, top_means
from mixer_probe.core.errors import ImagesError, LayerError, MeasureError, NonFiniteWarning
from mixer_probe.core.result import from_dict, to_dict
from tests.networks import CASES, as_model, module_output, noise, randomised, settled

LAYER = mp.Layer("x", "block", 1.0, (1, 3), 4, 0, 3)


@pytest.fixture(scope="module")
def mixer() -> mp.Model:
    return as_model(randomised(MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=2)))


@pytest.fixture(scope="module")
def resnet() -> mp.Model:
    network = ResNet(BasicBlock, [1, 1, 1, 1], channels=(8, 8, 16, 16), stem_width=8)
    return as_model(settled(randomised(network), noise(8)))


def caught(model: mp.Model, images: torch.Tensor, name: str) -> np.ndarray:
    """[image, position, channel] of a block of a Mixer or a CNN."""
    out = module_output(model, images, name)
    return (out.flatten(2).transpose(1, 2) if out.ndim == 4 else out).numpy()


def by_sort(values: np.ndarray, k: int, lowest: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The plain definition: sort all images of every channel, of equals the first."""
    signed = -values if lowest else values
    peak, place = signed.max(1), signed.argmax(1)
    order = np.argsort(-peak, axis=0, kind="stable")[:k]
    best = np.take_along_axis(peak, order, 0)
    return (-best if lowest else best).T, order.T, np.take_along_axis(place, order, 0).T


@pytest.mark.parametrize("lowest", [False, True])
@pytest.mark.parametrize(("family", "name"), [("mixer", "blocks.1"), ("resnet", "layer2.0")])
def test_top_images_equal_a_full_sort(
    request: pytest.FixtureRequest, family: str, name: str, lowest: bool
) -> None:
    model = request.getfixturevalue(family)
    images = noise(23)
    values = caught(model, images, name)
    found = top_images(model, images, name, k=5, lowest=lowest, batch_size=4)
    # The sum of a batch of four may differ from one of 23 in the last bit.
    expected, index, position = by_sort(values, 5, lowest)
    np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_array_equal(found.position, position)
    np.testing.assert_array_equal(found.ids, index.astype(str))
    grid = model.layer(name).grid
    np.testing.assert_array_equal(found.row * grid[1] + found.column, position)
    assert found.n == 23


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.integers(1, 9),
    st.booleans(),
    st.permutations(range(3)),
    st.integers(0, 9),
)
def test_ties_splits_and_merge_orders_change_nothing(
    batches: list[int], k: int, lowest: bool, order: list[int], seed: int
) -> None:
    # Small whole numbers below zero: many ties, no activation above zero.
    values = np.random.default_rng(seed).integers(-4, 0, (sum(batches), 3, 4)).astype(np.float32)
    parts = [RunningTop(k, lowest) for _ in range(3)]
    start = 0
    for i, n in enumerate(batches):
        parts[i % 3].update(
            extremes(LAYER, torch.from_numpy(values[start : start + n]), None, lowest=lowest), start
        )
        start += n
    total = RunningTop(k, lowest)
    for i in order:
        total.merge(parts[i])
    for found, expected in zip(total.compute(), by_sort(values, k, lowest), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_always_negative_channels_have_real_images(mixer: mp.Model) -> None:
    bias = mixer.module.blocks[1].mlp_channels.fc2.bias
    with torch.no_grad():
        bias[3] -= 1e3
        found = top_images(mixer, noise(12), "blocks.1", channel=3, k=4)
        bias[3] += 1e3
    assert (found.values < -900).all()
    assert (found.index >= 0).all()
    assert len(set(found.index[0])) == 4


def test_both_ends_in_one_pass_are_those_of_two(mixer: mp.Model) -> None:
    wanted = {"blocks.1": [1, 4], "stem": None}
    for pair, (name, channel) in zip(
        top_and_lowest(mixer, noise(9), wanted, k=3), wanted.items(), strict=True
    ):
        for found, lowest in zip(pair, (False, True), strict=True):
            assert found.to_frame().equals(
                top_images(mixer, noise(9), name, channel, k=3, lowest=lowest).to_frame()
            )


def test_fewer_images_than_k_give_all_of_them(mixer: mp.Model) -> None:
    found = top_images(mixer, noise(3), "blocks.0", channel=[5, 2], k=9)
    assert found.k == 3
    assert found.channels.tolist() == [2, 5]
    assert all(sorted(row) == [0, 1, 2] for row in found.index.tolist())


def test_by_mean_ranks_by_the_mean_and_shows_the_peak(mixer: mp.Model) -> None:
    images = noise(10)
    values = caught(mixer, images, "blocks.0")
    found = top_images(mixer, images, "blocks.0", k=10, by="mean")
    order = np.argsort(-values.mean(1), axis=0, kind="stable").T
    np.testing.assert_array_equal(found.index, order)
    np.testing.assert_array_equal(found.position, np.take_along_axis(values.argmax(1).T, order, 1))


def test_pooled_layers_have_no_place(resnet: mp.Model) -> None:
    found = top_images(resnet, noise(6), "fc", channel=0, k=2)
    assert (found.row == -1).all()
    assert found.boxes[0, 0].tolist() == [0, 0, 32, 32]


def test_boxes_are_the_pixels_of_the_cells() -> None:
    row, column = np.divmod(np.arange(16), 4)
    boxes = np.stack(cell_box(row, column, (4, 4), (32, 64)), -1)
    assert boxes[0].tolist() == [0, 0, 8, 16]
    assert boxes[6].tolist() == [8, 32, 16, 48]
    # A grid that does not divide the image still covers it, and a finer one has no empty cell.
    boxes = np.stack(cell_box(*np.divmod(np.arange(9), 3), (3, 3), (8, 8)), -1)
    assert boxes[-1].tolist() == [5, 5, 8, 8]
    fine = np.stack(cell_box(np.arange(8), np.zeros(8, int), (8, 1), (4, 4)), -1)
    assert (fine[:, 2] > fine[:, 0]).all()


def test_maps_and_pictures_are_those_of_the_top_images(mixer: mp.Model) -> None:
    images = mp.load_images("demo", limit=20)
    found = top_images(mixer, images, "blocks.1", channel=7, k=3)
    maps = activation_maps(mixer, images, found.index[0], "blocks.1", 7)
    assert maps.shape == (3, 4, 4)
    np.testing.assert_allclose(maps.reshape(3, -1).max(1), found.values[0], rtol=1e-5)
    np.testing.assert_array_equal(maps.reshape(3, -1).argmax(1), found.position[0])
    assert found.ids[0].tolist() == [images.ids[i] for i in found.index[0]]
    pictures = input_pictures(mixer, images, found.index[0])
    np.testing.assert_array_equal(pictures[0], np.asarray(images[int(found.index[0, 0])]))
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255.0
    np.testing.assert_array_equal(
        input_pictures(mixer, (tensor - 0.5) / 0.5, [2, 0]), pictures[[2, 0]]
    )
    assert input_pictures(mixer, as_source(noise(4)), [1]).shape == (1, 32, 32, 3)


def test_hidden_units_of_token_mixing_have_a_map_without_a_grid(mixer: mp.Model) -> None:
    layer = mixer.layer("blocks.0.mlp_tokens.fc1")
    assert layer.grid is None
    maps = activation_maps(mixer, noise(4), [0, 1], layer.name, 0)
    assert maps.shape == (2, 1, layer.positions)


def test_nan_is_named_and_ranked_last(mixer: mp.Model) -> None:
    images = noise(6)
    images[2] = torch.nan
    with pytest.warns(NonFiniteWarning, match="16 peaks of layer 'blocks.0'"):
        found = top_images(mixer, images, "blocks.0", k=6)
    assert (found.index[:, -1] == 2).all()
    assert np.isfinite(found.values[:, :-1]).all()


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        (
            {"channel": 16},
            LayerError,
            "channel 16 is out of range: 'blocks.0' has channels 0 to 15",
        ),
        ({"channel": [0, -1]}, LayerError, "channel -1 is out of range"),
        ({"channel": []}, LayerError, "no channel was chosen"),
        ({"k": 0}, MeasureError, "k is a whole number, 1 or more, not 0"),
        ({"by": "sum"}, MeasureError, "unknown by 'sum'; known: peak, mean"),
    ],
)
def test_what_cannot_be_ranked_is_named(
    mixer: mp.Model, options: dict, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        top_images(mixer, noise(3), "blocks.0", **options)


def test_what_does_not_merge_is_named(mixer: mp.Model) -> None:
    with pytest.raises(MeasureError, match="the 3 highest and the 3 lowest do not merge"):
        RunningTop(3).merge(RunningTop(3, lowest=True))
    with pytest.raises(MeasureError, match="no image was seen"):
        RunningTop(3).compute()
    found = top_images(mixer, noise(3), "blocks.0", channel=4, k=1)
    with pytest.raises(LayerError, match="is not among these 1"):
        found.place(5)
    assert found.place(4) == 0
    with pytest.raises(ImagesError, match="single images are needed"):
        input_pictures(mixer, object(), [0])


def test_tables_and_storage(mixer: mp.Model) -> None:
    found = top_images(mixer, noise(7), "blocks.0", k=2)
    frame = found.to_frame()
    assert len(frame) == 32
    assert frame["rank"].tolist()[:4] == [1, 2, 1, 2]
    again = from_dict(to_dict(found))
    assert isinstance(again, TopImages)
    assert again.to_frame().equals(frame)


@pytest.mark.parametrize("k", [2, 50])
def test_maps_read_in_a_pass_are_those_of_the_images_shown(k: int) -> None:
    case = CASES["resnet18"]
    model, images = case.model(), case.images(23)
    layers = model.select("blocks")[:2]
    maps = TopMaps(k)
    names = [layer.name for layer in layers]
    run = mp.extract(model, images, names, batch_size=5, also=[maps.reading(layers)])
    assert maps.n == 23
    wanted = {a.name: [0, 5] for a in layers}
    for ends in top_means(model, images, run, wanted, k):
        for end in ends:
            for channel, index in zip(end.channels, end.index, strict=True):
                found = maps.compute(end.layer, int(channel), end.lowest, index)
                expected = activation_maps(model, images, index, end.layer.name, int(channel))
                assert found is not None
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
                assert maps.compute(end.layer, int(channel), end.lowest, index[::-1]) is None
