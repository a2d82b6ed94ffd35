"""Dissection against hand counts, planted channels, and the plain definition in float64."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet

import mixer_probe as mp
from mixer_probe.channels import Dissection, class_selectivity, dissect, dissected_channel
from mixer_probe.channels.overlap import Threshold, highest, n_above, sample_pixels
from mixer_probe.channels.upsampling import anchors, cell_anchor, interpolation
from mixer_probe.core.errors import (
    ImagesError,
    ImagesWarning,
    LayerError,
    MeasureError,
    UndefinedChannelsWarning,
    UndefinedConceptsWarning,
)
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.images import (
    class_concepts,
    concepts_from_arrays,
    concepts_from_attributes,
    load_concepts,
)
from tests.networks import as_model, module_output, noise, randomised, settled

LAYER = mp.Layer("x", "block", 1.0, (1, 3), 4, 0, 3)


def pixel_model(
    size: int = 8, channels: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64
) -> mp.Model:
    """A Mixer of patches of one pixel, whose first three channels after the stem are red, green and
    blue."""
    network = randomised(
        MlpMixer(img_size=size, patch_size=1, embed_dim=channels, num_blocks=1, num_classes=5), seed
    )
    with torch.no_grad():
        network.stem.proj.weight[:3] = torch.eye(3)[..., None, None]
        network.stem.proj.bias[:3] = 0
    return as_model(network, size, dtype=dtype)


@pytest.fixture(scope="module")
def resnet() -> mp.Model:
    network = ResNet(BasicBlock, [1, 1, 1, 1], channels=(6, 8, 8, 8), stem_width=8, num_classes=5)
    return as_model(settled(randomised(network), noise(8, 64)).double(), 64, dtype=torch.float64)


@pytest.fixture(scope="module")
def mixer() -> mp.Model:
    network = MlpMixer(img_size=32, patch_size=4, embed_dim=12, num_blocks=2, num_classes=5)
    return as_model(randomised(network), 32, dtype=torch.float64)


def blobs(n: int, size: int, concepts: int, seed: int = 0) -> np.ndarray:
    """Rectangles at random places, [image, concept, row, column]."""
    rng = np.random.default_rng(seed)
    found = np.zeros((n, concepts, size, size), dtype=bool)
    for mask in found.reshape(-1, size, size):
        top, left = rng.integers(0, size // 2, 2)
        height, width = rng.integers(2, size // 2, 2)
        mask[top : top + height, left : left + width] = True
    return found


# -- the plain definition --------------------------------------------------------------------------


def caught(model: mp.Model, images: torch.Tensor, name: str) -> np.ndarray:
    """[image, channel, row, column] of a block of a Mixer (a square grid) or a CNN."""
    out = module_output(model, images, name)
    if out.ndim == 3:
        side = round(out.shape[1] ** 0.5)
        out = out.transpose(1, 2).unflatten(2, (side, side))
    return out.numpy().astype(np.float64)


def bilinear(plane: np.ndarray, size: int, first: float, step: float) -> np.ndarray:
    """One map over pixels whose centres are whole, pixel by pixel: cell i looks at pixel first + i
    step."""
    h, w = plane.shape
    out = np.empty((size, size))
    for y in range(size):
        for x in range(size):
            gy, gx = min(max((y - first) / step, 0), h - 1), min(max((x - first) / step, 0), w - 1)
            y0, x0 = int(gy), int(gx)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            upper = plane[y0, x0] * (1 - (gx - x0)) + plane[y0, x1] * (gx - x0)
            lower = plane[y1, x0] * (1 - (gx - x0)) + plane[y1, x1] * (gx - x0)
            out[y, x] = upper * (1 - (gy - y0)) + lower * (gy - y0)
    return out


def plain_lit(
    maps: np.ndarray, size: int, quantile: float, first: float, step: float
) -> np.ndarray:
    """Lit pixels [image, channel, row, column]."""
    n, channels = maps.shape[:2]
    lit = np.zeros((n, channels, size, size), dtype=bool)
    for k in range(channels):
        values = np.sort(maps[:, k].ravel())[::-1]
        level = next(
            v for v in values[::-1] if (values > v).sum() <= (1 - quantile) * len(values) + 1e-9
        )
        for i in range(n):
            lit[i, k] = bilinear(maps[i, k], size, first, step) > level
    return lit


def plain_iou(lit: np.ndarray, masks: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[channel, concept] from pixels, image by image."""
    found = np.zeros((lit.shape[1], masks.shape[1]))
    for k in range(lit.shape[1]):
        for c in range(masks.shape[1]):
            images = np.flatnonzero(known[:, c])
            both = sum((lit[i, k] & masks[i, c]).sum() for i in images)
            either = sum((lit[i, k] | masks[i, c]).sum() for i in images)
            found[k, c] = both / either
    return found


