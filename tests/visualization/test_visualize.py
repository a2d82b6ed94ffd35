"""`visualize` on units whose best image is known, and on networks of every family."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.mlp_mixer import MlpMixer

import mixer_probe as mp
from mixer_probe.core import progress
from mixer_probe.core.errors import (
    ImagesError,
    LayerError,
    MeasureError,
    UndefinedVisualizationWarning,
)
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.visualization import NO_TRANSFORMS, FeatureVisualization, Transforms
from tests.networks import CASES, as_model, randomised

QUICK: dict[str, Any] = {"seeds": (0, 1), "steps": 4, "k": 3}


@pytest.fixture(scope="module")
def images() -> mp.Images:
    return mp.load_images("demo", limit=40)


@pytest.fixture(scope="module")
def mixer() -> mp.Model:
    return CASES["mixer"].model()


def clean(
    model: mp.Model, pictures: np.ndarray, function: Callable[[torch.Tensor], torch.Tensor]
) -> np.ndarray:
    """A function of the raw output of the whole module for uint8 pictures [n, h, w, 3]."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(model.dtype) / 255
    mean, std = (torch.tensor(v).to(x)[:, None, None] for v in (model.input.mean, model.input.std))
    with torch.no_grad():
        return function((x - mean) / std).double().numpy()


def test_a_linear_unit_gets_its_filter(images: mp.Images) -> None:
    """The mean of a channel of a patch projection is linear in the pixels: the best image in 0..1
    is known exactly."""
    model = as_model(
        randomised(MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=1)),
        mean=(0.4, 0.5, 0.6),
        std=(0.2,) * 3,
    )
    units = [2, 9]
    with torch.no_grad():
        # Two waves that join seamlessly from patch to patch, one along the rows, one along the
        # diagonal.
        phase = torch.arange(8) * torch.pi / 4 + torch.pi / 8
        grey = torch.tensor([0.1, 0.09, 0.08])[:, None, None]
        model.module.stem.proj.weight[2] = grey * torch.cos(phase)[:, None].expand(8, 8)
        model.module.stem.proj.weight[9] = grey * torch.cos(
            phase[:, None] + torch.arange(8) * torch.pi / 4
        )
    found = mp.visualize(
        model,
        "stem",
        units,
        images=images,
        transforms=NO_TRANSFORMS,
        seeds=(0, 1),
        steps=100,
        rate=1.0,
    )
    kernel = model.module.stem.proj.weight.detach().double().numpy()[units]
    mean = np.array(model.input.mean)[:, None, None]
    offset = model.module.stem.proj.bias.detach().double().numpy()[units] - (
        kernel * mean / 0.2
    ).sum((1, 2, 3))
    best = np.maximum(kernel / 0.2, 0).sum((1, 2, 3)) + offset
    start = (kernel * 0.5 / 0.2).sum((1, 2, 3)) + offset
    fraction = (found.activation[:, 0] - start[:, None]) / (best - start)[:, None]
    assert np.all(fraction > 0.95)
    assert np.all(fraction <= 1 + 1e-5)
    tiled = np.tile(np.sign(kernel), (1, 1, 4, 4)).transpose(0, 2, 3, 1)
    made = found.pictures[:, 0].astype(float) / 127.5 - 1
    cosine = (
        (made * tiled[:, None]).sum((2, 3, 4))
        / np.linalg.norm(made.reshape(2, 2, -1), axis=2)
        / np.linalg.norm(tiled[0])
    )
    assert np.all(cosine > 0.95)
    # Without transformations the objective of every step is that of the image, and it rises.
    assert np.all(np.diff(found.trace, axis=-1) > -1e-4 * (best - start)[:, None, None, None])


@pytest.mark.parametrize("method", ["fourier", "maco"])
def test_activations_are_those_of_the_pictures(
    mixer: mp.Model, images: mp.Images, method: str
) -> None:
    found = mp.visualize(mixer, "head", [0, 3], method=method, images=images, **QUICK)
    for u, unit in enumerate(found.units):
        np.testing.assert_allclose(
            found.activation[u, 0],
            clean(mixer, found.pictures[u, 0], mixer.module)[:, unit],
            rtol=1e-4,
            atol=1e-5,
        )
    assert found.pictures.shape == (2, 1, 2, 32, 32, 3)
    assert found.pictures.dtype == np.uint8
    assert found.trace.shape == (2, 1, 2, 4)


