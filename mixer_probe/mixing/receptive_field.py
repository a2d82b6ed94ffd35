"""The effective receptive field: how strongly a position of a layer depends on each input pixel.

Luo, Li, Urtasun and Zemel (2016, NeurIPS) take the gradient of the central unit by the pixels and
find it Gaussian and much smaller than the theoretical field; Ding et al. (2022, CVPR, RepLKNet)
give the area that holds a fraction of it; Raghu et al. (2021, NeurIPS) compare ViTs and CNNs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch

from mixer_probe.capture import ImageSource, as_source
from mixer_probe.capture.positions import positions_and_prefix
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import ImagesError, LayerError, MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.hooks import Call, Stop, hooked
from mixer_probe.core.memory import LARGE, RESIDENT, at_once
from mixer_probe.core.progress import task
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.switches import evaluating, frozen
from mixer_probe.core.validate import check_count, checked
from mixer_probe.mixing.grid import Position, place_in, with_grid
from mixer_probe.mixing.jackknife import (
    CORRELATION,
    FRACTION,
    GROUPS,
    PLAIN,
    POSITIVE,
    group_of,
    jackknife,
)
from mixer_probe.mixing.theoretical_field import theoretical_field
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.models.trace import trace

# The fractions of the energy whose areas are given.
LEVELS = (0.5, 0.95, 0.99)
# Maps are kept pixel by pixel up to this side, else as averages over so many cells a side.
_MOST_PIXELS, _CELLS = 64, 56


@dataclass(frozen=True)
class EffectiveReceptiveField(Result):
    """Input-gradient energy of one position of each layer, and how far it reaches.

    The energy of pixel p is E_x sum over colours and channels c of (d h_c(x) / d x_p)^2, h the
    output of the layer at `position` (row, column), x the normalised input of the network. `maps`
    [layer, row, column] are fractions of it per pixel, averaged over cells where images are larger
    than 64 px, and `energy` [layer] is its sum: where that is exactly 0, all else is NaN.

    `area` [layer, level] is the area of the smallest set of pixels that holds 50, 95 and 99 % of
    the energy, as a fraction of the image (the last pixel in parts), and `side` that of a square of
    this area in pixels (Ding et al. 2022). `support` is the fraction of pixels whose energy is not
    exactly 0. `centre` and `sigma` [layer, axis] are of the Gaussian that has the moments of the
    amplitude map, the square root of the energy (the gradient magnitude of Luo et al. 2016), by
    rows and columns, in pixels from the upper left corner; `gaussian` is the Pearson correlation,
    over all pixels, of the amplitude map with it. All are computed at full resolution.

    `_se` are standard errors, [`_low`, `_high`] 95 % intervals over images: of the pseudo-values of
    a jackknife over `groups` groups of images (of logits of areas and logarithms of sigma), whose
    mean, without the bias of order 1 / n, is the value. They are NaN where all groups give the
    same.

    `theoretical` [layer] is the side of the theoretical field in pixels (`theoretical_field`):
    infinite for the whole image, NaN where it depends on the position."""

    title: ClassVar[str] = "Effective receptive field"
    frame = Frame(
        "layer",
        """model=model.name model.trained layer=layers.name layers.depth row,column=position energy
        area_50,area_95,area_99=area area_50_se,area_95_se,area_99_se=area_se
        area_50_low,area_95_low,area_99_low=area_low
        area_50_high,area_95_high,area_99_high=area_high
        side_50,side_95,side_99=side support centre_row,centre_column=centre
        centre_row_low,centre_column_low=centre_low centre_row_high,centre_column_high=centre_high
        sigma_row,sigma_column=sigma sigma_row_se,sigma_column_se=sigma_se
        sigma_row_low,sigma_column_low=sigma_low sigma_row_high,sigma_column_high=sigma_high
        gaussian gaussian_se gaussian_low gaussian_high theoretical n""",
    )

    model: ModelRecord
    images: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    size: tuple[int, int]
    position: Annotated[np.ndarray, "layer", "2"]
    maps: Annotated[np.ndarray, "layer", "row", "column"]
    energy: Annotated[np.ndarray, "layer"]
    area: Annotated[np.ndarray, "layer", "level"]
    area_se: Annotated[np.ndarray, "layer", "level"]
    area_low: Annotated[np.ndarray, "layer", "level"]
    area_high: Annotated[np.ndarray, "layer", "level"]
    support: Annotated[np.ndarray, "layer"]
    centre: Annotated[np.ndarray, "layer", "2"]
    centre_se: Annotated[np.ndarray, "layer", "2"]
    centre_low: Annotated[np.ndarray, "layer", "2"]
    centre_high: Annotated[np.ndarray, "layer", "2"]
    sigma: Annotated[np.ndarray, "layer", "2"]
    sigma_se: Annotated[np.ndarray, "layer", "2"]
    sigma_low: Annotated[np.ndarray, "layer", "2"]
    sigma_high: Annotated[np.ndarray, "layer", "2"]
    gaussian: Annotated[np.ndarray, "layer"]
    gaussian_se: Annotated[np.ndarray, "layer"]
    gaussian_low: Annotated[np.ndarray, "layer"]
    gaussian_high: Annotated[np.ndarray, "layer"]
    theoretical: Annotated[np.ndarray, "layer"]
    levels: Annotated[tuple[float, ...], "level"]
    n: int
    groups: int
    probes: int
    seed: int

    @property
    def side(self) -> Annotated[np.ndarray, "layer", "level"]:
        """Side in pixels of a square of the size of `area`."""
        side: np.ndarray = np.sqrt(self.area * math.prod(self.size))
        return side


@checked(MeasureError)
def effective_receptive_field(
    model: Model,
    images: ImageSource | torch.Tensor,
    layers: str | Sequence[str] = "blocks",
    position: Position = None,
    *,
    probes: int = 1,
    batch_size: int = 32,
    seed: int = 0,
) -> EffectiveReceptiveField:
    """Input-gradient energy of one position of each layer, and the areas that hold most of it.

    `position` is (row, column), an index, or None for the central position, in the grid of each
    layer. The sum over channels is estimated without bias by `probes` vectors of random signs s
    over them, per image and layer: E_s (d s'h / d x_p)^2 = sum_c (d h_c / d x_p)^2 (Hutchinson
    1990). More images lower its error as more probes do, and the error over images besides. All
    layers share one forward pass per image; each costs a backward pass from it.

    Raises MeasureError for a position outside the grid of a layer, a layer without a grid, and
    gradients that are not finite, and as `Model.select` does."""
    check_count("probes", probes, MeasureError)
    chosen = with_grid(model.select(layers), "a receptive field")
    places = [place_in(layer, grid, position) for layer, grid in chosen]
    source = as_source(images)
    n, size = len(source), model.input.size[1:]
    per_group = 8 * len(chosen) * math.prod(size)
    count = min(n, GROUPS, at_once(per_group, RESIDENT // 2, least=2))
    energies = np.zeros((len(chosen), count, *size))
    for image, found in _energies(model, source, chosen, places, probes, batch_size, seed):
        energies[:, group_of(image, n, count)] += found
    odd = next((layer for (layer, _), e in zip(chosen, energies) if not np.isfinite(e).all()), None)
    if odd is not None:
        raise MeasureError(
            f"gradients of '{odd.name}' of {model.name} by its input are not finite; its weights "
            "or the images hold values that are too large, or NaN"
        )
    names = [layer.name for layer, _ in chosen]
    rows = [_estimates(of) for of in energies]
    parts: dict[str, Any] = {
        "area": slice(0, 3),
        "centre": slice(3, 5),
        "sigma": slice(5, 7),
        "gaussian": 7,
    }
    numbers: dict[str, np.ndarray] = {
        name + end: np.stack(part)[:, columns]
        for end, part in zip(("", "_se", "_low", "_high"), zip(*rows, strict=True), strict=True)
        for name, columns in parts.items()
    }
    fields = theoretical_field(model, names)
    total = energies.sum(1)
    return EffectiveReceptiveField(
        model=model.record,
        images=source.record,
        layers=tuple(layer for layer, _ in chosen),
        size=(size[0], size[1]),
        position=np.array(places),
        maps=np.stack([_cells(one) for one in total]).astype(np.float32),
        energy=total.sum((1, 2)) / n,
        support=(total > 0).mean((1, 2)),
        theoretical=np.array([fields[name] for name in names]),
        levels=LEVELS,
        n=n,
        groups=count,
        probes=probes,
        seed=seed,
        **numbers,
    )


def _energies(
    model: Model,
    source: ImageSource,
    chosen: Sequence[tuple[Layer, tuple[int, int]]],
    places: Sequence[tuple[int, int]],
    probes: int,
    batch_size: int,
    seed: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """The number of every image, and the estimated energy of each layer by its pixels, float64
    [layer, H, W]."""
    network, size = model.module, model.input.size
    outputs = [math.prod(c.shape or ()) for c in trace(network, size)]
    # What a backward pass needs of one image is at most what all modules return.
    batch_size = min(batch_size, at_once(4 * sum(outputs) // 2, LARGE))
    wanted = {(layer.module, layer.call): layer for layer, _ in chosen}
    graph: dict[tuple[str, int], torch.Tensor] = {}

    def record(call: Call) -> torch.Tensor | None:
        place = call.path, call.number
        if place not in wanted:
            return None
        graph[place] = call.output
        if len(graph) == len(wanted):
            raise Stop
        # An operation in place that follows would overwrite what was recorded.
        copy: torch.Tensor = call.output.clone()
        return copy

    with (
        task(f"{model.name}: receptive fields", len(source)) as advance,
        evaluating(network),
        frozen(network),
        torch.enable_grad(),
        hooked(network, (layer.module for layer, _ in chosen), record) as passes,
    ):
        start = 0
        for batch in source.batches(transform_of(model), batch_size):
            if tuple(batch.shape[1:]) != size:
                raise ImagesError(
                    f"the images are {tuple(batch.shape[1:])} and {model.name} takes {size}"
                )
            x = batch.to(model.device, model.dtype).detach().requires_grad_()
            passes.run(x)
            found = np.zeros((len(chosen), len(x), *size[1:]))
            for k, ((layer, grid), (row, column)) in enumerate(zip(chosen, places, strict=True)):
                output = graph.get((layer.module, layer.call))
                if output is None:
                    raise LayerError(
                        f"'{layer.name}' did not run in this forward pass, though it did for a "
                        "blank image"
                    )
                unit = positions_and_prefix(output, layer)[0][:, row * grid[1] + column]
                if not unit.requires_grad:
                    continue
                signs = _signs(layer, range(start, start + len(x)), probes, seed)
                for one in torch.from_numpy(signs).to(unit):
                    (slope,) = torch.autograd.grad(
                        unit, x, one, retain_graph=True, allow_unused=True
                    )
                    if slope is not None:
                        found[k] += slope.double().square().sum(1).cpu().numpy() / probes
            graph.clear()
            for i in range(len(x)):
                yield start + i, found[:, i]
            start += len(x)
            advance(len(x))


def _signs(layer: Layer, images: range, probes: int, seed: int) -> np.ndarray:
    """Random signs [probe, image, channel], whatever the batches and the other layers are."""
    drawn = [
        np.random.default_rng((seed, layer.order, i)).integers(0, 2, (probes, layer.channels))
        for i in images
    ]
    return 2.0 * np.stack(drawn, axis=1) - 1


_SCALES = (*[FRACTION] * len(LEVELS), PLAIN, PLAIN, POSITIVE, POSITIVE, CORRELATION)


def _estimates(groups: np.ndarray) -> tuple[np.ndarray, ...]:
    """`_scalars` of the sum of `groups` [group, H, W], with standard errors and 95 % bounds."""
    total = groups.sum(0)
    without = [_scalars(np.maximum(total - group, 0)) for group in groups if len(groups) > 1]
    whole = _scalars(total)
    return jackknife(whole, np.reshape(without, (-1, len(whole))), _SCALES)


def _scalars(energy: np.ndarray) -> np.ndarray:
    """Areas of the levels, centre and sigma by rows and columns, and correlation with the Gaussian,
    of an energy map [H, W]; NaN for a map of zeros."""
    total = energy.sum()
    if not total > 0:
        return np.full(len(LEVELS) + 5, np.nan)
    falling = np.sort(energy, axis=None)[::-1].cumsum() / total
    count = np.arange(energy.size + 1)
    areas = np.interp(LEVELS, np.concatenate([[0], falling]), count) / energy.size
    amplitude = np.sqrt(energy)
    shares = [amplitude.sum(1) / amplitude.sum(), amplitude.sum(0) / amplitude.sum()]
    pixels = [np.arange(len(share)) + 0.5 for share in shares]
    centre = [float(share @ x) for share, x in zip(shares, pixels, strict=True)]
    sigma = [
        math.sqrt(share @ (x - c) ** 2) for share, x, c in zip(shares, pixels, centre, strict=True)
    ]
    return np.array([*areas, *centre, *sigma, _gaussian(amplitude, pixels, centre, sigma)])


def _gaussian(
    amplitude: np.ndarray, pixels: list[np.ndarray], centre: list[float], sigma: list[float]
) -> float:
    """Correlation of the map with a Gaussian; NaN where either is constant or the Gaussian has no
    width."""
    if not min(sigma) > 0 or np.ptp(amplitude) <= 1e-12 * amplitude.max():
        return math.nan
    rows, columns = (
        np.exp(-(((x - c) / s) ** 2) / 2) for x, c, s in zip(pixels, centre, sigma, strict=True)
    )
    return float(np.corrcoef(amplitude.ravel(), np.outer(rows, columns).ravel())[0, 1])


def _cells(energy: np.ndarray) -> np.ndarray:
    """Fractions of the energy per pixel, averaged over cells along sides above 64 px; zeros for a
    map of zeros."""
    total = energy.sum()
    found = energy / total if total > 0 else energy
    for axis, side in enumerate(energy.shape):
        if side > _MOST_PIXELS:
            edges = np.linspace(0, side, _CELLS + 1).round().astype(int)
            widths = np.expand_dims(np.diff(edges), 1 - axis)
            found = np.add.reduceat(found, edges[:-1], axis) / widths
    return found
