"""Small results on training runs, with made-up values."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixer_probe.training import RunQuantity, RunSimilarity, StudyAnswer, UnitHistory

ARMS = ("original", "patches", "global")


def quantity(values: np.ndarray, **more: Any) -> RunQuantity:
    """Of values [arm, seed, step, layer]."""
    arms, seeds, steps, layers = values.shape
    about: dict[str, Any] = {
        "quantity": "test accuracy",
        "unit": "%",
        "family": "mixer",
        "arms": ARMS[:arms],
        "seeds": tuple(range(seeds)),
        "steps": tuple(2**i for i in range(steps)),
        "layers": tuple(f"blocks.{i}" for i in range(layers)),
        "depths": np.arange(1, layers + 1) / layers,
        "n": "100 test images",
        "protocol": "one epoch",
        "machine": "2 CPU cores",
    }
    return RunQuantity(values=values, **(about | more))


def similarity(values: np.ndarray, arms: tuple[str, ...], seeds: tuple[int, ...]) -> RunSimilarity:
    """Of values [network, network, layer]."""
    layers = values.shape[-1]
    depths = np.arange(1, layers + 1) / layers
    names = tuple(f"blocks.{i}" for i in range(layers))
    about = ("100 test images", "one epoch", "2 CPU cores")
    return RunSimilarity("CKA", "mixer", arms, seeds, names, depths, values, *about)


def quantities() -> list[RunQuantity]:
    """A training curve of two families, their final accuracies, a quantity by layer, one by step
    and layer, and one of a single arm."""
    random = np.random.default_rng(0)
    rise = (
        np.linspace(0.1, 0.7, 5)[None, None, :, None]
        * np.array([1, 0.98, 0.7])[:, None, None, None]
    )
    curves = rise + 0.01 * random.normal(size=(3, 3, 5, 1))
    layers = 0.4 + 0.05 * np.arange(4) + 0.01 * random.normal(size=(2, 3, 1, 4))
    maps = 0.5 + 0.1 * random.normal(size=(1, 3, 5, 4))
    during = {"quantity": "test accuracy during training", "layers": ("network",)}
    return [
        quantity(curves, **during),
        quantity(curves - 0.05, **during, family="vit"),
        quantity(curves[:, :, -1:], layers=("network",)),
        quantity(
            curves[:, :, -1:] - 0.3 * (np.arange(3) == 2)[:, None, None, None],
            family="cnn",
            layers=("network",),
        ),
        quantity(layers, quantity="mean frequency of token-mixing units", unit="cycles/token"),
        quantity(maps, quantity="linear probe accuracy"),
        quantity(10 * layers[:1], quantity="step at half of the way", unit="log2"),
    ]


def similarities() -> list[RunSimilarity]:
    """CKA of two arms that are as far apart as seeds are, and of one that is farther."""
    random = np.random.default_rng(0)
    noise = 0.01 * random.normal(size=(9, 9, 4))
    far = np.kron(np.array([[0.9, 0.9, 0.5], [0.9, 0.9, 0.5], [0.5, 0.5, 0.9]]), np.ones((3, 3)))
    arms = tuple(arm for arm in ARMS for _ in range(3))
    return [similarity(far[..., None] + noise + noise.transpose(1, 0, 2), arms, (0, 1, 2) * 3)]


def answers() -> list[StudyAnswer]:
    """A question with two sentences."""
    return [StudyAnswer("Does the order matter?", ("To a CNN it does.", "To a Mixer it does not."))]


def histories() -> list[UnitHistory]:
    """Four units that grow from noise to plane waves."""
    y, x = np.mgrid[:8, :8] / 8
    waves = np.stack([np.cos(2 * np.pi * (k * x + (k % 2) * y)) for k in range(4)])
    noise = np.random.default_rng(0).normal(size=(4, 8, 8))
    maps = np.stack([part * waves + (1 - part) * noise for part in (0, 0.3, 1)])
    return [UnitHistory("mixer-original-s0", "blocks.0", (0, 10, 100), maps.astype(np.float32))]
