"""Kernel tying: how many spatial kernels the channels of a layer share (the open question of
Tolstikhin et al. 2021, appendix A.1).

A Mixer has one token MLP for all channels, and giving every channel its own "gave no noticeable
gain"; the paper does not say why. One answer would be that channels need few kernels anyway. For a
layer with one spatial kernel per channel (`channel_kernels`) the kernels are the rows of a matrix
[channel, kernel], and the fewest shared kernels that explain a fraction of its energy are its
leading principal components, without centring: squared singular values, added up from the largest.
This is measured

- on raw kernels, where strong channels count most, and on kernels of unit norm, where all channels
  count equally;
- exactly, in the space of the kernels (all S x S entries of an effective kernel), and in offset
  space, where pictures and null live: the sqrt(pairs)-weighted average kernels, the coordinates of
  the projection on BTTB matrices. For a convolution the two agree.

The null has kernels of the same spectrum: every channel keeps the amplitudes of its own 2-D DFT in
offset space (and its mean) and draws its phases at random. Smooth or small kernels are
few-dimensional by themselves; only a count below that of the null means that channels share shapes.
That is tested in closed form (`overlap_null`); draws of the null are for pictures. A Mixer's and a
ViT's channels share kernels by their architecture, so that an untrained baseline belongs beside
them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
import torch

from mixer_probe.capture import ImageSource, as_source
from mixer_probe.core.errors import MeasureError, UndefinedKernelWarning, layer_index
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result, storable
from mixer_probe.core.validate import checked
from mixer_probe.core.words import first_and_more
from mixer_probe.models.model import Model
from mixer_probe.stats import ratio
from mixer_probe.stats.claims import LEVEL, beyond_baseline
from mixer_probe.weights.channel_kernels import (
    ChannelKernels,
    KernelSums,
    channel_kernels,
    needs_images,
)
from mixer_probe.weights.overlap_null import shared_shapes
from mixer_probe.weights.spectrum import randomise_phases
from mixer_probe.weights.units import effective_rank

FRACTIONS = (0.5, 0.9, 0.99)


@storable
@dataclass(frozen=True)
class KernelSpectrum:
    """The energy of each shared kernel of one layer, largest first: squared singular values of
    [channel, kernel].

    `energies` [r] in the space of the kernels, `offset_energies` [q] in offset space, `null` [draw,
    q] those of phase-randomised kernels in offset space (no draws where kernels are tied by
    construction). `dictionary` [k, oh, ow] are the leading shared kernels in offset space, each of
    unit norm in the space of the kernels; for S x S kernels the mean over the available pairs of an
    offset. The sign of a shared kernel is arbitrary: its largest entry (times the root of its
    pairs) is made positive."""

    energies: Annotated[np.ndarray, "kernel"]
    offset_energies: Annotated[np.ndarray, "offset_kernel"]
    null: Annotated[np.ndarray, "draw", "offset_kernel"]
    dictionary: Annotated[np.ndarray, "top", "row", "column"]

    @property
    def fractions(self) -> np.ndarray:
        """Fraction of the energy that each shared kernel explains [r]; NaN for kernels of zeros."""
        return ratio(self.energies, self.energies.sum(-1, keepdims=True))

    @property
    def cumulative(self) -> np.ndarray:
        """Fraction of the energy that the leading 1, 2, ... shared kernels explain [r]."""
        return np.cumsum(self.fractions)

    @property
    def offset_cumulative(self) -> np.ndarray:
        """`cumulative` in offset space [q]."""
        return np.cumsum(ratio(self.offset_energies, self.offset_energies.sum(-1, keepdims=True)))

    @property
    def null_cumulative(self) -> np.ndarray:
        """`offset_cumulative` of every draw of the null [draw, q]."""
        return np.cumsum(ratio(self.null, self.null.sum(-1, keepdims=True)), axis=-1)

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of singular values divided by their sum (Roy and Vetterli 2007); NaN
        for kernels of zeros."""
        return effective_rank(np.sqrt(self.energies))

    @checked(MeasureError)
    def count(self, fraction: float) -> float:
        """How many shared kernels explain this fraction of the energy; NaN for kernels of zeros."""
        return count_for(self.energies, fraction)

    @checked(MeasureError)
    def offset_count(self, fraction: float) -> float:
        """`count` in offset space, which is what the null compares with."""
        return count_for(self.offset_energies, fraction)

    @checked(MeasureError)
    def null_count(self, fraction: float) -> tuple[float, float, float]:
        """(mean, 5 % quantile, 95 % quantile) of the count over the draws of the null; NaN without
        draws."""
        counts = np.array([count_for(draw, fraction) for draw in self.null])
        if not len(counts) or np.isnan(counts).any():
            return (float("nan"),) * 3
        low, high = np.quantile(counts, [0.05, 0.95])
        return float(counts.mean()), float(low), float(high)


