"""`visualize`: images that excite a unit, made by gradient ascent, beside the real images that excite it most."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mixer_probe.capture import ImageSource, as_source, check_parts, input_pictures, pixel_batches
from mixer_probe.core.errors import MeasureError, UndefinedVisualizationWarning, closest
from mixer_probe.core.progress import task
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.switches import plain_modes
from mixer_probe.core.validate import check_seed, checked
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.visualization.ascent import Ascended, Ascent, Parametrisation, ascend
from mixer_probe.visualization.fourier import FourierImages
from mixer_probe.visualization.maco import MacoImages, natural_spectrum
from mixer_probe.visualization.network import for_pictures, one_layer, reading
from mixer_probe.visualization.objectives import Objective, make_objective
from mixer_probe.visualization.real import default_images, percentiles, real_values, strongest
from mixer_probe.visualization.robustness import FOURIER_ROBUSTNESS, MACO_ROBUSTNESS, Robustness

METHODS = ("fourier", "maco")
_ROBUSTNESS = {"fourier": FOURIER_ROBUSTNESS, "maco": MACO_ROBUSTNESS}
_RATES = {"fourier": 0.05, "maco": 0.1}
# A gradient that is smaller than this many roundings of the activation at every pixel is nothing but roundings (1 to 2 for the
# mean of a layer norm that is constant).
_ROUNDINGS = 10
# A pixel at or above the median importance is fully opaque: few pixels hold most of the gradient.
_OPAQUE = 0.5


@dataclass(frozen=True)
class FeatureVisualization(Result):
    """Images made to excite units of a layer, and the real images that excite them most.

    `units` [unit] are channels, hidden units of a token-mixing MLP, classes or directions, as `kind` says; `objective` says which
    number of theirs was made large. `pictures` [unit, method, seed, h, w, 3] and `real_pictures` [unit, k, h, w, 3] are uint8 RGB
    at the network's input size. `activation` [unit, method, seed] is the objective of the picture as it is here, without
    transformations; `real_values` [unit, k] are those of the strongest real images, named by `real_ids`, and `percentile` says
    how many percent of the `images` an activation is above. `trace` [unit, method, seed, step] is the objective during the
    ascent, averaged over the transformed views. `opacity` [unit, method, seed, h, w] from 0 to 255 is where in the picture the
    gradient was, summed over the steps (Fel et al. 2023).

    A unit that no pixel moves has NaN for activation, percentile and trace, and a grey picture."""

    title: ClassVar[str] = "Feature visualization"

    model: ModelRecord
    images: ImagesRecord
    layer: Layer
    kind: str
    units: np.ndarray
    objective: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    settings: Mapping[str, Any]
    pictures: np.ndarray
    opacity: np.ndarray
    activation: np.ndarray
    trace: np.ndarray
    percentile: np.ndarray
    real_pictures: np.ndarray
    real_values: np.ndarray
    real_ids: np.ndarray
    real_median: np.ndarray
    directions: np.ndarray | None = None

    @property
    def relative(self) -> np.ndarray:
        """Activations [unit, method, seed] from the median real image (0) to the strongest (1); NaN where these are equal."""
        span = self.real_values[:, 0] - self.real_median
        above = self.activation - self.real_median[:, None, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            found: np.ndarray = np.where(span[:, None, None] > 0, above / span[:, None, None], np.nan)
        return found

    @property
    def stronger(self) -> np.ndarray:
        """Whether the best seed excites the unit more than every real image did: [unit, method]."""
        found: np.ndarray = np.nan_to_num(self.activation, nan=-np.inf).max(2) > self.real_values[:, :1]
        return found

    def label(self, unit: int) -> str:
        """What the row `unit` shows: "channel 3"."""
        return f"{self.kind} {self.units[unit]}"

    def to_frame(self) -> pd.DataFrame:
        """One row a picture."""
        names = [self.kind.replace(" ", "_"), "method", "seed"]
        index = pd.MultiIndex.from_product([self.units, self.methods, self.seeds], names=names)
        return pd.DataFrame(
            {
                "model": self.model.name,
                "layer": self.layer.name,
                "depth": self.layer.depth,
                **{name: index.get_level_values(name) for name in names},
                "objective": self.objective,
                "activation": self.activation.ravel(),
                "strongest_real": np.repeat(self.real_values[:, 0], len(self.methods) * len(self.seeds)),
                "relative": self.relative.ravel(),
                "percentile": self.percentile.ravel(),
                "steps": self.steps,
                "n_images": self.images.n,
            }
        )


@plain_modes()
@checked(MeasureError)
def visualize(
    model: Model,
    layer: str,
    units: int | Sequence[int] | None = None,
    *,
    method: str | Sequence[str] = "fourier",
    images: ImageSource | Tensor | None = None,
    over: str | None = None,
    position: int | tuple[int, int] | None = None,
    channel: int | None = None,
    direction: np.ndarray | Tensor | Sequence[float] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 128,
    size: int | tuple[int, int] | None = None,
    robustness: Robustness | None = None,
    rate: float | None = None,
    k: int = 5,
    batch_size: int = 32,
) -> FeatureVisualization:
    """Images that excite units of a layer, one a unit, method and seed, beside the `k` real `images` that excite them most.

    `layer` is a name, or "head" for the classes' logits. `units` are its channels; hidden units where it is inside a token-mixing
    MLP (`blocks.N.mlp_tokens.fc1` or `.act`); classes of a head. Instead of them `direction` is one in the space of the channels
    [channel], or several. What is made large is the "mean" `over` positions, their "peak" or "rms" (root mean square), or the
    value at one `position` (a number, or row and column); of a hidden unit the same over channels, by default "rms", or at one
    `channel`. (The mean of a token-mixing unit over channels is close to constant before its activation function: it reads a
    layer norm, whose channels sum to about nothing.)

    `method` is "fourier" (Olah et al. 2017: free Fourier coefficients, scaled by frequency and decorrelated in colour; random
    shifts, zooms and rotations), "maco" (Fel et al. 2023: the average spectrum of `images`, phases free; random crops and
    noise), or both. `robustness` replaces the random transformations of every method and `rate` the learning rate of Adam.
    `images` are by default the bundled ones nearest in size. `size` is for networks that take several. One seed gives the same
    picture again on the same CPU, whatever other units are asked for; a GPU's sums may differ in the last bit.

    Cost: steps x seeds x views forward and backward passes a unit and method, up to the layer; at most `batch_size` views in
    one. A unit of 32 px takes seconds on a CPU, one of mixer_b16_224 minutes. The network is left as it was, whatever happens.

    Raises LayerError (unknown layer, units, position or channel out of range), MeasureError (unknown method or `over`, a size
    that the network does not take, seeds, steps or k that are none) and ImagesError; warns with UndefinedVisualizationWarning
    about units that no pixel moves, which get NaN and a grey picture."""
    methods = _methods(method)
    _check(seeds, rate)
    model = for_pictures(model, size)
    objective = make_objective(one_layer(model, layer), units, direction, over, position, channel)
    source = as_source(default_images(model) if images is None else images)
    check_parts(source)
    values = real_values(model, source, objective, batch_size)
    done = [
        _made(model, objective, _ascent(name, model, source, robustness, rate, seeds, steps, batch_size), batch_size)
        for name in methods
    ]
    return _result(model, source, objective, methods, done, values, k, _settings(methods, robustness, rate), tuple(seeds), steps)


def _methods(method: str | Sequence[str]) -> tuple[str, ...]:
    methods = (method,) if isinstance(method, str) else tuple(method)
    for name in methods:
        if name not in METHODS:
            raise MeasureError(f"method is 'fourier' or 'maco', not '{name}'; {closest(name, METHODS)}")
    if not methods or len(set(methods)) < len(methods):
        raise MeasureError("give one method or several different ones")
    return methods


def _check(seeds: Sequence[int], rate: float | None) -> None:
    if not len({check_seed(seed, MeasureError) for seed in seeds}) == len(seeds) > 0:
        raise MeasureError(f"seeds are one or several different whole numbers, not {seeds}")
    if rate is not None and not rate > 0:
        raise MeasureError(f"rate must be above 0, not {rate}")


def _settings(methods: Sequence[str], robustness: Robustness | None, rate: float | None) -> dict[str, Any]:
    return {name: {"rate": rate or _RATES[name], **asdict(robustness or _ROBUSTNESS[name])} for name in methods}


def _ascent(
    method: str,
    model: Model,
    source: ImageSource,
    robustness: Robustness | None,
    rate: float | None,
    seeds: Sequence[int],
    steps: int,
    batch_size: int,
) -> Ascent:
    parametrisation = _parametrisation(method, model, source, batch_size)
    numbers = tuple(int(seed) for seed in seeds)
    return Ascent(method, parametrisation, robustness or _ROBUSTNESS[method], steps, rate or _RATES[method], numbers)


def _parametrisation(method: str, model: Model, source: ImageSource, batch_size: int) -> Parametrisation:
    # Half precision has no FFT on every device.
    dtype = model.dtype if model.dtype is torch.float64 else torch.float32
    like = torch.zeros((), device=model.device, dtype=dtype)
    if method == "maco":
        return MacoImages(natural_spectrum(pixel_batches(model, source, batch_size)), like)
    return FourierImages((model.input.size[1], model.input.size[2]), like)


@dataclass(frozen=True)
class _Made:
    """What one method gave, as in the result without its axis of methods; `alive` [unit, seed] where a pixel moved the unit."""

    pictures: np.ndarray
    opacity: np.ndarray
    activation: np.ndarray
    trace: np.ndarray
    alive: np.ndarray


def _made(model: Model, objective: Objective, ascent: Ascent, batch_size: int) -> _Made:
    total = len(objective.units) * len(ascent.seeds) * ascent.steps
    with task(f"{model.name}: {ascent.name} of '{objective.layer.name}'", total) as advance:
        found = ascend(model, objective, ascent, batch_size, advance)
    pictures = (found.images * 255).round().byte()
    activation = _activation(model, objective, pictures, batch_size)
    alive = (_responds(model, found) & torch.isfinite(activation)).numpy()
    pictures = torch.where(torch.from_numpy(alive)[..., None, None, None], pictures, 128)
    return _Made(
        pictures=pictures.movedim(-3, -1).numpy(),
        opacity=_opacity(found.importance, alive),
        activation=np.where(alive, activation.numpy(), np.nan),
        trace=np.where(alive[..., None], found.trace.numpy(), np.nan),
        alive=alive,
    )


def _responds(model: Model, found: Ascended) -> Tensor:
    """Whether any pixel ever moved the unit by more than the activations are rounded."""
    pixels = found.images.shape[-2] * found.images.shape[-1]
    return found.response > min(_ROUNDINGS * pixels * torch.finfo(model.dtype).eps, 1.0)


def _activation(model: Model, objective: Objective, pictures: Tensor, batch_size: int) -> Tensor:
    """The objective of pictures [unit, seed, 3, h, w] in 8 bits: [unit, seed] in float64."""
    count, seeds = pictures.shape[:2]
    which = torch.arange(count).repeat_interleave(seeds).to(model.device)
    found = []
    with reading(model, objective.layer) as read, torch.no_grad():
        for part, unit in zip(torch.split(pictures.flatten(0, 1), batch_size), torch.split(which, batch_size), strict=True):
            pixels = part.to(model.device).to(torch.promote_types(model.dtype, torch.float32)) / 255
            found.append(objective.number(objective.maps(read(pixels)[0], unit).double()).cpu())
    return torch.cat(found).reshape(count, seeds)


def _opacity(importance: Tensor, alive: np.ndarray) -> np.ndarray:
    """[unit, seed, h, w] from 0 to 255."""
    weight = importance.numpy()
    most = np.quantile(weight, _OPAQUE, axis=(2, 3), keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Where most pixels count for nothing, the others are those that count.
        share = np.where(most > 0, weight / most, weight > 0).clip(0, 1) * alive[..., None, None]
    return np.asarray((255 * share).round(), dtype=np.uint8)


def _result(
    model: Model,
    source: ImageSource,
    objective: Objective,
    methods: tuple[str, ...],
    done: Sequence[_Made],
    values: np.ndarray,
    k: int,
    settings: Mapping[str, Any],
    seeds: tuple[int, ...],
    steps: int,
) -> FeatureVisualization:
    best = strongest(values, k)
    activation = np.stack([made.activation for made in done], 1)
    result = FeatureVisualization(
        model=model.record,
        images=source.record,
        layer=objective.layer,
        kind=objective.kind,
        units=objective.units,
        objective=objective.text,
        methods=methods,
        seeds=tuple(int(seed) for seed in seeds),
        steps=steps,
        settings=settings,
        pictures=np.stack([made.pictures for made in done], 1),
        opacity=np.stack([made.opacity for made in done], 1),
        activation=activation,
        trace=np.stack([made.trace for made in done], 1),
        percentile=np.stack([percentiles(a, v) for a, v in zip(activation, values.T, strict=True)]),
        real_pictures=np.stack([input_pictures(model, source, index) for index in best]),
        real_values=np.take_along_axis(values, best.T, 0).T,
        real_ids=np.array(source.ids)[best],
        real_median=np.nanmedian(values, axis=0),
        directions=None if objective.directions is None else objective.directions.numpy(),
    )
    _warn(result, np.stack([made.alive for made in done], 1))
    return result


def _warn(result: FeatureVisualization, alive: np.ndarray) -> None:
    """Names the units without an answer."""
    dead = [result.label(int(u)) for u in np.flatnonzero(~alive.all((1, 2)))]
    if not dead:
        return
    lost = f"{int((~alive).sum())} of {alive.size} images"
    names = ", ".join(dead[:5]) + (", ..." if len(dead) > 5 else "")
    warnings.warn(
        f"{names} of '{result.layer.name}' of {result.model.name}: no pixel affects the {result.objective} ({lost}); these "
        "are NaN "
        "(the unit may be dead, follow weights that are all zero, or be inactive behind a ReLU that more steps may activate)",
        UndefinedVisualizationWarning,
        stacklevel=4,
    )