def test_real_images_are_the_top_images(mixer: mp.Model, images: mp.Images) -> None:
    found = mp.visualize(mixer, "blocks.1", [3, 5], images=images, **QUICK)
    top = mp.top_images(mixer, images, "blocks.1", [3, 5], k=3, by="mean")
    np.testing.assert_array_equal(found.real_ids, top.ids)
    np.testing.assert_allclose(found.real_values, top.values, rtol=1e-5)
    peak = mp.visualize(mixer, "blocks.1", [3, 5], images=images, over="peak", **QUICK)
    np.testing.assert_array_equal(
        peak.real_ids, mp.top_images(mixer, images, "blocks.1", [3, 5], k=3).ids
    )
    by_id = dict(zip(images.ids, images, strict=True))
    for unit in range(2):
        for picture, name in zip(found.real_pictures[unit], found.real_ids[unit], strict=True):
            np.testing.assert_array_equal(picture, np.asarray(by_id[name]))
    # Against all values, by their definition.
    values = mp.extract(mixer, images, "blocks.1")["blocks.1"][:, [3, 5]]
    np.testing.assert_allclose(found.real_median, np.median(values, axis=0), rtol=1e-4)
    for u in range(2):
        below = [(values[:, u] < a).mean() * 100 for a in found.activation[u, 0]]
        np.testing.assert_allclose(found.percentile[u, 0], below)
        span = found.real_values[u, 0] - found.real_median[u]
        np.testing.assert_allclose(
            found.relative[u, 0], (found.activation[u, 0] - found.real_median[u]) / span
        )


def test_a_tensor_of_finished_inputs_serves_as_images(mixer: mp.Model, images: mp.Images) -> None:
    tensor = torch.stack(
        [(torch.from_numpy(np.array(i)).permute(2, 0, 1) / 255 - 0.5) / 0.5 for i in images]
    )
    a, b = (
        mp.visualize(mixer, "blocks.0", 1, method="maco", images=source, **QUICK)
        for source in (images, tensor)
    )
    np.testing.assert_allclose(a.real_values, b.real_values, rtol=1e-5)
    np.testing.assert_array_equal(a.real_pictures, b.real_pictures)
    assert np.abs(a.pictures.astype(int) - b.pictures).max() <= 2


@pytest.mark.parametrize("method", ["fourier", "maco"])
def test_a_picture_depends_on_its_seed_alone(
    mixer: mp.Model, images: mp.Images, method: str
) -> None:
    options = {"images": images, "method": method, "steps": 4}
    both = mp.visualize(mixer, "blocks.1", [3, 5], seeds=(7, 8), **options)
    again = mp.visualize(mixer, "blocks.1", [3, 5], seeds=(7, 8), **options)
    np.testing.assert_array_equal(both.pictures, again.pictures)
    np.testing.assert_array_equal(both.trace, again.trace)
    alone = mp.visualize(mixer, "blocks.1", 5, seeds=[8], **options)
    # Sums over another batch may round a pixel to the next of its 256 values.
    assert np.abs(alone.pictures[0, 0, 0].astype(int) - both.pictures[1, 0, 1]).max() <= 1
    split = mp.visualize(mixer, "blocks.1", [3, 5], seeds=(7, 8), batch_size=3, **options)
    assert np.abs(split.pictures.astype(int) - both.pictures).max() <= 1
    assert (both.pictures[1, 0, 0] != both.pictures[1, 0, 1]).mean() > 0.5