@pytest.mark.parametrize(
    ("family", "name", "first", "step"),
    # A ResNet's stem (7x7 and pooling, stride 2 each, padded by 3 and 1) and its strided 3x3 look
    # at pixels 4 i and 8 i.
    [
        ("resnet", "layer1.0", 0.0, 4.0),
        ("resnet", "layer2.0", 0.0, 8.0),
        ("mixer", "blocks.1", 1.5, 4.0),
    ],
)
@pytest.mark.parametrize("batch_size", [3, 16])
def test_the_whole_equals_the_plain_definition(
    request: pytest.FixtureRequest,
    family: str,
    name: str,
    first: float,
    step: float,
    batch_size: int,
) -> None:
    model = request.getfixturevalue(family)
    size, n, quantile = model.input.size[1], 7, 0.97
    images, masks = noise(n, size, torch.float64), blobs(n, size, 3)
    known = np.ones((n, 3), dtype=bool)
    known[[1, 4], 2] = False
    concepts = concepts_from_arrays(masks, ("a", "b", "c"), known=known)
    found = dissect(
        model,
        images,
        concepts,
        name,
        quantile=quantile,
        permutations=19,
        step=1,
        batch_size=batch_size,
    )
    lit = plain_lit(caught(model, images, name), size, quantile, first, step)
    np.testing.assert_allclose(found.iou[0], plain_iou(lit, masks, known), rtol=1e-12)
    np.testing.assert_allclose(found.lit[0], lit.mean((0, 2, 3)), rtol=1e-12)
    rng = np.random.default_rng(0)
    nulls = np.stack(
        [
            plain_iou(lit, masks[order], known[order])
            for order in (rng.permutation(n) for _ in range(19))
        ]
    )
    np.testing.assert_allclose(found.chance[0], nulls.mean(0), rtol=1e-12)
    # 19 permutations: their largest is exceeded with probability 1/20.
    np.testing.assert_allclose(found.null95[0], nulls.max((0, 1)), rtol=1e-12)
    best = np.concatenate([found.iou[0][None], nulls]).max(1)
    strength = found.iou[0] / best.mean(0)
    np.testing.assert_allclose(found.strength[0], strength.max(1), rtol=1e-12)
    peaks = (nulls / best.mean(0)).max((1, 2))
    expected = [(1 + (peaks >= s * (1 - 1e-9)).sum()) / 20 for s in strength.max(1)]
    np.testing.assert_allclose(found.p_value[0], expected, rtol=1e-12)
    expected = [
        (1 + (nulls[:, :, c].max(1) >= found.iou[0][:, c].max() * (1 - 1e-9)).sum()) / 20
        for c in range(3)
    ]
    np.testing.assert_allclose(found.concept_p[0], expected, rtol=1e-12)
    assert found.known_images.tolist() == [7, 7, 5]
    np.testing.assert_allclose(
        found.concept_fraction, [masks[known[:, c], c].mean() for c in range(3)]
    )


