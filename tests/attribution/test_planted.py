"""Where one quadrant decides the class, every method points at it, and deletion and insertion tell
maps from noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe import attribution as at
from tests.attribution.planted import HALF, pictures

# Before positions are mixed: after that a network may keep what it saw wherever it likes.
FIRST_MAPS = {"mixer": "network.stem", "vit": "network.patch_embed", "cnn": "network.conv1"}
FAMILIES = tuple(FIRST_MAPS)


def explained(model: mp.Model, family: str, method: str) -> at.Attribution:
    options = {"gradcam": {"layer": FIRST_MAPS[family], "relu": False}, "occlusion": {"window": 4}}
    return mp.attribute(model, pictures(8), method, **options.get(method, {}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def maps(planted: dict[str, mp.Model]) -> dict[str, list[at.Attribution]]:
    return {
        f: [explained(planted[f], f, name) for name in at.allowed_methods(planted[f])]
        for f in FAMILIES
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_puts_most_of_its_mass_in_the_quadrant(
    maps: dict[str, list[at.Attribution]], family: str
) -> None:
    expected = {
        "saliency",
        "input_x_gradient",
        "integrated_gradients",
        "smoothgrad",
        "occlusion",
        "gradcam",
    }
    expected |= {"vit": {"attention_rollout", "gradient_attention"}, "cnn": {"deeplift"}}.get(
        family, set()
    )
    assert {m.method for m in maps[family]} == expected
    for found in maps[family]:
        size = np.abs(found.maps)
        fraction = size[:, :HALF, :HALF].sum((1, 2)) / size.sum((1, 2))
        # Pixels are exact; maps of a grid are enlarged, and reach beyond the quadrant by that.
        exact = found.native is None
        assert fraction.min() > (0.999999 if exact else 0.5), (found.method, fraction)


@pytest.mark.parametrize("family", FAMILIES)
def test_deletion_and_insertion_rank_maps_above_random_orders(
    planted: dict[str, mp.Model], maps: dict[str, list[at.Attribution]], family: str
) -> None:
    # Magnitudes do not tell for from against: where patches speak against the class, saliency
    # removes those as well.
    real = [
        m for m in maps[family] if m.method in ("integrated_gradients", "occlusion", "deeplift")
    ]
    noise = replace(
        real[0], method="noise", maps=np.random.default_rng(0).random(real[0].maps.shape)
    )
    curves = at.perturbation_curves(
        planted[family],
        pictures(8),
        [*real, noise],
        grid=(4, 4),
        insertion_baseline="mean",
        random_orders=6,
    )
    frame = curves.to_frame().set_index(["mode", "method"])
    for game in ("deletion", "insertion"):
        for found in real:
            assert frame.loc[(game, found.method), "gain_low"] > 0, (game, found.method)
            assert frame.loc[(game, found.method), "gain"] > frame.loc[(game, "noise"), "gain"]
        assert frame.loc[(game, "random order"), "gain"] == 0
