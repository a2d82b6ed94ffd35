"""Recipes: networks of the zoo and of timm, and settings that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from mixer_probe.core.errors import ModelError
from mixer_probe.training import Recipe, train
from mixer_probe.training.recipe import first_difference
from mixer_probe.zoo.architectures import construct
from tests.training.small import images, recipe


def vector(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_a_bundled_network_is_that_of_the_zoo() -> None:
    assert torch.equal(vector(Recipe("vit", seed=1).build(10)), vector(construct("vit", 1)))


def test_a_network_of_timm_by_its_name(tmp_path: Path) -> None:
    arguments = {"img_size": 16, "patch_size": 4, "depth": 2}
    made = recipe("test_vit", arguments=arguments, seed=1)
    before = torch.random.get_rng_state()
    first = made.build(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(vector(first), vector(made.build(3)))
    assert not torch.equal(vector(first), vector(recipe("test_vit", arguments=arguments).build(3)))
    assert isinstance(first, type(timm.create_model("test_vit")))
    assert (len(first.blocks), first.head.out_features, first.training) == (2, 3, True)
    run = train(made, images(), images(30, "test", 1), tmp_path, stop_after=None)
    assert run is not None
    assert run.card.architecture == {
        "network": "test_vit",
        "class": "timm.models.vision_transformer.VisionTransformer",
        "arguments": {"num_classes": 3, **arguments},
    }
    assert run.model(made).family == "vit"


@pytest.mark.parametrize(
    ("network", "arguments", "said"),
    [
        ("mixr", {}, "unknown network 'mixr' (closest: mixer"),
        ("resnet1", {}, "unknown network 'resnet1' (closest: resnet"),
        ("mixer", {"patchsize": 4}, "mixer cannot be built with num_classes=3, patchsize=4: "),
        ("vit", {"num_heads": 3}, "vit cannot be built with num_classes=3, num_heads=3: "),
        ("test_vit", {"depht": 2}, "test_vit cannot be built with num_classes=3, depht=2: "),
        ("mixer", {"token_groups": 5}, "128 channels cannot be divided into 5 groups"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(
    network: str, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError) as error:
        Recipe(network, arguments).build(3)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"optimizer": "adam"}, "unknown optimizer 'adam' (closest: adamw"),
        ({"precision": "float16"}, "unknown precision 'float16'"),
        ({"epochs": 0}, "epochs is a whole number, 1 or more, not 0"),
        ({"warmup": 5}, "warmup is a fraction from 0 to 1, not 5"),
        ({"ema_decay": -0.1}, "ema_decay is a fraction from 0 to 1, not -0.1"),
        ({"arguments": {"act_layer": nn.GELU}}, "arguments are plain data that JSON can hold"),
    ],
)
def test_settings_out_of_range(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as error:
        Recipe(**setting)
    assert said in str(error.value)


def test_frozen_names_are_those_of_parameters() -> None:
    with pytest.raises(ModelError, match="no parameter of mixer has 'attn' in its name"):
        Recipe("mixer", frozen=("attn",)).build(10)
    network = recipe(frozen=("mlp_tokens",)).build(3)
    frozen = [name for name, value in network.named_parameters() if not value.requires_grad]
    assert len(frozen) == 2 * 4
    assert all("mlp_tokens" in name for name in frozen)


def test_the_first_difference_is_named_with_both_values() -> None:
    one = {"a": 1, "b": {"c": [1, 2], "d": 3}, "e": 4}
    assert first_difference(one, one) == ""
    assert first_difference(one, {**one, "b": {"c": [1, 3], "d": 4}, "e": 5}) == (
        "b.c was [1, 2] and is [1, 3]"
    )
    assert first_difference({"a": 1}, {"a": 1, "f": 2}) == "f was None and is 2"
    assert first_difference({"a": 1, "f": 2}, {"a": 1}) == "f was 2 and is None"