@pytest.mark.parametrize(("step", "pixels"), [(2, np.arange(1, 32, 2)), (3, np.arange(1, 29, 3))])
def test_every_step_th_pixel(mixer: mp.Model, step: int, pixels: np.ndarray) -> None:
    images, masks = noise(6, 32, torch.float64), blobs(6, 32, 2)
    pixels = pixels[: 32 // step]
    found = dissect(
        mixer,
        images,
        concepts_from_arrays(masks, ("a", "b")),
        "blocks.1",
        quantile=0.95,
        permutations=0,
        step=step,
    )
    lit = plain_lit(caught(mixer, images, "blocks.1"), 32, 0.95, 1.5, 4.0)
    some = (
        np.ix_(range(6), range(lit.shape[1]), pixels, pixels),
        np.ix_(range(6), range(2), pixels, pixels),
    )
    np.testing.assert_allclose(
        found.iou[0], plain_iou(lit[some[0]], masks[some[1]], np.ones((6, 2), bool)), rtol=1e-12
    )
    assert found.size == (len(pixels), len(pixels))
    assert np.isnan(found.p_value[0]).all()


def test_several_layers_and_batches_give_what_single_ones_do(resnet: mp.Model) -> None:
    images, concepts = (
        noise(9, 64, torch.float64),
        concepts_from_arrays(blobs(9, 64, 2), ("a", "b")),
    )
    options = {"quantile": 0.95, "permutations": 19}
    together = dissect(resnet, images, concepts, **options, batch_size=4)
    assert [layer.name for layer in together.layers] == [
        "layer1.0",
        "layer2.0",
        "layer3.0",
        "layer4.0",
    ]
    for i, layer in enumerate(together.layers):
        alone = dissect(resnet, images, concepts, layer.name, **options, batch_size=1)
        np.testing.assert_array_equal(together.iou[i], alone.iou[0])
        np.testing.assert_array_equal(together.p_value[i], alone.p_value[0])


# -- by hand ---------------------------------------------------------------------------------------


def by_hand() -> tuple[torch.Tensor, np.ndarray]:
    """Red of two images of 4 x 4 pixels; the 8 largest of the 32 values are 9 down to 2."""
    red = torch.zeros(2, 4, 4, dtype=torch.float64)
    red[0, 0] = torch.tensor([9.0, 8, 7, 6])
    red[1, 0] = torch.tensor([5.0, 4, 3, 2])
    red[1, 3] = torch.tensor([1.0, 0.5, 0.25, 0.125])
    images = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    images[:, 0] = red
    images[:, 1:] = noise(2, 4, torch.float64)[:, 1:]
    masks = np.zeros((2, 2, 4, 4), dtype=bool)
    # Concept 0: the left half of row 0, and all of row 1, in the first image; nothing in the
    # second.
    masks[0, 0, 0, :2] = masks[0, 0, 1] = True
    # Concept 1: row 0 of the second image.
    masks[1, 1, 0] = True
    return images, masks


def test_iou_counted_by_hand() -> None:
    images, masks = by_hand()
    found = dissect(
        pixel_model(4),
        images,
        concepts_from_arrays(masks, ("a", "b")),
        "stem",
        quantile=0.75,
        permutations=0,
        step=1,
    )
    assert found.threshold[0][0] == 1.0
    # 8 pixels are lit. Concept a: 6 pixels, 2 of them lit; b: 4 pixels, all lit.
    np.testing.assert_allclose(found.iou[0][0], [2 / 12, 4 / 8])
    assert found.lit[0][0] == 8 / 32
    assert found.concept_images.tolist() == [1, 1]
    assert found.concept_fraction.tolist() == [6 / 32, 4 / 32]
    known = np.array([[True, False], [True, True]])
    found = dissect(
        pixel_model(4),
        images,
        concepts_from_arrays(masks, ("a", "b"), known=known),
        "stem",
        quantile=0.75,
        permutations=0,
        step=1,
    )
    # Without the first image b is all that is lit.
    np.testing.assert_allclose(found.iou[0][0], [2 / 12, 1.0])
    assert found.known_images.tolist() == [2, 1]


def test_the_chance_of_two_images_is_the_mean_of_both_arrangements() -> None:
    images, masks = by_hand()
    found = dissect(
        pixel_model(4),
        images,
        concepts_from_arrays(masks, ("a", "b")),
        "stem",
        quantile=0.75,
        permutations=400,
        step=1,
    )
    # Swapped, row 0 of each image is lit as before: a still has 2 lit pixels of 6, b still 4 of 4.
    np.testing.assert_allclose(found.chance[0][0], [2 / 12, 4 / 8])
    assert found.p_value[0][0] == 1


def test_attributes_by_hand() -> None:
    images, _ = by_hand()
    images = torch.cat([images, torch.zeros_like(images)])
    concepts = concepts_from_attributes(np.array([[1, 0], [0, np.nan], [1, 0], [0, 1]]), ("a", "b"))
    model = pixel_model(4)
    # 64 values, the 8 largest above 1: both images of red are lit, with 4 pixels each.
    found = dissect(model, images, concepts, "stem", quantile=0.875, permutations=0)
    assert found.by == "peak"
    np.testing.assert_allclose(found.iou[0][0], [1 / 3, 0 / 2])
    assert found.lit[0][0] == 0.5
    np.testing.assert_allclose(found.concept_fraction, [2 / 4, 1 / 3])
    filled = dissect(
        model, images, concepts, "stem", quantile=0.875, permutations=0, attributes="fill", step=1
    )
    # a: 32 pixels, 4 of the 8 lit ones in it; b: 16 pixels, none of the 4 that are lit where it is
    # known.
    np.testing.assert_allclose(filled.iou[0][0], [4 / 36, 0])
    assert filled.lit[0][0] == 8 / 64


def test_attributes_that_fill_the_image_are_masks_that_do(mixer: mp.Model) -> None:
    images = noise(12, 32, torch.float64)
    there = np.random.default_rng(0).integers(0, 2, (12, 3))
    attributes = concepts_from_attributes(there, ("a", "b", "c"))
    masks = concepts_from_arrays(
        np.broadcast_to(there[:, :, None, None], (12, 3, 32, 32)), ("a", "b", "c")
    )
    options = {"quantile": 0.97, "permutations": 19}
    one, other = (
        dissect(mixer, images, attributes, **options, attributes="fill"),
        dissect(mixer, images, masks, **options),
    )
    for i in range(2):
        np.testing.assert_allclose(one.iou[i], other.iou[i], rtol=1e-12)
        np.testing.assert_allclose(one.p_value[i], other.p_value[i])
        np.testing.assert_allclose(one.null95[i], other.null95[i], rtol=1e-12)


# -- planted ---------------------------------------------------------------------------------------


def painted(n: int = 40, size: int = 8, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Noise below 1/2 with 4 pixels of full red and 4 of full green in each image, at random
    places; masks of both, and of random places where nothing is."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(-0.5, 0.5, (n, 3, size, size))
    masks = np.zeros((n, 3, size * size), dtype=bool)
    for i in range(n):
        places = rng.permutation(size * size)[:12].reshape(3, 4)
        for c in range(3):
            masks[i, c, places[c]] = True
    masks = masks.reshape(n, 3, size, size)
    images[:, :2][masks[:, :2]] = 1
    return torch.from_numpy(images), masks


def test_a_channel_that_is_a_concept_has_an_iou_of_one_and_noise_is_no_detector() -> None:
    images, masks = painted()
    concepts = concepts_from_arrays(masks, ("red", "green", "nothing"))
    # 4 of 64 pixels are red, so that the 1/16 above the threshold are just these.
    model = pixel_model(channels=3)
    found = dissect(model, images, concepts, "stem", quantile=15 / 16)
    np.testing.assert_array_equal(np.diag(found.iou[0])[:2], [1, 1])
    assert found.iou[0][0, 1] == 0
    assert found.detectors[0].tolist() == [True, True, False]
    assert found.preferred[0][:2].tolist() == [0, 1]
    assert found.p_value[0][:2] == pytest.approx(1 / 101)
    assert found.concept_p[0].tolist()[:2] == pytest.approx([1 / 101] * 2)
    assert found.concept_p[0][2] > 0.05
    summary = found.summary()
    assert summary["detectors"].tolist() == [2]
    assert summary["unique_concepts"].tolist() == [2]
    frame = found.concept_frame()
    assert frame["channel"].tolist()[:2] == [0, 1]
    assert frame["detectors"].tolist() == [1, 1, 0]
    # The masks of other images: the same places on average, and nothing stands out.
    shuffled = concepts_from_arrays(
        masks[np.random.default_rng(1).permutation(40)], ("red", "green", "nothing")
    )
    found = dissect(model, images, shuffled, "stem", quantile=15 / 16)
    assert not found.detectors[0].any()
    assert found.iou[0].max() < 0.2


def test_the_paper_s_rule_takes_common_places_for_a_concept_and_the_null_does_not() -> None:
    # Sky is the upper half of all images, and the channel is bright in the upper half whatever is
    # there.
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.uniform(-0.5, 0.5, (30, 3, 8, 8)))
    images[:, 0, :4] += 1
    masks = np.zeros((30, 1, 8, 8), dtype=bool)
    masks[:, 0, :4] = True
    found = dissect(
        pixel_model(channels=3), images, concepts_from_arrays(masks, ("sky",)), "stem", quantile=0.9
    )
    assert found.above()[0][0]
    assert found.iou[0][0, 0] == pytest.approx(0.2, abs=0.01)
    assert not found.detectors[0].any()
    assert found.summary()["fraction_above_paper"][0] > 0


def test_large_concepts_are_not_drowned_by_the_chance_of_small_ones() -> None:
    rng = np.random.default_rng(0)
    n, size = 40, 8
    images = rng.uniform(-0.5, 0.5, (n, 3, size, size))
    masks = np.zeros((n, 2, size, size), dtype=bool)
    # The large concept fills half of the images, and red is brighter in them; the small one has the
    # size of what is lit and is always at the same place, where green is always bright.
    masks[:20, 0] = True
    images[:20, 0] += 1
    masks[:, 1, :2, :2] = True
    images[:, 1, :2, :2] += 1
    found = dissect(
        pixel_model(channels=3),
        torch.from_numpy(images),
        concepts_from_arrays(masks, ("large", "small")),
        "stem",
        quantile=15 / 16,
    )
    # By chance the small concept has an IoU of 1 and the large one never has one above 1/8.
    assert found.null95[0][1] == 1
    assert found.iou[0][0, 0] == pytest.approx(1 / 8)
    assert found.detectors[0].tolist() == [True, False, False]
    assert found.preferred[0][0] == 0


def test_unrelated_masks_have_a_detector_in_one_layer_of_twenty() -> None:
    model = pixel_model(6, 8)
    rejected = 0
    for seed in range(60):
        concepts = concepts_from_arrays(blobs(12, 6, 3, seed=seed), ("a", "b", "c"))
        found = dissect(
            model,
            noise(12, 6, torch.float64, seed),
            concepts,
            "stem",
            quantile=0.9,
            permutations=19,
            seed=seed,
        )
        rejected += bool(found.detectors[0].any())
    # Binomial(60, 0.05): up to 9 in all but one case of a thousand.
    assert rejected <= 9


# -- thresholds ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=6),
    st.sampled_from([0.5, 0.8, 0.9]),
    st.permutations(range(3)),
    st.integers(0, 9),
)
def test_thresholds_are_exact_for_any_split_and_merge_order(
    batches: list[int], quantile: float, order: list[int], seed: int
) -> None:
    values = (
        np.random.default_rng(seed).integers(-4, 5, (sum(batches) + 4, 3, 4)).astype(np.float32)
    )
    batches = [4, *batches]
    allowed = n_above(values.shape[0] * 3, quantile)
    parts = [Threshold(allowed) for _ in range(3)]
    start = 0
    for i, n in enumerate(batches):
        parts[i % 3].update(
            highest(
                LAYER, torch.from_numpy(values[start : start + n]), None, keep={"x": allowed + 1}
            )
        )
        start += n
    total = Threshold(allowed)
    for i in order:
        total.merge(parts[i])
    level, defined = total.compute()
    for c in range(4):
        column = values[..., c].ravel()
        assert defined[c]
        # The smallest value that no more than the share exceeds.
        assert (column > level[c]).sum() <= (1 - quantile) * len(column) + 1e-9
        below = column[column < level[c]]
        assert not len(below) or (column > below.max()).sum() > (1 - quantile) * len(column) - 1e-9


