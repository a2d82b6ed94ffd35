"""What is made large, against plain hooks and written-out reductions, for every form of layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import mixer_probe as mp
from mixer_probe.core.errors import LayerError, MeasureError
from mixer_probe.visualization.network import for_pictures, one_layer, reading
from mixer_probe.visualization.objectives import Objective, make_objective
from tests.networks import CASES, positions

NAMES = ("mixer", "gmixer", "resmlp", "gmlp", "vit", "swin", "resnet-bottleneck", "convnext")
IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def pictures(model: mp.Model) -> Tensor:
    return IMAGES[..., : model.input.size[1], : model.input.size[2]]


def hooked(model: mp.Model, name: str, images: Tensor) -> Tensor:
    """The raw output of a module for RGB images in 0..1, normalised by hand with the graph."""
    found: list[Tensor] = []
    handle = model.module.get_submodule(name).register_forward_hook(
        lambda _m, _a, out: found.append(out.clone())
    )
    model.module((images - 0.5) / 0.5)
    handle.remove()
    return found[0]


def both_ways(model: mp.Model, objective: Objective, images: Tensor) -> Tensor:
    """The objective of all units [image, unit], as the ascent takes it (unit by unit) and as real
    images are ranked."""
    with reading(model, objective.layer) as read:
        found, _ = read(images)
        singles = [
            objective.number(objective.maps(found, torch.full((len(images),), row)))
            for row in range(len(objective.units))
        ]
        together = objective.of_all(objective.layer, found, None)
    torch.testing.assert_close(torch.stack(singles, 1), together)
    return together


def ask(model: mp.Model, name: str, units: object = None, **given: object) -> Objective:
    options = {"direction": None, "over": None, "position": None, "channel": None} | given
    return make_objective(one_layer(model, name), units, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", NAMES)
def test_channels_of_every_block_and_part(case: str) -> None:
    model = CASES[case].model(torch.float64)
    images, units = pictures(model), [3, 0]
    for layer in [layer for layer in model.layers if layer.positions]:
        raw = hooked(model, layer.module, images)
        expected = positions(raw, CASES[case].layout(layer.name))[:, layer.prefix_tokens :][
            ..., units
        ]
        for over, reduced in (
            ("mean", expected.mean(1)),
            ("peak", expected.max(1).values),
            ("rms", (expected**2).mean(1) ** 0.5),
        ):
            torch.testing.assert_close(
                both_ways(model, ask(model, layer.name, units, over=over), images), reduced
            )
        place = layer.positions - 2 if layer.grid is None else (layer.grid[0] - 1, 0)
        flat = layer.positions - 2 if layer.grid is None else (layer.grid[0] - 1) * layer.grid[1]
        torch.testing.assert_close(
            both_ways(model, ask(model, layer.name, units, position=place), images),
            expected[:, flat],
        )


@pytest.mark.parametrize("case", ["mixer", "gmixer"])
@pytest.mark.parametrize("part", ["fc1", "act"])
def test_hidden_units_of_token_mixing(case: str, part: str) -> None:
    model = CASES[case].model(torch.float64)
    images, units, name = pictures(model), [5, 2, 0], f"blocks.1.mlp_tokens.{part}"
    # timm's token-mixing MLP works on [image, channel, position]: its hidden units are the last
    # axis.
    expected = hooked(model, name, images)[:, :, units]
    assert ask(model, name, units).kind == "hidden unit"
    torch.testing.assert_close(
        both_ways(model, ask(model, name, units), images), (expected**2).mean(1) ** 0.5
    )
    torch.testing.assert_close(
        both_ways(model, ask(model, name, units, over="mean"), images), expected.mean(1)
    )
    torch.testing.assert_close(
        both_ways(model, ask(model, name, units, over="peak"), images), expected.max(1).values
    )
    torch.testing.assert_close(
        both_ways(model, ask(model, name, units, channel=7), images), expected[:, 7]
    )


@pytest.mark.parametrize("case", NAMES)
def test_classes(case: str) -> None:
    model = CASES[case].model(torch.float64)
    images = pictures(model)
    objective = ask(model, "head", [4, 1])
    assert objective.kind == "class"
    torch.testing.assert_close(
        both_ways(model, objective, images), model.module((images - 0.5) / 0.5)[:, [4, 1]]
    )


def test_directions() -> None:
    model = CASES["mixer"].model(torch.float64)
    images, rows = pictures(model), np.random.default_rng(0).normal(size=(2, 24))
    expected = (
        hooked(model, "blocks.0", images)
        @ torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    )
    found = ask(model, "blocks.0", direction=rows)
    torch.testing.assert_close(both_ways(model, found, images), expected.mean(1))
    # The length of a direction says nothing, and the direction of a single channel is the channel.
    torch.testing.assert_close(
        both_ways(model, ask(model, "blocks.0", direction=7 * rows[0]), images),
        expected[..., :1].mean(1),
    )
    alone = ask(model, "blocks.0", direction=np.eye(24)[6])
    torch.testing.assert_close(
        both_ways(model, alone, images), both_ways(model, ask(model, "blocks.0", 6), images)
    )


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("mixer", "blocks.1.mlp_tokens.fc1"),
        ("resnet-bottleneck", "layer2.0.conv1"),
        ("vit", "blocks.0"),
    ],
)
def test_gradients_reach_the_pixels(case: str, name: str) -> None:
    model = CASES[case].model(torch.float64)
    images = pictures(model).clone().requires_grad_()
    objective = ask(model, name, 1, over="rms")
    with reading(model, objective.layer) as read:
        found = objective.number(objective.maps(read(images)[0], torch.zeros(3, dtype=torch.int64)))
        (gradient,) = torch.autograd.grad(found.sum(), images)
    raw = hooked(model, name, images)
    # A hidden unit is a map over the channels, the axis after the image.
    values = (
        raw
        if case == "mixer"
        else positions(raw, CASES[case].layout(name))[:, objective.layer.prefix_tokens :]
    )
    expected = (values[:, :, 1] ** 2).mean(1) ** 0.5
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), images)[0])
    assert gradient.abs().max() > 0


def test_the_texts_say_what_is_made_large() -> None:
    model = CASES["mixer"].model()
    assert ask(model, "blocks.0", 1).text == "mean over positions"
    assert ask(model, "blocks.0", 1, position=(2, 3)).text == "at position 11 (row 2, column 3)"
    assert ask(model, "blocks.0.mlp_tokens.fc1", 1).text == "root mean square over channels"
    assert ask(model, "blocks.0.mlp_tokens.fc1", 1, channel=4).text == "at channel 4"
    assert ask(model, "head", 1).text == "the output itself"


@pytest.mark.parametrize(
    ("layer", "given", "sentence"),
    [
        ("blocks.0", {"units": 24}, "channel 24 is out of range: 'blocks.0' has channels 0 to 23"),
        ("blocks.0", {"units": [0, -1]}, "channel -1 is out of range"),
        (
            "blocks.0.mlp_tokens.fc1",
            {"units": 12},
            "hidden unit 12 is out of range: .* hidden units 0 to 11",
        ),
        ("head", {"units": 5}, "class 5 is out of range: 'head' has classes 0 to 4"),
        ("blocks.0", {"units": 0, "position": 16}, "positions 0 to 15"),
        ("blocks.0", {"units": 0, "position": (4, 0)}, "4×4"),
        ("blocks.0.mlp_tokens.fc1", {"units": 0, "channel": 24}, "channels 0 to 23"),
    ],
)
def test_what_a_layer_does_not_have(layer: str, given: dict[str, object], sentence: str) -> None:
    with pytest.raises(LayerError, match=sentence):
        ask(CASES["mixer"].model(), layer, **given)


@pytest.mark.parametrize(
    ("layer", "given", "sentence"),
    [
        ("blocks.0", {"units": 0, "over": "maen"}, "not 'maen'; closest: mean"),
        ("blocks.0", {}, "either units .* or a direction"),
        ("blocks.0", {"units": 0, "direction": np.ones(24)}, "either units .* or a direction"),
        ("blocks.0", {"units": 1.5}, "units must be"),
        ("blocks.0", {"units": [1, 1]}, "units must be"),
        ("blocks.0", {"units": []}, "units must be"),
        ("blocks.0", {"units": 0, "channel": 3}, "channel= is for hidden units"),
        ("blocks.0", {"units": 0, "over": "peak", "position": 3}, "one of the two"),
        ("blocks.0.mlp_tokens.fc1", {"units": 0, "position": 3}, "no positions to choose"),
        (
            "blocks.0.mlp_tokens.fc1",
            {"units": 0, "position": 3, "channel": 3},
            "no positions to choose",
        ),
        ("head", {"units": 0, "position": 0}, "no positions to choose"),
        ("blocks.0", {"direction": np.ones(23)}, "has 24 numbers"),
        ("blocks.0", {"direction": np.zeros(24)}, "not all 0"),
    ],
)
def test_questions_that_are_none(layer: str, given: dict[str, object], sentence: str) -> None:
    with pytest.raises(MeasureError, match=sentence):
        ask(CASES["mixer"].model(), layer, **given)


def test_layers_and_sizes() -> None:
    mixer, resnet = CASES["mixer"].model(), CASES["resnet-bottleneck"].model()
    with pytest.raises(
        LayerError, match=r"'blocks' stands for 2 layers; give one, such as 'blocks.1'"
    ):
        one_layer(mixer, "blocks")
    with pytest.raises(LayerError, match="closest"):
        one_layer(mixer, "blocks.0.mlp_token")
    with pytest.raises(
        MeasureError, match=r"does not take images of 48×48 px; leave size out for its own 32×32 px"
    ):
        for_pictures(mixer, 48)
    with pytest.raises(MeasureError, match="size is a side"):
        for_pictures(resnet, 0)
    assert for_pictures(resnet, (96, 128)).layer("layer1.0").grid == (24, 32)
    assert for_pictures(resnet, 64) is resnet
    assert resnet.layer("layer1.0").grid == (16, 16)
