"""`visualize`: images optimised by gradient ascent to activate a unit, beside the real images that
activate it most."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from scipy.stats import percentileofscore
from torch import Tensor

from mixer_probe.capture import (
    ImageSource,
    as_source,
    check_parts,
    input_pictures,
    pixel_batches,
    stream,
)
from mixer_probe.core.errors import MeasureError, UndefinedVisualizationWarning, closest
from mixer_probe.core.frame import Frame
from mixer_probe.core.progress import task
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.switches import plain_modes
from mixer_probe.core.validate import check_seed, checked
from mixer_probe.images import load_images
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.visualization.ascent import Ascent, Parametrisation, ascend
from mixer_probe.visualization.fourier import FourierImages
from mixer_probe.visualization.maco import MacoImages, natural_spectrum
from mixer_probe.visualization.network import for_pictures, one_layer, reading
from mixer_probe.visualization.objectives import Objective, make_objective
from mixer_probe.visualization.transforms import FOURIER_TRANSFORMS, MACO_TRANSFORMS, Transforms

METHODS = ("fourier", "maco")
_TRANSFORMS = {"fourier": FOURIER_TRANSFORMS, "maco": MACO_TRANSFORMS}
_RATES = {"fourier": 0.05, "maco": 0.1}
# A gradient below this many roundings of the activation at every pixel is rounding (1 to 2 for the
# constant mean of a layer norm).
_ROUNDINGS = 10
# A pixel at or above the median importance is fully opaque: few pixels hold most of the gradient.
_OPAQUE = 0.5
# Networks of larger inputs get photographs: they would see CIFAR's 32 px as a blur.
_LARGEST_FOR_DEMO = 64


@dataclass(frozen=True)
class FeatureVisualization(Result):
    """Images optimised to activate units of a layer, and the real images that activate them most.

    `units` [unit] are channels, hidden units of a token-mixing MLP, classes or directions, as
    `kind` says; `objective` is the maximised quantity. `pictures` [unit, method, seed, h, w, 3] and
    `real_pictures` [unit, k, h, w, 3] are uint8 RGB at the network's input size. `activation`
    [unit, method, seed] is the objective of the picture as it is here, without transformations;
    `real_values` [unit, k] are those of the strongest real images, named by `real_ids`, and
    `percentile` is the percentage of the `images` below an activation. `trace` [unit, method, seed,
    step] is the objective during the ascent, averaged over the transformed views. `opacity` [unit,
    method, seed, h, w] from 0 to 255 is where in the picture the gradient was, summed over the
    steps (Fel et al. 2023).

    A unit that no pixel affects has NaN for activation, percentile and trace, and a grey
    picture."""

    title: ClassVar[str] = "Feature visualization"
    frame = Frame(
        "unit method seed",
        """model=model.name layer=layer.name layer.depth unit=units method=methods seed=seeds
        objective activation strongest_real=real_values.first relative percentile steps
        n_images=images.n""",
    )

    model: ModelRecord
    images: ImagesRecord
    layer: Layer
    kind: str
    units: Annotated[np.ndarray, "unit"]
    objective: str
    methods: Annotated[tuple[str, ...], "method"]
    seeds: Annotated[tuple[int, ...], "seed"]
    steps: int
    settings: Mapping[str, Any]
    pictures: Annotated[np.ndarray, "unit", "method", "seed", "height", "width", 3]
    opacity: Annotated[np.ndarray, "unit", "method", "seed", "height", "width"]
    activation: Annotated[np.ndarray, "unit", "method", "seed"]
    trace: Annotated[np.ndarray, "unit", "method", "seed", "step"]
    percentile: Annotated[np.ndarray, "unit", "method", "seed"]
    real_pictures: Annotated[np.ndarray, "unit", "rank", "height", "width", 3]
    real_values: Annotated[np.ndarray, "unit", "rank"]
    real_ids: Annotated[np.ndarray, "unit", "rank"]
    real_median: Annotated[np.ndarray, "unit"]
    directions: Annotated[np.ndarray | None, "unit", "channel"] = None

    @property
    def relative(self) -> Annotated[np.ndarray, "unit", "method", "seed"]:
        """Activations [unit, method, seed] from the median real image (0) to the strongest (1); NaN
        where these are equal."""
        span = self.real_values[:, 0] - self.real_median
        above = self.activation - self.real_median[:, None, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            found: np.ndarray = np.where(
                span[:, None, None] > 0, above / span[:, None, None], np.nan
            )
        return found

    @property
    def stronger(self) -> np.ndarray:
        """Whether the best seed activates the unit more than every real image: [unit, method]."""
        found: np.ndarray = (
            np.nan_to_num(self.activation, nan=-np.inf).max(2) > self.real_values[:, :1]
        )
        return found

    def label(self, unit: int) -> str:
        """The name of the unit in row `unit`: "channel 3"."""
        return f"{self.kind} {self.units[unit]}"

    def to_frame(self) -> pd.DataFrame:
        """One row per picture."""
        return super().to_frame().rename(columns={"unit": self.kind.replace(" ", "_")})


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
    transforms: Transforms | None = None,
    rate: float | None = None,
    k: int = 5,
    batch_size: int = 32,
) -> FeatureVisualization:
    """Images that activate units of a layer, one per unit, method and seed, beside the `k` real
    `images` that activate them most.

    `layer` is a name, or "head" for the classes' logits. `units` are its channels; hidden units
    where it is inside a token-mixing MLP (`blocks.N.mlp_tokens.fc1` or `.act`); classes of a head.
    Instead of them `direction` is one in the space of the channels [channel], or several. The
    objective is the "mean" `over` positions, their "peak" or "rms" (root mean square), or the value
    at one `position` (a number, or row and column); of a hidden unit the same over channels, by
    default "rms", or at one `channel`. (The mean of a token-mixing unit over channels is close to
    constant before its activation function: it reads a layer norm, whose channels sum to about
    nothing.)

    `method` is "fourier" (Olah et al. 2017: free Fourier coefficients, scaled by frequency and
    decorrelated in colour; random shifts, zooms and rotations), "maco" (Fel et al. 2023: the
    average spectrum of `images`, phases free; random crops and noise), or both. `transforms`
    replaces the random transformations of every method and `rate` the learning rate of Adam.
    `images` are by default the bundled ones nearest in size. `size` is for networks that take
    several. One seed gives the same picture again on the same CPU, whatever other units are asked
    for; a GPU's sums may differ in the last bit.

    Cost: steps x seeds x views forward and backward passes per unit and method, up to the layer; at
    most `batch_size` views in one. A unit of 32 px takes seconds on a CPU, one of mixer_b16_224
    minutes. The network is left as it was, whatever happens.

    Raises LayerError (unknown layer, units, position or channel out of range), MeasureError
    (unknown method or `over`, a size that the network does not take, seeds, steps or k that are
    none) and ImagesError; warns with UndefinedVisualizationWarning about units that no pixel
    affects, which get NaN and a grey picture."""
    methods = (method,) if isinstance(method, str) else tuple(method)
    for name in methods:
        if name not in METHODS:
            raise MeasureError(
                f"method is 'fourier' or 'maco', not '{name}'; {closest(name, METHODS)}"
            )
    if not methods or len(set(methods)) < len(methods):
        raise MeasureError("give one method or several different ones")
    if not len({check_seed(seed, MeasureError) for seed in seeds}) == len(seeds) > 0:
        raise MeasureError(f"seeds are one or several different whole numbers, not {seeds}")
    if rate is not None and not rate > 0:
        raise MeasureError(f"rate must be above 0, not {rate}")
    model = for_pictures(model, size)
    height, width = model.input.size[1:]
    objective = make_objective(one_layer(model, layer), units, direction, over, position, channel)
    if images is None:
        # The bundled images nearest in size.
        images = load_images("demo" if max(height, width) <= _LARGEST_FOR_DEMO else "photos")
    source = as_source(images)
    check_parts(source)
    title = f"{model.name}: real images"
    pieces = stream(
        model, source, [objective.layer], objective.of_all, batch_size=batch_size, title=title
    )
    values = np.concatenate([piece.found[objective.layer.name].cpu().numpy() for piece in pieces])
    # Half precision has no FFT on every device.
    like = torch.zeros(
        (), device=model.device, dtype=torch.promote_types(model.dtype, torch.float32)
    )
    numbers, parts, settings = tuple(int(seed) for seed in seeds), [], {}
    for name in methods:
        chosen, speed = transforms or _TRANSFORMS[name], rate or _RATES[name]
        parametrisation: Parametrisation = FourierImages((height, width), like)
        if name == "maco":
            parametrisation = MacoImages(
                natural_spectrum(pixel_batches(model, source, batch_size)), like
            )
        parts.append(
            _pictures(
                model,
                objective,
                Ascent(name, parametrisation, chosen, steps, speed, numbers),
                batch_size,
            )
        )
        settings[name] = {"rate": speed, **asdict(chosen)}
    fields = {
        name: np.stack([part[name] for part in parts], 1)
        for name in ("pictures", "opacity", "activation", "trace")
    }
    finite = (v[np.isfinite(v)] for v in values.T)
    percentile = [
        percentileofscore(known, reached, "mean", nan_policy="omit")
        if len(known)
        else np.full(reached.shape, np.nan)
        for known, reached in zip(finite, fields["activation"], strict=True)
    ]
    # The strongest real images, of equals the first; NaN comes last.
    best = np.argsort(-np.where(np.isnan(values), -np.inf, values), axis=0, kind="stable")[:k].T
    result = FeatureVisualization(
        model=model.record,
        images=source.record,
        layer=objective.layer,
        kind=objective.kind,
        units=objective.units,
        objective=objective.text,
        methods=methods,
        seeds=numbers,
        steps=steps,
        settings=settings,
        percentile=np.stack(percentile),
        real_pictures=np.stack([input_pictures(model, source, index) for index in best]),
        real_values=np.take_along_axis(values, best.T, 0).T,
        real_ids=np.array(source.ids)[best],
        real_median=np.nanmedian(values, axis=0),
        directions=None if objective.directions is None else objective.directions.numpy(),
        **fields,
    )
    alive = np.stack([part["alive"] for part in parts], 1)
    dead = [result.label(int(u)) for u in np.flatnonzero(~alive.all((1, 2)))]
    if dead:
        names = ", ".join(dead[:5]) + (", ..." if len(dead) > 5 else "")
        warnings.warn(
            f"{names} of '{objective.layer.name}' of {model.name}: no pixel affects the "
            f"{objective.text} ({int((~alive).sum())} of {alive.size} images); these are NaN (the "
            "unit may be dead, follow weights that are all zero, or be inactive behind a ReLU that "
            "more steps may activate)",
            UndefinedVisualizationWarning,
            stacklevel=4,
        )
    return result


def _pictures(
    model: Model, objective: Objective, ascent: Ascent, batch_size: int
) -> dict[str, np.ndarray]:
    """Pictures, opacity, activation and trace by one method, as in the result without its axis of
    methods, and `alive` [unit, seed] where a pixel affects the unit."""
    count, seeds = len(objective.units), len(ascent.seeds)
    with task(
        f"{model.name}: {ascent.name} of '{objective.layer.name}'", count * seeds * ascent.steps
    ) as advance:
        found = ascend(model, objective, ascent, batch_size, advance)
    pictures = (found.images * 255).round().byte()
    unit = torch.arange(count).repeat_interleave(seeds).to(model.device)
    numbers = []
    with reading(model, objective.layer) as read, torch.no_grad():
        for part, which in zip(
            torch.split(pictures.flatten(0, 1), batch_size),
            torch.split(unit, batch_size),
            strict=True,
        ):
            pixels = part.to(model.device).to(torch.promote_types(model.dtype, torch.float32)) / 255
            numbers.append(objective.number(objective.maps(read(pixels)[0], which).double()).cpu())
    activation = torch.cat(numbers).reshape(count, seeds)
    pixels_of_one = found.images.shape[-2] * found.images.shape[-1]
    rounding = min(_ROUNDINGS * pixels_of_one * torch.finfo(model.dtype).eps, 1.0)
    alive = ((found.response > rounding) & torch.isfinite(activation)).numpy()
    weight = found.importance.numpy()
    most = np.quantile(weight, _OPAQUE, axis=(2, 3), keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Where most pixels have no gradient, those that have one are opaque.
        opacity = np.where(most > 0, weight / most, weight > 0).clip(0, 1) * alive[..., None, None]
    return {
        "pictures": torch.where(torch.from_numpy(alive)[..., None, None, None], pictures, 128)
        .movedim(-3, -1)
        .numpy(),
        "opacity": np.asarray((255 * opacity).round(), dtype=np.uint8),
        "activation": np.where(alive, activation.numpy(), np.nan),
        "trace": np.where(alive[..., None], found.trace.numpy(), np.nan),
        "alive": alive,
    }