@storable
@dataclass(frozen=True)
class LayerTying:
    """How many kernels the `channels` of one layer share. `shape` is (kh, kw), or (S, S) for
    effective kernels.

    `source` says where the kernels are from: "weights", "data" (measured on images) or
    "construction" (the architecture has one kernel for all channels). `possible` is the most that
    there can be: the least of channels, entries of a kernel, and hidden units (Mixer; of all groups
    where groups of channels have token MLPs of their own) or heads (ViT). `raw` counts kernels as
    they are, `unit` all kernels at norm 1.

    `sharing` is the sum of squared inner products of kernels in offset space over its mean under
    the null (1: as the null, larger: shared shapes), and `p_value` its one-sided p-value
    (`overlap_null.shared_shapes`); NaN where kernels are tied by construction."""

    block: str
    layer: str
    depth: float
    source: str
    channels: int
    shape: tuple[int, int]
    possible: int
    raw: KernelSpectrum
    unit: KernelSpectrum
    sharing: float
    p_value: float

    def spectrum(self, normalise: bool = False) -> KernelSpectrum:
        """`unit` if `normalise`, else `raw`."""
        return self.unit if normalise else self.raw


@dataclass(frozen=True)
class KernelTying(Result):
    """How many spatial kernels the channels of each layer share, in execution order, with `draws`
    draws of the null.

    `images` is None where the kernels are weights, and `n` the number of images otherwise."""

    title: ClassVar[str] = "Kernel tying"

    model: ModelRecord
    images: ImagesRecord | None
    layers: Annotated[tuple[LayerTying, ...], "layer"]
    draws: int
    seed: int

    @property
    def n(self) -> int:
        """Number of images, 0 where kernels are from weights alone."""
        return self.images.n if self.images else 0

    def index(self, layer: int | str) -> int:
        """Index of a layer given by number (negative counts from the end) or path of layer or
        block. Raises LayerError."""
        return layer_index(
            layer, [(entry.layer, entry.block) for entry in self.layers], self.model.name, "layer"
        )

    def layer(self, layer: int | str) -> LayerTying:
        """The entry of one layer. Raises LayerError that names the range or close paths."""
        return self.layers[self.index(layer)]

    @checked(MeasureError)
    def counts(self, fraction: float = 0.9, *, normalise: bool = False) -> np.ndarray:
        """How many shared kernels explain this fraction of the energy, [layer]."""
        return np.array([entry.spectrum(normalise).count(fraction) for entry in self.layers])

    def over_null(self, fraction: float = 0.9, *, normalise: bool = False) -> np.ndarray:
        """The count in offset space relative to that of kernels with the same spectra and random
        phases, [layer]: below 1 channels share shape. NaN without a null."""
        spectra = [entry.spectrum(normalise) for entry in self.layers]
        return np.array(
            [
                spectrum.offset_count(fraction) / spectrum.null_count(fraction)[0]
                for spectrum in spectra
            ]
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: counts for 50, 90 and 99 %, effective rank, the same in offset space
        with its null (mean, 5 and 95 %), and all that again for kernels of unit norm (columns
        `unit_...`)."""
        rows = [
            {
                "model": self.model.name,
                "layer": entry.layer,
                "depth": entry.depth,
                "source": entry.source,
                "channels": entry.channels,
                "kernel": "×".join(map(str, entry.shape)),
                "possible": entry.possible,
                **_columns(entry.raw, ""),
                **_columns(entry.unit, "unit_"),
                "sharing": entry.sharing,
                "sharing_p": entry.p_value,
                "n_images": self.n,
                "draws": len(entry.raw.null),
            }
            for entry in self.layers
        ]
        return pd.DataFrame(rows)


def _columns(spectrum: KernelSpectrum, prefix: str) -> dict[str, float]:
    row = {
        f"{prefix}count_{_percent(fraction)}": spectrum.count(fraction) for fraction in FRACTIONS
    }
    row[f"{prefix}effective_rank"] = spectrum.effective_rank
    row[f"{prefix}first_fraction"] = float(spectrum.fractions[0])
    for fraction in FRACTIONS:
        row[f"{prefix}offset_count_{_percent(fraction)}"] = spectrum.offset_count(fraction)
        names = [f"{prefix}null_count_{_percent(fraction)}{end}" for end in ("", "_low", "_high")]
        row.update(zip(names, spectrum.null_count(fraction), strict=True))
    return row


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f}"


def count_for(energies: np.ndarray, fraction: float) -> float:
    """The fewest of `energies` [r], largest first, that add up to this fraction of their sum; NaN
    if they are all zero.

    Raises MeasureError for a fraction that is not in (0, 1]."""
    if not 0 < fraction <= 1:
        raise MeasureError(f"fraction must be above 0 and at most 1, not {fraction}")
    cumulative = np.cumsum(energies)
    if not len(energies) or not cumulative[-1] > 0:
        return float("nan")
    # Sums that are equal but for rounding count as reached.
    return float(np.argmax(cumulative >= fraction * cumulative[-1] * (1 - 1e-12)) + 1)


@checked(MeasureError)
def kernel_tying(
    model: Model,
    images: ImageSource | torch.Tensor | None = None,
    *,
    sums: KernelSums | None = None,
    draws: int = 10,
    components: int = 16,
    batch_size: int = 32,
    seed: int = 0,
) -> KernelTying:
    """How many spatial kernels the channels of each layer share, against a null of the same
    spectrum.

    From weights alone for the depthwise convolutions of ConvNeXt, EfficientNet and ConvMixer;
    ResMLP and gMLP are tied by construction; for Mixer, gMixer and ViT `images` are needed, on
    which the mean Jacobian of each channel is taken (`mixer_probe.weights.channel_kernels`). Images
    are streamed and memory does not grow with their number; `sums` over them, read in another pass,
    take their place. `draws` are the draws of the null,
    `components` the shared kernels kept as pictures. Raises ModelError for a network without
    kernels per channel (ResNet) or whose images are missing, and warns with UndefinedKernelWarning
    of layers whose kernels are all zero."""
    measured = needs_images(model) and images is not None
    source = as_source(images) if measured and images is not None else None
    found = channel_kernels(model, source, sums=sums, batch_size=batch_size)
    layers = tuple(
        layer_tying(k, draws=draws, components=components, seed=seed + i)
        for i, k in enumerate(found)
    )
    zero = [f"'{entry.layer}'" for entry in layers if not entry.raw.energies.any()]
    if zero:
        text = f"the kernels of {first_and_more(zero)} are zero: their counts are NaN"
        warnings.warn(text, UndefinedKernelWarning, stacklevel=3)
    return KernelTying(model.record, source.record if source else None, layers, draws, seed)


@dataclass(frozen=True)
class SharedShapes:
    """In how many `tests` layers channels share shape `beyond` their spectra (Bonferroni), and in
    how many of these also beyond the untrained baseline (`learned`, None without a baseline)."""

    tests: int
    beyond: int
    learned: int | None


def shared_shape_layers(result: KernelTying, baseline: KernelTying | None) -> SharedShapes:
    """In how many layers channels share more shape than random phases and than the untrained
    baseline would give."""
    p = np.array([entry.p_value for entry in result.layers])
    tests = int(np.isfinite(p).sum())
    beyond = np.isfinite(p) & (p * tests <= LEVEL)
    if baseline is None or not beyond.any():
        return SharedShapes(tests, int(beyond.sum()), None if baseline is None else 0)
    own, other = (np.log([entry.sharing for entry in r.layers]) for r in (result, baseline))
    return SharedShapes(tests, int(beyond.sum()), int((beyond & beyond_baseline(own, other)).sum()))


def layer_tying(
    kernels: ChannelKernels, *, draws: int = 10, components: int = 16, seed: int = 0
) -> LayerTying:
    """How many kernels the channels of one layer share, see `kernel_tying`."""
    # [C, k] with the inner products of the kernels: coefficients times the square root of the Gram
    # matrix of the basis.
    values, vectors = np.linalg.eigh(kernels.gram)
    coordinates = kernels.coefficients @ ((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)
    norms = np.linalg.norm(coordinates, axis=1)
    # A channel without a kernel stays without one.
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    tied = kernels.source == "construction"
    offsets = kernels.in_offset_space
    null = [
        randomise_phases(offsets, np.random.default_rng([seed, draw]))
        for draw in range(0 if tied else draws)
    ]
    flat = [k.reshape(len(norms), -1) for k in (offsets, *null)]
    # One Gram matrix of the channels serves both, where it is the smaller one.
    grams = [m @ m.T for m in flat] if flat[0].shape[0] < flat[0].shape[1] else []

    def spectrum(factors: np.ndarray) -> KernelSpectrum:
        """With kernel c multiplied by factors[c]."""
        if grams:
            scaled = [gram * np.outer(factors, factors) for gram in grams]
        else:
            scaled = [(m := matrix * factors[:, None]).T @ m for matrix in flat]
        own, *drawn = (_without_noise(np.linalg.eigvalsh(gram)[::-1]) for gram in scaled)
        u, s, _v = np.linalg.svd(coordinates * factors[:, None], full_matrices=False)
        energies = _without_noise(s**2)
        kept = min(components, int(np.count_nonzero(energies)))
        combination = (u[:, :kept] * factors[:, None]).T @ kernels.coefficients / s[:kept, None]
        dictionary = np.tensordot(combination, kernels.pictures, 1)
        if kept:
            # The entry of largest weighted magnitude is made positive.
            weighted = (dictionary * np.sqrt(kernels.pairs)).reshape(kept, -1)
            largest = weighted[np.arange(kept), np.abs(weighted).argmax(1)]
            dictionary = dictionary * np.where(largest < 0, -1.0, 1.0)[:, None, None]
        return KernelSpectrum(energies, own, np.array(drawn).reshape(-1, len(own)), dictionary)

    sharing, p = (float("nan"), float("nan")) if tied else shared_shapes(offsets)
    return LayerTying(
        block=kernels.block,
        layer=kernels.layer,
        depth=kernels.depth,
        source=kernels.source,
        channels=len(norms),
        shape=kernels.shape,
        possible=min(len(norms), kernels.shape[0] * kernels.shape[1], len(kernels.gram)),
        raw=spectrum(np.ones(len(norms))),
        unit=spectrum(inverse),
        sharing=sharing,
        p_value=p,
    )


def _without_noise(energies: np.ndarray) -> np.ndarray:
    """Energies in which what rounding leaves of zero, of either sign, is zero."""
    floor = energies.max(initial=0.0) * len(energies) * np.finfo(np.float64).eps
    clean: np.ndarray = np.where(energies > floor, energies, 0.0)
    return clean
