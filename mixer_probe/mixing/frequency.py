"""Which spatial frequencies the residual stream holds after every sublayer: whether spatial mixing
and channel mixing raise or lower them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from mixer_probe.capture import ImageSource
from mixer_probe.core.errors import LayerError, MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.hooks import Call
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.mixing.branches import Branches, branch_ends
from mixer_probe.mixing.estimates import Estimates, estimate
from mixer_probe.mixing.passes import forward_passes, images_record
from mixer_probe.models.layer import Axes, Layer
from mixer_probe.models.model import Model

# Park and Kim add it to amplitudes before they take the logarithm.
EPSILON = 1e-6
PARTS = ("spatial", "channel", "block")


@dataclass(frozen=True)
class FrequencyProfile(Result):
    """Spatial frequencies and spatial variance of the residual stream, averaged over images.

    A place is the stream before the first block and wherever a block is given something else than
    the last one returned (`kinds` "input"), after a spatial branch has joined ("spatial"), after
    the channel branch ("channel"), or after a block that has no two branches ("block").

    `profiles` are relative log amplitudes (Park and Kim 2022, "How Do Vision Transformers Work?"):
    ln(|F| + 1e-6) of the two-dimensional Fourier transform F over the patch tokens, averaged over
    channels, on the diagonal from the centre to the corner, minus the value at the centre. Their
    `frequencies` are in units of pi per position; 1 is there where grids are even (Park and Kim's
    own code ends one step before). `amplitude` is that of the highest frequency. `variance` is the
    variance over positions, averaged over channels.

    `amplitude_change` and `variance_change` (of the logarithm of the variance) are paired over
    images, from the place before to this one; NaN at inputs and where the grid changes.
    `mean_amplitude_change` and `mean_variance_change` are averages over all places of a kind
    (`parts`). Bounds are 95 % intervals over images."""

    title: ClassVar[str] = "Spatial frequencies"
    frame = Frame(
        "place",
        """model=model.name model.trained place=places kind=kinds depth amplitude=amplitude.value
        amplitude_se=amplitude.se amplitude_low=amplitude.low amplitude_high=amplitude.high
        variance=variance.value variance_se=variance.se variance_low=variance.low
        variance_high=variance.high amplitude_change=amplitude_change.value
        amplitude_change_low=amplitude_change.low amplitude_change_high=amplitude_change.high
        variance_change=variance_change.value variance_change_low=variance_change.low
        variance_change_high=variance_change.high n""",
    )

    model: ModelRecord
    images: ImagesRecord
    places: Annotated[tuple[str, ...], "place"]
    kinds: Annotated[tuple[str, ...], "place"]
    depth: Annotated[np.ndarray, "place"]
    grids: Annotated[np.ndarray, "place", "2"]
    frequencies: Annotated[tuple[np.ndarray, ...], "place", "frequency"]
    profiles: Annotated[tuple[np.ndarray, ...], "place", "frequency"]
    profiles_low: Annotated[tuple[np.ndarray, ...], "place", "frequency"]
    profiles_high: Annotated[tuple[np.ndarray, ...], "place", "frequency"]
    amplitude: Annotated[Estimates, "place"]
    variance: Annotated[Estimates, "place"]
    amplitude_change: Annotated[Estimates, "place"]
    variance_change: Annotated[Estimates, "place"]
    parts: Annotated[tuple[str, ...], "part"]
    mean_amplitude_change: Annotated[Estimates, "part"]
    mean_variance_change: Annotated[Estimates, "part"]
    n: int


def diagonal_frequencies(grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The whole frequencies (rows, columns) on the diagonal from the centre [frequency, 2], and
    those in units of pi per position along the shorter side [frequency]."""
    m = min(grid) // 2
    steps = np.arange(m + 1)
    whole = np.stack([np.rint(steps * (side // 2) / max(m, 1)) for side in grid], axis=-1)
    return whole, 2 * steps / min(grid)


def log_amplitude(maps: Tensor) -> Tensor:
    """ln(|F| + 1e-6) of the Fourier transform F of maps [..., row, column] on the diagonal from the
    centre [..., frequency]; its first entry is the value at the centre.

    The mean over positions is taken away before the other frequencies are summed, for in float32
    it would leave its rounding there."""
    grid = (maps.shape[-2], maps.shape[-1])
    whole, _ = diagonal_frequencies(grid)
    rows, columns = (axis.ravel() for axis in np.indices(grid))
    angle = (
        2
        * np.pi
        * (np.outer(rows / grid[0], whole[:, 0]) + np.outer(columns / grid[1], whole[:, 1]))
    )
    flat = maps.flatten(-2)
    centred = flat - flat.mean(-1, keepdim=True)
    waves = torch.from_numpy(np.concatenate([np.cos(angle), np.sin(angle)], axis=1)).to(maps)
    cosines, sines = (centred @ waves).chunk(2, -1)
    amplitude = torch.hypot(cosines, sines)
    amplitude[..., 0] = flat.sum(-1).abs()
    return (amplitude + EPSILON).log()


class _Reader:
    """Reads the residual stream at every place, in the order in which a pass comes by."""

    def __init__(self, model: Model, ends: Sequence[Branches]) -> None:
        self._layers = [model.layer(e.block) for e in ends]
        self._blocks = {(a.module, a.call): k for k, a in enumerate(self._layers)}
        self._middles = {
            (e.spatial.module, e.spatial.call): k
            for k, e in enumerate(ends)
            if e.spatial is not None and e.channel is not None
        }
        # A sum inside a block, which something without a skip connection follows.
        self._sums = {
            (e.total, a.call): k
            for k, (e, a) in enumerate(zip(ends, self._layers, strict=True))
            if e.spatial is not None and e.total != a.module
        }
        self.paths = [path for path, _ in (*self._blocks, *self._middles, *self._sums)]
        self._two = {*self._middles.values(), *self._sums.values()}
        self._given = self._returned = torch.zeros(0)
        # (place, kind) and depth, with the values of each batch.
        self.places: dict[tuple[str, str], float] = {}
        self.grids: dict[tuple[str, str], tuple[int, int]] = {}
        self.values: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}

    def before(self, call: Call) -> None:
        k = self._blocks.get((call.path, call.number))
        if k is None:
            return
        self._given = call.args[0]
        if k == 0 or self._given is not self._returned:
            self._read(k, self._given, "input", k / len(self._layers))

    def after(self, call: Call) -> None:
        place, total = (call.path, call.number), len(self._layers)
        if (k := self._middles.get(place)) is not None:
            self._read(k, self._given + call.output, "spatial", (k + 0.5) / total)
        if (k := self._sums.get(place)) is not None:
            self._read(k, call.output, "spatial", (k + 0.5) / total)
        if (k := self._blocks.get(place)) is not None:
            self._returned = call.output
            kind = "channel" if k in self._two else "block"
            self._read(k, call.output, kind, (k + 1) / total)

    def _read(self, k: int, x: Tensor, kind: str, depth: float) -> None:
        maps = as_maps(x, self._layers[k])
        maps = maps if maps.dtype in (torch.float32, torch.float64) else maps.float()
        place = (self._layers[k].name, kind)
        self.places[place], self.grids[place] = depth, (maps.shape[-2], maps.shape[-1])
        logs = log_amplitude(maps).double().mean(1)
        variance = maps.flatten(2).var(-1, correction=0).double().mean(1)
        self.values.setdefault(place, []).append((logs - logs[:, :1], variance))


def as_maps(x: Tensor, block: Layer) -> Tensor:
    """The residual stream around a block as [image, channel, row, column], without prefix tokens.

    Raises LayerError for tokens whose grid is not known."""
    if block.axes == Axes.BCHW.name:
        return x
    if block.axes == Axes.BHWC.name:
        return x.permute(0, 3, 1, 2)
    if block.grid is None:
        raise LayerError(
            f"the positions of '{block.name}' are no grid, so that they have no spatial frequencies"
        )
    return x[:, block.prefix_tokens :].transpose(1, 2).reshape(len(x), -1, *block.grid)


@checked(MeasureError)
def frequency_profile(
    model: Model, images: ImageSource | Tensor, *, batch_size: int = 32
) -> FrequencyProfile:
    """Relative log amplitude of spatial frequencies and spatial variance of the residual stream
    before the blocks and after every sublayer, for all families; see `FrequencyProfile`.

    Raises LayerError for a network whose tokens have no known grid."""
    reader = _Reader(model, branch_ends(model))
    passes = forward_passes(
        model,
        images,
        reader.paths,
        reader.after,
        reader.before,
        batch_size=batch_size,
        title=f"frequencies of {model.name}",
    )
    n = sum(len(output) for output in passes)
    places, kinds = list(reader.places), [kind for _, kind in reader.places]
    found = [[torch.cat(part).cpu().numpy() for part in zip(*reader.values[p])] for p in places]
    grids = [reader.grids[place] for place in places]
    profiles = [estimate(logs.T) for logs, _ in found]
    amplitude = np.stack([logs[:, -1] for logs, _ in found])
    variance = np.stack([one for _, one in found])
    with np.errstate(divide="ignore"):
        log_variance = np.log(variance)
    same = [k > 0 and kinds[k] != "input" and grids[k] == grids[k - 1] for k in range(len(places))]
    changes = []
    for values in (amplitude, log_variance):
        with np.errstate(invalid="ignore"):
            change = np.diff(values, axis=0, prepend=np.nan)
        changes.append(np.where(np.array(same)[:, None] & np.isfinite(change), change, np.nan))
    parts = tuple(part for part in PARTS if part in kinds)
    means = [
        np.stack(
            [
                _mean([change[k] for k, kind in enumerate(kinds) if kind == part and same[k]], n)
                for part in parts
            ]
        )
        for change in changes
    ]
    return FrequencyProfile(
        model=model.record,
        images=images_record(images),
        places=tuple(name for name, _ in places),
        kinds=tuple(kinds),
        depth=np.array([reader.places[place] for place in places]),
        grids=np.array(grids),
        frequencies=tuple(diagonal_frequencies(grid)[1] for grid in grids),
        profiles=tuple(p.value for p in profiles),
        profiles_low=tuple(p.low for p in profiles),
        profiles_high=tuple(p.high for p in profiles),
        amplitude=estimate(amplitude),
        variance=estimate(variance),
        amplitude_change=estimate(changes[0]),
        variance_change=estimate(changes[1]),
        parts=parts,
        mean_amplitude_change=estimate(means[0]),
        mean_variance_change=estimate(means[1]),
        n=n,
    )


def _mean(values: Sequence[np.ndarray], n: int) -> np.ndarray:
    """The mean of some [image] arrays, NaN where there is none."""
    return np.mean(values, axis=0) if len(values) else np.full(n, np.nan)
