"""Which analyses of weights there are, and what they say of a list of networks: for the report and the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from mixer_probe.capture import ImageSource
from mixer_probe.errors import LayerError, MixerProbeError, ModelError, closest
from mixer_probe.figures import kernel_dictionary, kernel_energy, kernel_maps, singular_values, token_mixing_units
from mixer_probe.models import Model
from mixer_probe.report.skipped import Skipped
from mixer_probe.results import Result
from mixer_probe.weights import (
    KernelTying,
    SpatialKernels,
    TokenMixing,
    WeightSpectra,
    anatomy,
    kernel_tying,
    position_embeddings,
    spatial_kernels,
    stem_filters,
    token_mixing,
    weight_spectra,
)

Images = ImageSource | None


@dataclass(frozen=True)
class WeightAnalysis:
    """One analysis: `measure` takes a model and images, `families` may have what it looks at, and `twins` are looked at too."""

    title: str
    measure: Callable[[Model, Images], Result]
    families: tuple[str, ...] = ("mixer", "vit", "cnn")
    twins: bool = True


ANALYSES = {
    "anatomy": WeightAnalysis("anatomy", lambda model, _: anatomy(model), twins=False),
    "units": WeightAnalysis("token-mixing units", lambda model, _: token_mixing(model), ("mixer",)),
    "kernels": WeightAnalysis("spatial kernels", lambda model, _: spatial_kernels(model)),
    "tying": WeightAnalysis("kernel tying", kernel_tying),
    "stem": WeightAnalysis("stem filters", lambda model, _: stem_filters(model), twins=False),
    "positions": WeightAnalysis("position embeddings", lambda model, _: position_embeddings(model), ("vit",), twins=False),
    "spectra": WeightAnalysis("spectra", lambda model, _: weight_spectra(model)),
}
WHAT = tuple(ANALYSES)


def check_what(what: Sequence[str]) -> tuple[str, ...]:
    """The names as they are. Raises ModelError for one that is no analysis of weights."""
    for name in what:
        if name not in ANALYSES:
            raise ModelError(f"there is no analysis of weights '{name}'; {closest(name, WHAT)}")
    return tuple(dict.fromkeys(what))


def weight_results(models: Sequence[Model], what: Sequence[str] | None = None, images: Images = None) -> list[Result]:
    """What the weights of the first of `models` say, and of its twins after it where a baseline means something.

    `what` names some of `WHAT`; what a network cannot have is then an error (ModelError). By default all analyses are
    made of what the family may have, and one that fails is `Skipped`. `images` are for the kernels of Mixers and ViTs that
    are measured on data; without any these are left out."""
    if what is not None:
        return [analysis.measure(m, images) for analysis in _chosen(what) for m in _looked_at(models, analysis)]
    found: list[Result] = []
    for analysis in ANALYSES.values():
        if models[0].family in analysis.families:
            found += _attempts(analysis, _looked_at(models, analysis), images)
    return found


def _chosen(what: Sequence[str]) -> list[WeightAnalysis]:
    return [ANALYSES[name] for name in check_what(what)]


def _looked_at(models: Sequence[Model], analysis: WeightAnalysis) -> Sequence[Model]:
    return models if analysis.twins else models[:1]


def _attempts(analysis: WeightAnalysis, models: Sequence[Model], images: Images) -> list[Result]:
    found: list[Result] = []
    for model in models:
        try:
            found.append(analysis.measure(model, images))
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
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in result.model.name.removeprefix("zoo:"))
