"""The analyses of weights of a network and its untrained baseline: for the report and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from mixer_probe import catalog
from mixer_probe.capture import ImageSource
from mixer_probe.core.analysis import Analysis
from mixer_probe.core.errors import LayerError, MixerProbeError
from mixer_probe.core.result import Result
from mixer_probe.core.skipped import Skipped
from mixer_probe.core.text import slug
from mixer_probe.models import Model
from mixer_probe.weights import KernelTying, SpatialKernels, TokenMixing, WeightSpectra
from mixer_probe.weights.figures import kernel_dictionary, kernel_energy, kernel_maps, singular_values, token_mixing_units

Images = ImageSource | None


def weight_results(models: Sequence[Model], what: Sequence[str] | None = None, images: Images = None) -> list[Result]:
    """Analyses of the weights of the first of `models`, and of its untrained baselines after it where a baseline means something.

    `what` names some of the room's analyses; one that a network cannot have is then an error (ModelError). By default all are
    made that the family may have, and one that fails is `Skipped`. `images` are for the kernels of Mixers and ViTs that are
    measured on data; without any these are left out."""
    room = catalog.room("weights")
    if what is not None:
        chosen = [room[name] for name in room.check(what)]
        return [analysis.run(m, images) for analysis in chosen for m in _looked_at(models, analysis)]
    found: list[Result] = []
    for analysis in room.analyses:
        if models[0].family in analysis.families:
            found += _attempts(analysis, _looked_at(models, analysis), images)
    return found


def _looked_at(models: Sequence[Model], analysis: Analysis) -> Sequence[Model]:
    return models if analysis.baseline else models[:1]


def _attempts(analysis: Analysis, models: Sequence[Model], images: Images) -> list[Result]:
    found: list[Result] = []
    for model in models:
        try:
            found.append(analysis.run(model, images))
        except MixerProbeError as error:
            # What a network cannot have its twin cannot have either.
            return [*found, Skipped.because(f"{analysis.title} of {model.name}", error)]
    return found


def block_path(model: Model, block: int) -> str:
    """The module path of a block by number (negative ones count from the end). Raises LayerError that names the range."""
    paths = [b.path for b in model.structure.blocks]
    if not -len(paths) <= block < len(paths):
        raise LayerError(f"{model.name} has blocks 0 to {len(paths) - 1}, not {block}")
    return paths[block]


def block_pictures(results: Sequence[Result], path: str) -> dict[str, Figure]:
    """What can be drawn of the block `path` alone, by a name for a file: its units, kernels, shared kernels, spectra."""
    return {f"{kind}-{_model_name(r)}-{path}": figure for r in results for kind, figure in _pictures(r, path).items()}


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


def _model_name(result: Any) -> str:
    return slug(result.model.name.removeprefix("zoo:"))