def test_a_channel_that_a_relu_shuts_nearly_everywhere_is_lit_where_it_is_not_zero() -> None:
    values = torch.zeros(10, 20, 4)
    values[3, 5, 0] = 2.0
    values[4, 6, :2] = 1.0
    threshold = Threshold(n_above(200, 0.95))
    threshold.update(
        highest(mp.Layer("x", "block", 1.0, (4, 5), 4, 0, 20), values, None, keep={"x": 11})
    )
    level, defined = threshold.compute()
    assert level[:2].tolist() == [0, 0]
    assert defined.tolist() == [True, True, False, False]


def test_what_cannot_be_merged_or_computed_is_named() -> None:
    with pytest.raises(MeasureError, match="with 3 and 4 values above do not merge"):
        Threshold(3).merge(Threshold(4))
    with pytest.raises(MeasureError, match="too few values were seen"):
        Threshold(3).compute()
    with pytest.raises(
        MeasureError,
        match=r"a channel has 100 values .* none may be above the quantile 0.995: take 200 or more",
    ):
        n_above(100, 0.995)
    with pytest.raises(MeasureError, match="above 0 and below 1, not 1"):
        n_above(100, 1.0)
    assert n_above(200, 0.995) == 1
    assert n_above(1000, 0.995) == 5


