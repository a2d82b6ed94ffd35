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
from mixer_probe.weights.figures import kernel_dictionary, kernel_energy, kernel_maps, singular_values, token_mixing_units


def block_path(model: Model, block: int) -> str:
    """The module path of a block by number (negative ones count from the end). Raises LayerError that names the range."""
    paths = [b.path for b in model.structure.blocks]
    if not -len(paths) <= block < len(paths):
        raise LayerError(f"{model.name} has blocks 0 to {len(paths) - 1}, not {block}")
    return paths[block]


def block_pictures(results: Sequence[Result], path: str) -> dict[str, Figure]:
    """What can be drawn of the block `path` alone, by a name for a file: its units, kernels, shared kernels, spectra."""
    drawn: dict[str, Figure] = {}
    for r in results:
        own: Any = r
        drawn |= {f"{kind}-{slug(own.model.name.removeprefix('zoo:'))}-{path}": f for kind, f in _pictures(r, path).items()}
    return drawn


def _pictures(result: Any, path: str) -> dict[str, Figure]:
    if isinstance(result, TokenMixing):
        return {f"units-{side}": token_mixing_units(result, path, side=side) for side in result.sides}
    if isinstance(result, SpatialKernels):
        return _kernel_pictures(result, [k.block for k in result.kernels if k.block == path and k.matrix is not None])
    if isinstance(result, KernelTying):
        return _tying_pictures(result, [i for i, entry in enumerate(result.layers) if entry.block == path])
    if isinstance(result, WeightSpectra):
        return {"spectra": singular_values(result, [path])}
    return {}


def _kernel_pictures(result: SpatialKernels, blocks: Sequence[str]) -> dict[str, Figure]:
    return {"kernels": kernel_maps(result, blocks)} if blocks else {}


def _tying_pictures(result: KernelTying, layers: Sequence[int]) -> dict[str, Figure]:
    if not layers or all(result.layers[i].source == "construction" for i in layers):
        return {}
    return {"tying-energy": kernel_energy(result, layers), "tying-kernels": kernel_dictionary(result, layers)}
