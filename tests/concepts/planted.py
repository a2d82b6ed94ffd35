"""Activations of three networks made of known atoms, shared by known sets of networks, in the
networks' own directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixer_probe.concepts.grid_activations import GridActivations
from mixer_probe.core.result import ImagesRecord, ModelRecord
from mixer_probe.models.layer import Layer

WIDTHS = (32, 32, 48)
# The networks that have each of 30 atoms: 12 atoms all, 9 two, 9 one.
SETS = [(0, 1, 2)] * 12 + [(0, 1), (1, 2), (0, 2)] * 3 + [(0,), (1,), (2,)] * 3
SIDE = 4


@dataclass(frozen=True)
class Planted:
    """`parts` of every network, `energies` [network, atom] of normalised activations, `directions`
    [atom, sum of widths] of unit norm, of normalised activations of all networks side by side."""

    parts: list[GridActivations]
    energies: np.ndarray
    directions: np.ndarray

    @property
    def sharedness(self) -> np.ndarray:
        """Entropy of the energy over networks, relative to that of equal ones [atom]."""
        p = self.energies / self.energies.sum(0)
        terms = np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)
        return -terms.sum(0) / np.log(len(p))


def planted(images: int, seed: int = 0, noise: float = 0.05, draw: int = 0) -> Planted:
    """Three active atoms of 30 at every position, with amplitudes from 0.5 to 1.5. `seed` decides
    the atoms, `draw` the images."""
    rng = np.random.default_rng(seed)
    atoms = [rng.normal(size=(len(SETS), width)) for width in WIDTHS]
    atoms = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in atoms]
    has = np.array([[i in which for which in SETS] for i in range(len(WIDTHS))], dtype=float)
    rng = np.random.default_rng((seed, draw))
    n = images * SIDE**2
    code = np.zeros((n, len(SETS)))
    for _ in range(3):
        code[np.arange(n), rng.integers(len(SETS), size=n)] = rng.uniform(0.5, 1.5, n)
    parts, energies, directions = [], [], []
    for i, width in enumerate(WIDTHS):
        x = (code * has[i]) @ atoms[i] + noise * rng.normal(size=(n, width)) / width**0.5
        scale = np.sqrt(np.square(x - x.mean(0)).sum(1).mean())
        energies.append(np.square(code).mean(0) * has[i] / scale**2)
        directions.append(atoms[i] * has[i][:, None] / scale)
        parts.append(activations(x.reshape(images, SIDE**2, width), f"net{i}"))
    joined = np.concatenate(directions, 1)
    joined /= np.linalg.norm(joined, axis=1, keepdims=True)
    return Planted(parts, np.array(energies), joined)


def activations(values: np.ndarray, name: str = "net", keys: str = "image") -> GridActivations:
    """[image, cell, channel] as the activations of a network."""
    n, cells, width = values.shape
    side = int(cells**0.5)
    names = tuple(f"{keys}{i}" for i in range(n))
    return GridActivations(
        ModelRecord(name, "mixer", True, "made", name, 1),
        Layer("blocks.0", "block", 0.5, (side, side), width, 0, cells),
        ImagesRecord("made", "", n, 0, keys),
        names,
        names,
        (side, side),
        values.astype(np.float32),
    )