# -- where positions look --------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "pixels"), [(14, 224), (7, 224), (4, 30), (1, 8), (32, 32)])
def test_interpolation_between_cells_is_that_of_torch(cells: int, pixels: int) -> None:
    plane = np.random.default_rng(0).standard_normal((cells, cells))
    weights = interpolation(cell_anchor(pixels, cells), cells, np.arange(pixels))
    expected = F.interpolate(
        torch.from_numpy(plane)[None, None], (pixels, pixels), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(weights @ plane @ weights.T, expected[0, 0].numpy(), atol=1e-12)


def field_centre(model: mp.Model, name: str, row: int, column: int) -> tuple[float, float]:
    """Centre of the pixels that one position depends on, by gradients."""
    image = noise(1, model.input.size[1], torch.float64).requires_grad_()
    found: list[torch.Tensor] = []
    handle = model.module.get_submodule(name).register_forward_hook(
        lambda _m, _i, out: found.append(out)
    )
    model.module(image)
    handle.remove()
    found[0][0, :, row, column].abs().sum().backward()
    touched = image.grad[0].abs().sum(0) > 0
    rows, columns = (touched.any(axis).nonzero().ravel() for axis in (1, 0))
    return float(rows.min() + rows.max()) / 2, float(columns.min() + columns.max()) / 2


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (
            partial(ResNet, BasicBlock, [1, 1, 1, 1], channels=(4, 4, 4, 4), stem_width=4),
            ("layer1.0", "layer2.0"),
        ),
        (
            partial(
                ResNet, BasicBlock, [1, 1, 1, 1], channels=(4, 4, 4, 4), stem_width=4, avg_down=True
            ),
            ("layer2.0.conv1",),
        ),
        (
            partial(ConvNeXt, depths=(1, 1, 1, 1), dims=(4, 4, 4, 4)),
            ("stem", "stages.0.blocks.0", "stages.1.downsample"),
        ),
    ],
)
def test_positions_look_at_the_centres_of_their_receptive_fields(
    build: partial, names: tuple[str, ...]
) -> None:
    network = build(num_classes=5)
    model = as_model(randomised(network).double().eval(), 192, dtype=torch.float64)
    for module in network.modules():
        # A ReLU hides parts of the field, and a pooling all but the largest.
        if isinstance(module, torch.nn.ReLU):
            module.forward = lambda x: x
        if isinstance(module, torch.nn.MaxPool2d):
            module.forward = lambda x: F.avg_pool2d(x, 3, 2, 1)
    for name in names:
        rows, columns = anchors(model, model.layer(name))
        h, w = model.layer(name).grid
        # In the middle, where no border cuts the field.
        i, j = h // 2, w // 2 - 1
        assert field_centre(model, name, i, j) == (
            rows.first + i * rows.step,
            columns.first + j * columns.step,
        )