def state(model: mp.Model) -> tuple[object, ...]:
    flags = [
        (m.training, len(m._forward_hooks), getattr(m, "fused_attn", None))
        for m in model.module.modules()
    ]
    asked = [(p.requires_grad, p.grad is None) for p in model.module.parameters()]
    numbers = torch.cat(
        [p.detach().flatten() for p in model.module.state_dict().values() if p.is_floating_point()]
    )
    return (
        flags,
        asked,
        numbers.sum().item(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
    )


def test_the_network_and_the_random_numbers_are_left_alone(images: mp.Images) -> None:
    model = CASES["vit"].model()
    model.module.blocks[0].train()
    next(model.module.parameters()).requires_grad_(False)
    before = state(model)
    with torch.no_grad():
        mp.visualize(model, "blocks.1", 2, method=("fourier", "maco"), images=images, **QUICK)
        assert not torch.is_grad_enabled()
    assert state(model) == before


def test_an_interrupt_leaves_nothing_behind(mixer: mp.Model, images: mp.Images) -> None:
    before = state(mixer)
    seen = []

    def listener(title: str, done: int, total: int) -> None:
        seen.append((title, done, total))
        if "fourier" in title and done == 6:
            raise KeyboardInterrupt

    progress.listen(listener)
    try:
        with pytest.raises(KeyboardInterrupt):
            mp.visualize(mixer, "blocks.1", 2, images=images, **QUICK)
    finally:
        progress.listen(None)
    assert state(mixer) == before
    # Two seeds a step, of 2 x 4 in all.
    assert seen[-1] == ("mixer: fourier of 'blocks.1'", 6, 8) or seen[-1][1:] == (6, 8)


def test_only_pixels_that_a_position_sees_are_opaque(images: mp.Images) -> None:
    model = CASES["mixer"].model()
    found = mp.visualize(
        model,
        "stem.proj",
        3,
        images=images,
        position=(1, 2),
        transforms=NO_TRANSFORMS,
        seeds=(0,),
        steps=3,
    )
    # A patch projection sees its patch of 8 px and nothing else.
    seen = np.zeros((32, 32), dtype=bool)
    seen[8:16, 16:24] = True
    np.testing.assert_array_equal(found.opacity[0, 0, 0], np.where(seen, 255, 0))


def test_dead_units_have_no_picture(images: mp.Images) -> None:
    """Channel 3 is shut by its ReLU for grey, as many are, and open for other images; channel 4 is
    shut for all."""
    model = CASES["resnet-bottleneck"].model()
    norm = model.module.layer1[0].bn1
    with torch.no_grad():
        norm.weight[4], norm.bias[4] = 0.0, -1.0
    with pytest.warns(
        UndefinedVisualizationWarning,
        match=r"channel 4 of 'layer1.0.act1'.*no pixel affects .*2 of 4 images",
    ):
        found = mp.visualize(model, "layer1.0.act1", [3, 4], images=images, seeds=(0, 1), steps=60)
    assert np.isnan(found.activation[1]).all()
    assert np.isnan(found.trace[1]).all()
    assert np.isnan(found.percentile[1]).all()
    assert np.all(found.pictures[1] == 128)
    assert np.isfinite(found.activation[0]).all()
    assert (found.trace[0, ..., 0] == 0).all()
    assert found.stronger.shape == (2, 1)
    assert not found.stronger[1, 0]


def test_the_mean_of_a_token_mixing_unit_is_a_constant_of_a_fresh_layer_norm(
    images: mp.Images,
) -> None:
    """A layer norm of gain 1 and shift 0 has channels that sum to zero at every position, and fc1
    is linear in positions."""
    network = MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=1)
    model = as_model(network)
    name = "blocks.0.mlp_tokens.fc1"
    with pytest.warns(UndefinedVisualizationWarning, match="mean over channels"):
        mean = mp.visualize(model, name, 0, over="mean", images=images, **QUICK)
    assert np.isnan(mean.activation).all()
    assert np.isfinite(mp.visualize(model, name, 0, images=images, **QUICK).activation).all()
    assert np.isfinite(
        mp.visualize(model, name, 0, channel=3, images=images, **QUICK).activation
    ).all()


def test_a_fresh_timm_mixer_has_no_class_to_show(images: mp.Images) -> None:
    model = as_model(MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=1, num_classes=4))
    with pytest.warns(UndefinedVisualizationWarning, match="class 1 of 'head'"):
        found = mp.visualize(model, "head", 1, images=images, **QUICK)
    assert np.isnan(found.activation).all()
    assert np.isnan(found.relative).all()


