"""What images a network takes: timm's preprocessing for every tag, other numbers of channels, and
statements that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models import get_pretrained_cfg, list_pretrained
from timm.models.mlp_mixer import MlpMixer
from torch import nn

import mixer_probe as mp
from mixer_probe.capture import input_pictures
from mixer_probe.capture.stream import pixel_batches, transform_of
from mixer_probe.core.errors import ImagesError, ModelError
from mixer_probe.images import from_arrays
from mixer_probe.images.transforms import transform_for
from mixer_probe.invariance import standard_distortions
from mixer_probe.models.inputs import timm_input
from tests.networks import CASES, as_model, noise

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


class Configured(nn.Module):
    """All of a timm network that its preprocessing is read from."""

    def __init__(self, tag: str) -> None:
        super().__init__()
        self.pretrained_cfg = get_pretrained_cfg(tag).to_dict()


def test_every_tag_of_the_catalogue_has_timms_own_transform() -> None:
    """Tags of one config are one case; the image is odd in both sides and wider than high."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8))
    cases: dict[str, tuple[Configured, int]] = {}
    for tag in list_pretrained():
        network = Configured(tag)
        resolved = resolve_model_data_config(network)
        key = repr(sorted(resolved.items()))
        cases[key] = network, cases.get(key, (network, 0))[1] + 1
    modes = {"center": 0, "squash": 0, "border": 0}
    for network, count in cases.values():
        config = resolve_model_data_config(network)
        modes[config["crop_mode"]] += count
        spec = timm_input(network)
        assert torch.equal(transform_for(spec)(image), create_transform(**config)(image)), config
        assert "crop_mode=" in repr(spec)
    assert modes["squash"] > 65
    assert modes["border"] > 0


@pytest.mark.parametrize("crop_mode", ["squash", "border"])
def test_crop_modes_reach_the_numbers(crop_mode: str) -> None:
    """Of an image of other proportions a network sees what timm's own transform shows it."""
    network = CASES["mixer"].network()
    model = as_model(network, crop_mode=crop_mode)
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 90, 3), dtype=np.uint8))
    images = from_arrays([np.asarray(image)])
    transform = create_transform(
        (3, 32, 32),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode=crop_mode,
    )
    found = mp.extract(model, images, "blocks")
    assert f"crop_mode='{crop_mode}'" in found.record.transform
    np.testing.assert_array_equal(
        found["blocks.0"], mp.extract(model, transform(image)[None], "blocks")["blocks.0"]
    )
    centred = mp.extract(as_model(network), images, "blocks")
    assert np.abs(found["blocks.0"] - centred["blocks.0"]).max() > 1e-3
    pixels = transform(image) * 0.5 + 0.5
    np.testing.assert_allclose(
        input_pictures(model, images, [0])[0], (255 * pixels).permute(1, 2, 0), atol=0.51
    )


# -- other numbers of channels ---------------------------------------------------------------------


def grey_mixer(channels: int) -> nn.Module:
    torch.manual_seed(0)
    return MlpMixer(
        img_size=32, patch_size=8, embed_dim=8, num_blocks=1, num_classes=3, in_chans=channels
    ).eval()


def model_of(channels: int, **options: Any) -> mp.Model:
    stated = {"input_size": (channels, 32, 32), "mean": (0.4,) * channels, "std": (0.2,) * channels}
    return as_model(grey_mixer(channels), **(stated | options))


def test_grey_and_colour_images_go_to_a_network_of_one_channel(tmp_path: Path) -> None:
    for name, mode in (("a", "L"), ("b", "RGB"), ("c", "RGBA"), ("d", "P")):
        Image.fromarray(PIXELS[0]).convert(mode).save(tmp_path / f"{name}.png")
    model, images = model_of(1), mp.load_images(tmp_path)
    batch = next(images.batches(transform_of(model), 4))
    assert tuple(batch.shape) == (4, 1, 32, 32)
    for i, image in enumerate(images):
        # ITU-R 601 luma.
        luma = np.asarray(image, dtype=np.float64) @ [0.299, 0.587, 0.114]
        np.testing.assert_allclose(batch[i, 0], (luma / 255 - 0.4) / 0.2, atol=0.011)
    grey = np.asarray(Image.open(tmp_path / "a.png"))
    np.testing.assert_allclose(batch[0, 0], (grey / 255 - 0.4) / 0.2, atol=1e-6)
    found = mp.extract(model, images, "all")
    np.testing.assert_array_equal(found["blocks.0"], mp.extract(model, batch, "all")["blocks.0"])
    assert input_pictures(model, images, [0]).shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(input_pictures(model, images, [0])[0, ..., 1], grey)