@pytest.mark.parametrize(
    ("name", "layer", "first", "step"),
    [
        ("mixer_s32_224", "blocks.0", 15.5, 32),
        ("resnet18", "layer4.0", 0, 32),
        ("convnext_atto", "stages.3.blocks.0", 15.5, 32),
        ("swin_tiny_patch4_window7_224", "layers.1.blocks.0", 3.5, 8),
        # Padded as TensorFlow does, one pixel behind: 1 + 2 i.
        ("tf_efficientnet_b0", "blocks.0.0", 1, 2),
    ],
)
def test_anchors_of_known_networks(name: str, layer: str, first: float, step: float) -> None:
    model = mp.load_model(name, pretrained=False, device="cpu")
    for anchor in anchors(model, model.layer(layer)):
        assert (anchor.first, anchor.step) == (first, step)


def test_pixels_compared() -> None:
    rows, columns = sample_pixels((224, 112), None)
    assert rows.tolist() == list(range(1, 224, 2))
    assert len(columns) == 56
    assert sample_pixels((32, 32), None)[0].tolist() == list(range(32))
    with pytest.raises(MeasureError, match="step=0: take every pixel"):
        sample_pixels((8, 8), 0)


# -- images from files, and a real size ------------------------------------------------------------


def colour_concepts(images: mp.Images, folder) -> None:
    for i, image in enumerate(images):
        r, g, b = np.asarray(image).astype(int).transpose(2, 0, 1)
        for name, mask in {
            "sky-blue": (b > r + 25) & (b > g + 5),
            "green": (g > r + 15) & (g > b + 15),
        }.items():
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(
                folder / name / f"{images.ids[i]}.png"
            )


def test_photographs_through_a_real_network_equal_the_plain_definition(tmp_path) -> None:
    images = mp.load_images("photos", limit=7)
    colour_concepts(images, tmp_path)
    concepts = load_concepts(tmp_path, images)
    model = mp.load_model("mixer_s16_224", pretrained=False, device="cpu")
    found = dissect(model, images, concepts, "blocks.0", permutations=0, step=1)
    crops = []
    for image in images:
        # timm: the shorter side to 224 / 0.875, then the middle.
        resized = image.resize((256, 256), Image.Resampling.BICUBIC)
        crops.append(np.asarray(resized.crop((16, 16, 240, 240))))
    inputs = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    masks = np.zeros((7, 2, 224, 224), dtype=bool)
    for i, name in enumerate(images.ids):
        for c, concept in enumerate(("green", "sky-blue")):
            with Image.open(tmp_path / concept / f"{name}.png") as picture:
                resized = picture.resize((256, 256), Image.Resampling.NEAREST)
            masks[i, c] = np.asarray(resized.crop((16, 16, 240, 240))) > 0
    np.testing.assert_allclose(found.concept_fraction, masks.mean((0, 2, 3)))
    maps = torch.from_numpy(caught(model, inputs, "blocks.0"))
    for k in range(0, 512, 97):
        # 0.5 % of 7 x 196 are 6.86.
        level = maps[:, k].flatten().sort(descending=True).values[6]
        lit = (
            F.interpolate(maps[:, k : k + 1], (224, 224), mode="bilinear", align_corners=False)[
                :, 0
            ]
            > level
        ).numpy()
        for c in range(2):
            expected = (lit & masks[:, c]).sum() / (lit | masks[:, c]).sum()
            # Inputs are rounded otherwise: a few pixels at the border of what is lit.
            assert found.iou[0][k, c] == pytest.approx(expected, rel=0.01, abs=1e-4)