def test_float64_and_other_sizes(images: mp.Images) -> None:
    model = CASES["resnet-bottleneck"].model(torch.float64)
    found = mp.visualize(
        model,
        "layer2.0.conv1",
        1,
        method=("fourier", "maco"),
        images=images,
        size=(40, 56),
        **QUICK,
    )
    assert found.pictures.shape == (1, 2, 2, 40, 56, 3)
    assert found.real_pictures.shape == (1, 3, 40, 56, 3)
    assert found.layer.grid == (10, 14)
    assert model.input.size == (3, 64, 64)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"method": "fouriee"}, "not 'fouriee'; closest: fourier"),
        ({"method": ()}, "give one method"),
        ({"method": ("maco", "maco")}, "several different ones"),
        ({"seeds": ()}, "seeds are"),
        ({"seeds": (1, 1)}, "seeds are"),
        ({"steps": 0}, "1 or more"),
        ({"k": 0}, "1 or more"),
        ({"rate": 0.0}, "rate must be above 0"),
        ({"size": 48}, "does not take images of 48×48 px"),
    ],
)
def test_bad_questions(
    mixer: mp.Model, images: mp.Images, given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(MeasureError, match=sentence):
        mp.visualize(mixer, "blocks.0", 1, **({"images": images} | given))


def test_bad_layers_and_images(mixer: mp.Model, images: mp.Images) -> None:
    with pytest.raises(LayerError, match="has channels 0 to 23"):
        mp.visualize(mixer, "blocks.0", 24, images=images)
    with pytest.raises(ImagesError):
        mp.visualize(mixer, "blocks.0", 1, images=["a.png"])  # type: ignore[arg-type]


def test_the_result_survives_storage(mixer: mp.Model, images: mp.Images) -> None:
    found = mp.visualize(
        mixer, "blocks.0.mlp_tokens.act", [1, 2], method=("fourier", "maco"), images=images, **QUICK
    )
    again = from_dict(to_dict(found))
    assert isinstance(again, FeatureVisualization)
    for name in ("pictures", "opacity", "activation", "trace", "percentile", "real_ids", "units"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    assert again.settings["maco"]["inside"] is True
    frame = found.to_frame()
    assert len(frame) == 2 * 2 * 2
    row = frame[
        (frame["hidden_unit"] == 2) & (frame["method"] == "maco") & (frame["seed"] == 1)
    ].iloc[0]
    assert row["activation"] == found.activation[1, 1, 1]


def test_noise_and_views_go_into_the_gradient(mixer: mp.Model, images: mp.Images) -> None:
    plain = mp.visualize(mixer, "blocks.0", 1, images=images, transforms=NO_TRANSFORMS, **QUICK)
    same = mp.visualize(
        mixer,
        "blocks.0",
        1,
        images=images,
        transforms=Transforms(0.0, (1, 1), 0.0, views=3),
        **QUICK,
    )
    np.testing.assert_allclose(same.trace, plain.trace, rtol=1e-4, atol=1e-5)
    noisy = mp.visualize(
        mixer,
        "blocks.0",
        1,
        images=images,
        transforms=Transforms(0.0, (1, 1), 0.0, noise=0.3),
        **QUICK,
    )
    assert np.abs(noisy.trace - plain.trace).min() > 1e-5


def test_zoo_units_are_excited_beyond_all_real_images() -> None:
    model, images = mp.load_model("zoo:mixer-s0", device="cpu"), mp.load_images("demo", limit=300)
    found = mp.visualize(model, "blocks.2", range(0, 128, 16), images=images, seeds=(0,), steps=32)
    assert found.stronger.sum() >= 6
    hidden = mp.visualize(
        model, "blocks.0.mlp_tokens.fc1", range(0, 128, 16), images=images, seeds=(0,), steps=32
    )
    assert hidden.stronger.sum() >= 6


def test_a_mixer_of_full_size() -> None:
    model = mp.load_model("mixer_b16_224", pretrained=False, device="cpu")
    images = mp.load_images("photos", limit=4)
    found = mp.visualize(
        model,
        "blocks.1.mlp_tokens.fc1",
        100,
        method=("fourier", "maco"),
        images=images,
        seeds=(0,),
        steps=2,
        k=2,
    )
    assert found.pictures.shape == (1, 2, 1, 224, 224, 3)
    assert np.isfinite(found.activation).all()
    assert found.layer.channels == 768
