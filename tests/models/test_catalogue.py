"""The list of models: names, families, tags, without building any."""

from __future__ import annotations

import pytest
import timm

from mixer_probe.core.errors import ModelError
from mixer_probe.models import CatalogueEntry, list_models
from mixer_probe.models.structure import find_adapter
from tests.networks import shapes_only


def by_name(pattern: str) -> dict[str, CatalogueEntry]:
    return {entry.name: entry for entry in list_models(pattern)}


def test_families_follow_the_classes_and_not_the_names() -> None:
    entries = by_name("*mixer*")
    assert entries["mixer_b16_224"].family == entries["gmixer_24_224"].family == "mixer"
    assert entries["convmixer_768_32"].family == "cnn"
    assert {"zoo:mixer-s0", "zoo:mixer-s1"} <= entries.keys()


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("resmlp_12_224", "mixer"),
        ("gmlp_s16_224", "mixer"),
        ("deit_tiny_distilled_patch16_224", "vit"),
        ("vit_small_patch14_reg4_dinov2", "vit"),
        ("beit_base_patch16_224", "vit"),
        ("eva02_tiny_patch14_224", "vit"),
        ("swin_tiny_patch4_window7_224", "vit"),
        ("swinv2_tiny_window8_256", "vit"),
        ("vit_tiny_r_s16_p8_224", "vit"),
        ("resnet18", "cnn"),
        ("resnetv2_50", "cnn"),
        ("regnety_002", "cnn"),
        ("efficientnet_b0", "cnn"),
        ("mobilenetv2_035", "cnn"),
        ("mobilenetv3_small_050", "cnn"),
        ("mobilenetv4_conv_small", "cnn"),
        ("convnext_atto", "cnn"),
        ("convnextv2_atto", "cnn"),
    ],
)
def test_what_is_listed_is_what_loading_finds(name: str, family: str) -> None:
    network = shapes_only(timm.create_model, name)
    assert by_name(name)[name].family == family == find_adapter(network, name).family


def test_tags_are_timms() -> None:
    entry = by_name("mixer_b16_224")["mixer_b16_224"]
    assert {f"mixer_b16_224.{tag}" for tag in entry.tags} == set(
        timm.list_pretrained("mixer_b16_224.*")
    )
    assert [tag for tag, _ in entry.notes] == ["goog_in21k_ft_in1k"]


def test_only_two_tags_carry_a_note() -> None:
    noted = [(e.name, tag) for e in list_models() for tag, _ in e.notes]
    assert noted == [
        ("mixer_b16_224", "goog_in21k_ft_in1k"),
        ("mixer_l16_224", "goog_in21k_ft_in1k"),
    ]


def test_a_part_of_a_name_is_enough() -> None:
    assert by_name("mixer_s32").keys() == by_name("*mixer_s32*").keys() == {"mixer_s32_224"}


def test_nothing_found_lists_close_names() -> None:
    with pytest.raises(
        ModelError,
        match=r"no model of a known family matches 'miixer_b16'; closest: .*mixer_b16_224",
    ):
        list_models("miixer_b16")


def test_all_of_them_are_names_that_load() -> None:
    entries = [entry for entry in list_models() if not entry.name.startswith("zoo:")]
    assert len(entries) > 500
    assert all(timm.is_model(entry.name) for entry in entries)
    assert len({entry.name for entry in entries}) == len(entries)