# -- what is wrong ---------------------------------------------------------------------------------


def test_layers_without_a_grid_are_refused_for_masks_and_not_for_attributes(
    mixer: mp.Model,
) -> None:
    images = noise(8, 32, torch.float64)
    masks = concepts_from_arrays(blobs(8, 32, 1), ("a",))
    for layer in ("head", "blocks.0.mlp_tokens.fc1"):
        with pytest.raises(
            LayerError,
            match=(
                f"'{layer}' of .* has no grid of positions, so masks cannot be laid over it; take"
            ),
        ):
            dissect(mixer, images, masks, layer)
    attributes = concepts_from_attributes(np.arange(8)[:, None] % 2, ("odd",))
    found = dissect(
        mixer,
        images,
        attributes,
        ["head", "blocks.0.mlp_tokens.fc1"],
        quantile=0.7,
        permutations=19,
    )
    assert [len(p) for p in found.p_value] == [found.layers[0].channels, found.layers[1].channels]
    with pytest.raises(LayerError, match="attributes cannot fill it"):
        dissect(mixer, images, attributes, "head", attributes="fill")


def test_undefined_channels_and_concepts_are_nan_and_named() -> None:
    model = pixel_model(channels=4)
    images, masks = painted(12)
    with torch.no_grad():
        model.module.stem.proj.weight[3] = 0
        model.module.stem.proj.weight[2] = np.nan
    masks[:, 2] = False
    concepts = concepts_from_arrays(masks, ("red", "green", "nowhere"))
    with (
        pytest.warns(UndefinedChannelsWarning, match="constant or not finite .*: 2 of 'stem'"),
        pytest.warns(
            UndefinedConceptsWarning, match="1 concepts of arrays are in no image .*'nowhere'"
        ),
    ):
        found = dissect(model, images, concepts, "stem", quantile=15 / 16)
    assert np.isnan(found.iou[0][2:]).all()
    assert np.isnan(found.iou[0][:, 2]).all()
    assert np.isfinite(found.iou[0][:2, :2]).all()
    assert found.preferred[0].tolist() == [0, 1, -1, -1]
    assert found.detectors[0].tolist() == [True, True, False, False]
    assert np.isnan(found.p_value[0][2:]).all()
    assert np.isnan([found.null95[0, 2], found.concept_p[0, 2]]).all()
    frame = found.to_frame()
    assert frame["concept"].tolist() == ["red", "green", "", ""]
    assert np.isnan(frame["iou"][2])
    assert found.concept_frame()["channel"].tolist() == [0, 1, -1]


def test_images_without_masks_are_left_out_and_counted() -> None:
    images, masks = painted(12)
    model = pixel_model(channels=3)
    chosen = [9, 0, 4, 7, 2]
    ids = [str(i) for i in chosen]
    found = dissect(
        model,
        images,
        concepts_from_arrays(masks[chosen], "rgb", ids),
        "stem",
        quantile=15 / 16,
        permutations=0,
    )
    rows = sorted(chosen)
    expected = dissect(
        model,
        images[rows],
        concepts_from_arrays(masks[rows], "rgb"),
        "stem",
        quantile=15 / 16,
        permutations=0,
    )
    assert (found.n, found.left_out) == (5, 7)
    np.testing.assert_array_equal(found.iou[0], expected.iou[0])


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"attributes": "mean"}, MeasureError, "unknown attributes 'mean'; known: peak, fill"),
        ({"permutations": 5}, MeasureError, "take 19 or more, or 0"),
        (
            {"quantile": 0.9999},
            MeasureError,
            "a channel of 'stem' has 384 values .*: take 10000 or more, or a lower quantile",
        ),
        ({"layers": "blocks.7"}, LayerError, "no layer 'blocks.7'"),
        ({"step": 9}, MeasureError, "step=9"),
        (
            {"concepts": concepts_from_arrays(np.ones((1, 1, 8, 8)), ("a",), ("x",))},
            ImagesError,
            "its first image is called '0', the first annotated one 'x'",
        ),
        (
            {"concepts": concepts_from_arrays(np.ones((1, 1, 8, 8)), ("a",))},
            MeasureError,
            "one image is annotated",
        ),
        (
            {"concepts": concepts_from_arrays(np.ones((2, 1, 4, 4)), ("a",))},
            ImagesError,
            "mask 0 is 4 x 4 and image '0' is 8 x 8",
        ),
    ],
)
def test_what_cannot_be_dissected_is_named(
    options: dict, error: type[Exception], sentence: str
) -> None:
    images, masks = painted(6)
    given = {"concepts": concepts_from_arrays(masks, ("a", "b", "c")), "layers": "stem"} | options
    with pytest.raises(error, match=sentence):
        dissect(pixel_model(channels=3), images, **given)


