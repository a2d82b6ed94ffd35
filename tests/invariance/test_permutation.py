"""Patches and the weights that know their order, permuted together: logits stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mixer_probe as mp
from mixer_probe.core.errors import ModelError
from mixer_probe.images import Distortion, PatchShuffle, PixelShuffle, Shift, paper_shuffle
from mixer_probe.images.distortions import Chain, permute_cells
from mixer_probe.invariance import absorb_distortion, permute_patches
from mixer_probe.zoo.architectures import construct
from tests.networks import CASES, CNNS, MIXERS, UNTIED, VITS, Case, as_model, noise, randomised

BY_POSITION_EMBEDDING = (
    "vit",
    "vit-gap",
    "vit-attention-pooling",
    "deit-distilled",
    "dinov2-registers",
)
WORKS = [*MIXERS, *UNTIED, *(case for case in VITS if case.name in BY_POSITION_EMBEDDING)]


@pytest.mark.parametrize("case", WORKS, ids=lambda case: case.name)
def test_logits_stay_when_patches_and_weights_are_permuted_together(case: Case) -> None:
    model = case.model(torch.float64)
    images, order = (
        case.images(4, torch.float64),
        torch.randperm(16, generator=torch.Generator().manual_seed(5)),
    )
    permuted, moved = permute_patches(model, order), permute_cells(images, order, 4)
    with torch.no_grad():
        plain, unmoved, together = model.module(images), model.module(moved), permuted.module(moved)
        alone = permuted.module(images)
    assert (together - plain).abs().max() < 1e-10
    # The test means something: either change alone moves the logits.
    assert (unmoved - plain).abs().max() > 1e-3
    assert (alone - plain).abs().max() > 1e-3


@pytest.mark.parametrize("case", WORKS, ids=lambda case: case.name)
def test_the_inverse_permutation_gives_the_very_weights_back(case: Case) -> None:
    model, order = case.model(), np.random.default_rng(0).permutation(16)
    before = {name: p.clone() for name, p in model.module.named_parameters()}
    back = permute_patches(permute_patches(model, order), np.argsort(order))
    for name, parameter in back.module.named_parameters():
        assert torch.equal(parameter, before[name]), name
    for name, parameter in model.module.named_parameters():
        assert torch.equal(parameter, before[name]), "the original was changed"


def test_a_network_that_is_shuffled_like_its_images_predicts_what_it_did() -> None:
    """One order for all images, as in the paper: the permuted Mixer is what training on such images
    can reach."""
    model, shuffle = mp.load_model("zoo:mixer-s0", device="cpu"), PatchShuffle(16, shared=True)
    images = mp.load_images("demo", limit=16)
    permuted = permute_patches(model, shuffle.order([0])[0])
    plain = mp.invariance.predictions(model, images)[0]
    np.testing.assert_array_equal(
        mp.invariance.predictions(permuted, images, (shuffle,))[0][1], plain[0]
    )
    assert permuted.name == "zoo:mixer-s0, patches permuted"
    assert permuted.weights.trained


def test_mixer_b16_at_its_real_size() -> None:
    model = mp.load_model("mixer_b16_224", pretrained=False, device="cpu", dtype="float64")
    randomised(model.module)
    images, order = (
        noise(1, 224, torch.float64),
        torch.randperm(196, generator=torch.Generator().manual_seed(1)),
    )
    with torch.no_grad():
        plain = model.module(images)
        together = permute_patches(model, order).module(permute_cells(images, order, 14))
    assert plain.std() > 0.1
    assert (together - plain).abs().max() < 1e-10


@pytest.mark.parametrize(
    "name",
    ["resnet18", "convmixer", "beit", "eva", "swin", "hybrid"],
    ids=lambda name: f"{name} has its order elsewhere",
)
def test_networks_whose_order_no_weights_hold_are_told(name: str) -> None:
    case = next(case for case in (*VITS, *CNNS) if case.name == name)
    model = case.model()
    grid = model.structure.token_grid or (1, 1)
    with pytest.raises(ModelError, match="VisionTransformer"):
        permute_patches(model, range(grid[0] * grid[1]))


@pytest.mark.parametrize(
    "order",
    [range(15), [0] * 16, list(range(1, 17)), np.eye(16)],
    ids=["short", "twice", "from one", "matrix"],
)
def test_what_is_no_permutation_is_an_error(order: object) -> None:
    with pytest.raises(ModelError, match="each of 0 to 15 once"):
        permute_patches(MIXERS[0].model(), order)  # type: ignore[arg-type]


# -- patches and pixels ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", WORKS, ids=lambda case: case.name)
@pytest.mark.parametrize(
    "distortion",
    [
        paper_shuffle(4, seed=3),
        PatchShuffle(4, 5, shared=True),
        PixelShuffle(4, 5, shared=True),
        Chain((PixelShuffle(4, 1, shared=True), paper_shuffle(4), PatchShuffle(2, 2, shared=True))),
    ],
    ids=["paper", "patches", "pixels", "chain"],
)
def test_absorbed_distortions_give_the_logits_of_distorted_images(
    case: Case, distortion: Distortion
) -> None:
    model, images = case.model(torch.float64), case.images(3, torch.float64)
    absorbed = absorb_distortion(model, distortion)
    with torch.no_grad():
        expected, found = model.module(distortion(images)), absorbed.module(images)
        assert (found - expected).abs().max() < 1e-10
        # The test means something: the distortion moves the logits.
        assert (model.module(images) - expected).abs().max() > 1e-3
    back = absorb_distortion(absorbed, distortion)
    assert (back.module(distortion.undo(images)) - found).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["zoo:mixer", "zoo:vit"])
def test_trained_networks_absorb_the_shuffle_of_the_paper(name: str) -> None:
    model = mp.load_model(name, device="cpu", dtype="float64")
    shuffle, images = paper_shuffle(16, seed=7), noise(2, dtype=torch.float64)
    absorbed = absorb_distortion(model, shuffle)
    with torch.no_grad():
        expected = model.module(shuffle(images))
        assert (absorbed.module(images) - expected).abs().max() < 1e-10
    assert absorbed.name == f"{model.name}, 'patches and pixels in one order, 16×16' absorbed"
    assert absorbed.class_names == model.class_names
    assert absorbed.weights.trained


def test_an_untied_mixer_absorbs_the_shuffle_of_the_paper() -> None:
    arguments = {"patch_size": 4, "num_blocks": 2, "embed_dim": 12, "token_groups": 12}
    model = as_model(randomised(construct("mixer", 0, arguments)), dtype=torch.float64)
    shuffle, images = paper_shuffle(8, seed=1), noise(4, dtype=torch.float64)
    with torch.no_grad():
        expected = model.module(shuffle(images))
        assert (absorb_distortion(model, shuffle).module(images) - expected).abs().max() < 1e-10
        assert expected.std() > 1e-3


def test_the_untrained_baseline_is_changed_in_the_same_way() -> None:
    model, shuffle = mp.load_model("zoo:mixer", device="cpu", dtype="float64"), paper_shuffle(16)
    images = noise(2, dtype=torch.float64)
    baseline, absorbed = model.untrained(), absorb_distortion(model, shuffle).untrained()
    assert not absorbed.weights.trained
    with torch.no_grad():
        difference = absorbed.module(images) - baseline.module(shuffle(images))
    assert difference.abs().max() < 1e-10


@pytest.mark.parametrize(
    ("distortion", "reason"),
    [
        (paper_shuffle(1), r"token grid 4×4"),
        (paper_shuffle(2), r"token grid 4×4"),
        (paper_shuffle(8), r"token grid 4×4"),
        (PixelShuffle(4, shared=True, tied=False), r"in one order; give the .* token grid 4×4"),
        (PatchShuffle(4), r"'patches shuffled, 4×4' is no permutation that is the same for all"),
        (Chain((paper_shuffle(4), Shift(8, 0))), r"'cyclic shift, 8 px.* is no permutation"),
    ],
    ids=["all pixels", "coarse", "fine", "cells differ", "images differ", "shift"],
)
def test_distortions_that_weights_cannot_absorb(distortion: Distortion, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        absorb_distortion(CASES["mixer"].model(), distortion)


@pytest.mark.parametrize("name", ["resnetv2-basic", "convmixer", "swin", "eva"])
def test_networks_that_cannot_absorb_a_distortion(name: str) -> None:
    model = CASES[name].model()
    grid = model.structure.token_grid or (1, 1)
    with pytest.raises(ModelError, match="VisionTransformer"):
        absorb_distortion(model, paper_shuffle(grid))
