"""Integrated gradients: what more nodes would move, against nodes by hand; a baseline that is one
picture for all networks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import mixer_probe as mp
from mixer_probe.attribution.baselines import make_baseline
from mixer_probe.core.inputs import InputSpec
from mixer_probe.images import from_arrays
from tests.attribution.small import small
from tests.networks import as_model, noise

N = 2


def by_hand(
    model: mp.Model,
    x: torch.Tensor,
    start: torch.Tensor,
    target: int,
    edges: list[float],
    nodes: int,
) -> np.ndarray:
    """Gauss-Legendre nodes on every piece of the way, one gradient after the other: [n, H, W]."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    total = torch.zeros_like(x)
    for a, b in pairwise(edges):
        for place, weight in zip(
            (a + b) / 2 + (b - a) / 2 * places, (b - a) / 2 * weights, strict=True
        ):
            image = (start + place * (x - start)).requires_grad_()
            (gradient,) = torch.autograd.grad(model.module(image)[:, target].sum(), image)
            total += weight * gradient
    return ((x - start) * total).sum(1).numpy()


def largest_fraction(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By which share of its magnitudes each of the maps `b` differs from `a`, [n]."""
    found: np.ndarray = np.abs(a - b).sum((1, 2)) / np.abs(b).sum((1, 2))
    return found


@pytest.mark.filterwarnings("ignore::mixer_probe.core.errors.IncompleteAttributionWarning")
@pytest.mark.parametrize("name", ["mixer", "resnet"])
def test_the_change_is_half_of_what_twice_the_nodes_moved(name: str) -> None:
    """With room for one halving, `change` is read from rules of k and of twice k nodes."""
    model, x = small(name), noise(N, dtype=torch.float64)
    found = mp.attribute(
        model, x, target=1, n_steps=4, max_steps=8, tolerance=1e-9, change=1e-9, baseline="mean"
    )
    start = torch.zeros_like(x)
    one, two = (by_hand(model, x, start, 1, edges, 4) for edges in ([0.0, 1.0], [0.0, 0.5, 1.0]))
    assert found.steps.tolist() == [8] * N
    np.testing.assert_allclose(found.maps, two, rtol=1e-4, atol=1e-6 * np.abs(two).max())
    np.testing.assert_allclose(found.change, largest_fraction(one, two) / 2, rtol=1e-4)


@pytest.mark.parametrize("name", ["mixer", "vit"])
def test_a_map_moves_no_more_than_its_change(name: str) -> None:
    """Smooth networks, against 256 nodes in 16 pieces; where less is asked for, more nodes are
    taken and less is left."""
    model, x = small(name), noise(N, dtype=torch.float64)
    edges = np.linspace(0, 1, 17).tolist()
    exact = by_hand(model, x, torch.zeros_like(x), 1, edges, 16)
    loose, tight = (
        mp.attribute(model, x, target=1, n_steps=4, tolerance=1.0, change=change, baseline="mean")
        for change in (0.2, 0.02)
    )
    for found, asked in ((loose, 0.2), (tight, 0.02)):
        assert (found.change <= asked).all()
        assert (largest_fraction(found.maps, exact) <= asked).all()
    assert (tight.steps >= loose.steps).all()
    assert (tight.change <= loose.change).all()


def test_without_room_to_halve_the_change_is_not_known() -> None:
    found = mp.attribute(
        small("mixer"),
        noise(N, dtype=torch.float64),
        target=1,
        n_steps=64,
        max_steps=64,
        change=1.0,
    )
    assert np.isnan(found.change).all()


# -- one grey for all networks ---------------------------------------------------------------------

STATISTICS = (
    ((0.5,) * 3, (0.5,) * 3),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.0,) * 3, (1.0,) * 3),
)


def spec_of(mean: tuple[float, ...], std: tuple[float, ...]) -> InputSpec:
    model = small("mixer", torch.float32)
    return replace(model.input, mean=mean, std=std)


@pytest.mark.parametrize(("name", "pixel"), [("grey", 0.5), ("black", 0.0)])
def test_a_baseline_is_one_picture_whatever_the_network_subtracts(name: str, pixel: float) -> None:
    for mean, std in STATISTICS:
        blank = make_baseline(name, spec_of(mean, std)).of(
            torch.zeros(1, 3, 4, 4, dtype=torch.float64)
        )
        pixels = blank * torch.tensor(std).double().view(1, 3, 1, 1) + torch.tensor(
            mean
        ).double().view(1, 3, 1, 1)
        torch.testing.assert_close(pixels, torch.full_like(pixels, pixel), atol=1e-7, rtol=0)


class Renormalised(nn.Module):
    """The network as a function of pixels, whatever they were normalised by."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        own_mean, own_std = ((torch.tensor(v).double().view(1, 3, 1, 1)) for v in STATISTICS[0])
        self.register_buffer("scale", torch.tensor(std).double().view(1, 3, 1, 1) / own_std)
        self.register_buffer(
            "shift", (torch.tensor(mean).double().view(1, 3, 1, 1) - own_mean) / own_std
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x * self.scale + self.shift)


@pytest.mark.parametrize("method", ["input_x_gradient", "integrated_gradients", "occlusion"])
def test_networks_that_are_one_function_of_pixels_have_one_map(method: str) -> None:
    """Of a Mixer under three means and deviations; against the mean colour, which is another
    picture for each, maps differ."""
    pixels = np.random.default_rng(0).integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
    images, network = from_arrays(pixels), small("mixer").module
    models = [
        as_model(Renormalised(network, *s).eval(), mean=s[0], std=s[1], dtype=torch.float64)
        for s in STATISTICS
    ]
    first, *others = (mp.attribute(model, images, method, target=1).maps for model in models)
    for maps in others:
        np.testing.assert_allclose(maps, first, rtol=1e-3, atol=1e-5 * np.abs(first).max())
    own, another = (
        mp.attribute(model, images, method, target=1, baseline="mean").maps for model in models[:2]
    )
    assert largest_fraction(own, another).min() > 0.01