# -- pictures of one channel, tables, storage ------------------------------------------------------


def test_one_channel_in_pictures() -> None:
    images, masks = painted()
    concepts = concepts_from_arrays(masks, ("red", "green", "nothing"))
    model = pixel_model(channels=3)
    whole = dissect(model, images, concepts, "stem", quantile=15 / 16)
    found = dissected_channel(model, images, concepts, whole, "stem", 1, k=5)
    assert (found.concept, found.iou, found.p_value) == ("green", 1.0, pytest.approx(1 / 101))
    index = found.ids.astype(int)
    np.testing.assert_array_equal(found.masks, masks[index, 1])
    np.testing.assert_array_equal(found.lit, masks[index, 1])
    np.testing.assert_array_equal(found.overlap, np.ones(5))
    np.testing.assert_allclose(found.maps, images[index, 1])
    assert found.to_frame()["overlap"].tolist() == [1.0] * 5
    other = dissected_channel(model, images, concepts, whole, "stem", 1, "red", k=3)
    assert other.iou == 0
    assert np.isnan(other.p_value)
    assert from_dict(to_dict(found)).to_frame().equals(found.to_frame())
    for arguments, error, sentence in (
        (("stem", 9), LayerError, "out of range"),
        (("stem", 1, "blue"), ImagesError, "no concept 'blue'"),
        (("blocks.0", 1), LayerError, "no layer 'blocks.0' in these results"),
    ):
        with pytest.raises(error, match=sentence):
            dissected_channel(model, images, concepts, whole, *arguments)
    with pytest.raises(MeasureError, match="this is a dissection of"):
        dissected_channel(pixel_model(channels=3, seed=1), images, concepts, whole, "stem", 1)


def test_tables_and_storage(resnet: mp.Model) -> None:
    concepts = concepts_from_arrays(blobs(8, 64, 2), ("a", "b"))
    found = dissect(resnet, noise(8, 64, torch.float64), concepts, quantile=0.95, permutations=19)
    frame = found.to_frame()
    assert len(frame) == sum(layer.channels for layer in found.layers)
    best = np.concatenate([iou.max(1) for iou in found.iou])
    np.testing.assert_array_equal(frame["largest_iou"], best)
    assert len(found.concept_frame()) == 8
    again = from_dict(to_dict(found))
    assert isinstance(again, Dissection)
    assert again.to_frame().equals(frame)
    assert again.concept_frame().equals(found.concept_frame())


def test_classes_as_attributes_on_a_trained_network() -> None:
    images = mp.load_images("demo", limit=120)
    model = mp.load_model("zoo:mixer-s0", device="cpu")
    classes = class_concepts(images)
    found = dissect(model, images, classes, ["blocks.0", "norm"], permutations=49)
    fraction = found.summary()["fraction_detectors"].to_numpy()
    # Late channels tell classes, early ones hardly: as class selectivity, by ranks of means, finds
    # them.
    selective = class_selectivity(
        mp.extract(model, images, ["blocks.0", "norm"]), permutations=49
    ).summary()["fraction_selective"]
    assert fraction[1] > fraction[0]
    assert selective[1] > selective[0]
    dealt = class_concepts(images.subset(np.random.default_rng(0).permutation(120)))
    wrong = concepts_from_attributes(dealt.attributes, dealt.names, images.ids)
    assert (
        dissect(model, images, wrong, ["blocks.0", "norm"], permutations=49)
        .summary()["detectors"]
        .sum()
        <= 1
    )


def test_a_set_with_annotations_of_some_images(tmp_path) -> None:
    images = mp.load_images("photos", limit=8)
    colour_concepts(images.subset(range(6)), tmp_path)
    with pytest.warns(ImagesWarning, match="2 of 8 images have none"):
        concepts = load_concepts(tmp_path, images)
    model = as_model(
        randomised(MlpMixer(img_size=32, patch_size=4, embed_dim=12, num_blocks=1, num_classes=5))
    )
    found = dissect(model, images, concepts, quantile=0.95, permutations=0)
    assert (found.n, found.left_out) == (6, 2)
    assert found.images.n == 6
    page = dissected_channel(model, images, concepts, found, "blocks.0", 3, k=2)
    assert page.pictures.shape == (2, 32, 32, 3)
    assert np.isnan(page.null95)