@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_finished_tensors_of_any_number_of_channels_pass_untouched(channels: int) -> None:
    model = model_of(channels)
    x = torch.randn(3, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    found = mp.extract(model, x, "blocks", reduce="none")["blocks.0"]
    with torch.no_grad():
        wanted = model.module.blocks(model.module.stem(x))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    with pytest.raises(
        ImagesError,
        match=rf"the images are \(2, 32, 32\) and MlpMixer takes \({channels}, 32, 32\)",
    ):
        mp.extract(model, torch.zeros(1, 2, 32, 32), "blocks")


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_images_are_refused_by_networks_of_other_channels(channels: int) -> None:
    images = from_arrays(PIXELS)
    with pytest.raises(
        ImagesError,
        match=(
            rf"takes {channels} channels, and an image has 1 .* or 3 .* give a tensor \[n, "
            rf"{channels}, 32, 32\]"
        ),
    ):
        mp.extract(model_of(channels), images, "blocks")


@pytest.mark.parametrize(
    ("channels", "mean"),
    [
        (1, (0.449,)),
        (2, (0.485, 0.456)),
        (4, (0.485, 0.456, 0.406, 0.485)),
        (3, (0.485, 0.456, 0.406)),
    ],
)
def test_timm_networks_of_other_channels_say_so(channels: int, mean: tuple[float, ...]) -> None:
    model = mp.load_model("resnet10t", pretrained=False, in_chans=channels, device="cpu")
    assert model.input.size[0] == channels
    assert model.input.mean == pytest.approx(mean)
    assert mp.extract(model, torch.zeros(1, *model.input.size), "stem")["maxpool"].shape == (1, 64)


def test_distortions_are_refused_for_networks_of_other_channels() -> None:
    with pytest.raises(
        ModelError, match="distortions need RGB input, and the network takes 1 channels"
    ):
        standard_distortions(model_of(1))


# -- tensors of pixels -----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_uint8_tensors_are_pixels(channels: int) -> None:
    mean, std = (0.5, 0.3, 0.2, 0.7)[:channels], (0.2, 0.25, 0.3, 0.1)[:channels]
    model = model_of(channels, mean=mean, std=std)
    raw = torch.from_numpy(
        np.random.default_rng(3).integers(0, 256, (5, channels, 32, 32), dtype=np.uint8)
    )
    column = (channels, 1, 1)
    finished = (raw.double() / 255 - torch.tensor(mean).double().reshape(column)) / torch.tensor(
        std
    ).double().reshape(column)
    a, b = (mp.extract(model, x, "blocks", batch_size=2) for x in (raw, finished.float()))
    np.testing.assert_allclose(a["blocks.0"], b["blocks.0"], atol=1e-5)
    for source in (raw, finished.float()):
        pixels = torch.cat(list(pixel_batches(model, source, 2)))
        np.testing.assert_allclose(pixels, raw.numpy() / 255, atol=1e-6)


def test_uint8_tensors_agree_with_images_bit_for_bit() -> None:
    model, images = as_model(CASES["vit"].network()), from_arrays(PIXELS)
    raw = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    a, b = (mp.extract(model, source, "blocks")["blocks.0"] for source in (raw, images))
    np.testing.assert_array_equal(a, b)
    maps = [
        mp.attribute(model, source, "input_x_gradient", target=1).maps for source in (raw, images)
    ]
    np.testing.assert_array_equal(*maps)
    np.testing.assert_array_equal(input_pictures(model, raw, [1]), PIXELS[[1]])
    with pytest.raises(ImagesError, match=r"the images are \(3, 16, 16\)"):
        mp.extract(model, raw[..., :16, :16], "blocks")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_tensors_of_other_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(
        ImagesError,
        match=r"floating point \(finished inputs\) or uint8 \(pixels, 0 to 255\), not torch\.",
    ):
        mp.extract(as_model(CASES["vit"].network()), noise(2).to(dtype), "blocks")


# -- statements that are refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"mean": 0.5},
            r"mean is one finite number per channel, such as \(0\.5, 0\.5, 0\.5\), not 0\.5",
        ),
        ({"mean": (0.5, 0.5)}, r"mean is one finite number per channel, .* not \(0\.5, 0\.5\)"),
        ({"mean": "imagenet"}, "mean is one finite number per channel, .* not 'imagenet'"),
        ({"mean": (0.5, float("inf"), 0.5)}, "mean is one finite number"),
        ({"std": 1}, "std is one finite number per channel, .* not 1"),
        ({"std": (0.5,) * 4}, "std is one finite number per channel"),
        ({"std": (0.5, 0.5, 0)}, r"std must be above 0 in every channel, got \(0\.5, 0\.5, 0\.0\)"),
        ({"std": (0.5, -0.5, 0.5)}, "std must be above 0"),
        ({"std": (0.5, float("nan"), 0.5)}, "std is one finite number"),
        ({"std": [0.5, None, 0.5]}, "std is one finite number"),
        (
            {"input_size": 224},
            r"input_size is \(channels, height, width\), three whole numbers above 0, not 224",
        ),
        ({"input_size": "224"}, "input_size is .* not '224'"),
        ({"input_size": (3, 32.5, 32)}, "input_size is .* not"),
        ({"input_size": (3, 0, 32)}, "input_size is .* not"),
        ({"input_size": (3, None, 32)}, "input_size is .* not"),
        ({"crop_pct": 0}, "crop_pct (must be above 0|is a finite number)"),
        ({"crop_pct": float("nan")}, "crop_pct (must be above 0|is a finite number)"),
        ({"crop_pct": "0.9"}, "crop_pct (must be above 0|is a finite number)"),
        ({"interpolation": "bicubc"}, "unknown interpolation 'bicubc'; closest: bicubic"),
        ({"interpolation": 3}, "unknown interpolation '3'"),
        ({"crop_mode": "centre"}, "unknown crop mode 'centre'; closest: center"),
    ],
)
@pytest.mark.parametrize("kind", ["custom", "timm"])
def test_an_input_that_cannot_be(given: dict[str, Any], sentence: str, kind: str) -> None:
    model = CASES["mixer"].network() if kind == "custom" else timm.create_model("test_vit")
    stated = (
        {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
        if kind == "custom"
        else {}
    )
    with pytest.raises(ModelError, match=sentence) as caught:
        mp.load_model(model, device="cpu", **(stated | given))
    assert "\n" not in str(caught.value)
