"""Figures of one block alone: its units, kernels, shared kernels and spectra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from mixer_probe.core.errors import LayerError
from mixer_probe.core.result import Result
from mixer_probe.core.text import slug
from mixer_probe.models import Model
from mixer_probe.weights import KernelTying, SpatialKernels, TokenMixing, WeightSpectra
from mixer_probe.weights.figures import (
    kernel_dictionary,
    kernel_energy,
    kernel_maps,
    singular_values,
    token_mixing_units,
)


def block_path(model: Model, block: int) -> str:
    """The module path of a block by number (negative ones count from the end). Raises LayerError
    that names the range."""
    paths = [b.path for b in model.structure.blocks]
    if not -len(paths) <= block < len(paths):
        raise LayerError(f"{model.name} has blocks 0 to {len(paths) - 1}, not {block}")
    return paths[block]


def block_pictures(results: Sequence[Result], path: str) -> dict[str, Figure]:
    """What can be drawn of the block `path` alone, by a name for a file: its units, kernels, shared
    kernels, spectra."""
    drawn: dict[str, Figure] = {}
    for r in results:
        result: Any = r
        own: dict[str, Figure] = {}
        if isinstance(r, TokenMixing):
            own = {f"units-{side}": token_mixing_units(r, path, side=side) for side in r.sides}
        elif isinstance(r, SpatialKernels):
            blocks = [k.block for k in r.kernels if k.block == path and k.matrix is not None]
            own = {"kernels": kernel_maps(r, blocks)} if blocks else {}
        elif isinstance(r, KernelTying):
            layers = [i for i, entry in enumerate(r.layers) if entry.block == path]
            if any(r.layers[i].source != "construction" for i in layers):
                own = {
                    "tying-energy": kernel_energy(r, layers),
                    "tying-kernels": kernel_dictionary(r, layers),
                }
        elif isinstance(r, WeightSpectra):
            own = {"spectra": singular_values(r, [path])}
        drawn |= {
            f"{kind}-{slug(result.model.name.removeprefix('zoo:'))}-{path}": f
            for kind, f in own.items()
        }
    return drawn
