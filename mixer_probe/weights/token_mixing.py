"""Token-mixing units: what each hidden unit of a Mixer's token MLPs reads from the image plane (Tolstikhin et al. 2021, Fig. 5).

A unit is a row of the first token-mixing layer of a block, drawn as a map over the patch grid. Frequency is the power centroid of
the mean-removed map; the partner of a unit is the one with the most negative cosine similarity (the paper pairs kernels of
opposing phase but gives no formula; both are ours). The null draws phases at random and keeps every unit's amplitude spectrum:
smooth maps have few effective dimensions, so an iid null would call every pair of them special.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from timm.models.mlp_mixer import MixerBlock, ResBlock, SpatialGatingBlock
from torch import nn

from mixer_probe.errors import LayerError, ModelError, closest
from mixer_probe.models.model import Model
from mixer_probe.models.structure import Block
from mixer_probe.results import ModelRecord, Result
from mixer_probe.weights.spectrum import power_centroid, randomise_phases

# Where the layer that first mixes tokens is in each of timm's four forms.
_FIRST = ((MixerBlock, "mlp_tokens.fc1"), (ResBlock, "linear_tokens"), (SpatialGatingBlock, "mlp_channels.gate.proj"))


@dataclass(frozen=True)
class TokenMixing(Result):
    """The units of every block. Arrays are tuples over blocks: `maps` [unit, h, w], the others [unit].

    `null_mean` and `null_q05` are the mean and the 5 % quantile (the 5 % most negative) of the partner cosine under
    phase randomisation, one value a block."""

    title: ClassVar[str] = "Token-mixing units"

    model: ModelRecord
    form: str
    grid: tuple[int, int]
    blocks: tuple[str, ...]
    maps: tuple[np.ndarray, ...]
    frequencies: tuple[np.ndarray, ...]
    partners: tuple[np.ndarray, ...]
    cosines: tuple[np.ndarray, ...]
    null_mean: np.ndarray
    null_q05: np.ndarray
    surrogates: int
    seed: int

    def index(self, block: int | str) -> int:
        """Position of a block given by number (negative counts from the end) or module path. Raises LayerError."""
        if isinstance(block, str):
            if block not in self.blocks:
                raise LayerError(f"no block '{block}' in {self.model.name}; {closest(block, self.blocks)}")
            return self.blocks.index(block)
        if not -len(self.blocks) <= block < len(self.blocks):
            raise LayerError(f"{self.model.name} has blocks 0 to {len(self.blocks) - 1}, not {block}")
        return block % len(self.blocks)

    def units(self, block: int | str) -> np.ndarray:
        """Maps [unit, h, w] of one block: row u of the first token-mixing layer on the patch grid."""
        return self.maps[self.index(block)]

    def frequency(self, block: int | str) -> np.ndarray:
        """Power centroid [unit] in cycles per token; NaN for a constant unit."""
        return self.frequencies[self.index(block)]

    def partner(self, block: int | str) -> np.ndarray:
        """Index [unit] of the unit with the most negative cosine similarity."""
        return self.partners[self.index(block)]

    def partner_cosine(self, block: int | str) -> np.ndarray:
        """Cosine similarity [unit] with the partner."""
        return self.cosines[self.index(block)]

    def order(self, block: int | str) -> np.ndarray:
        """Units [unit] as the paper lays them out: low frequency first, each followed by its closest inverse still free."""
        return paired_order(self.units(block), self.frequency(block))

    def share_paired(self, block: int | str) -> float:
        """Share of units whose partner is more negative than the 5 % quantile of the null (0.05 if there is nothing)."""
        i = self.index(block)
        return float((self.cosines[i] < self.null_q05[i]).mean())

    def to_frame(self) -> pd.DataFrame:
        """One row a unit: block, depth, unit, frequency, partner, cosine, norm."""
        return pd.concat([self._block_frame(i) for i in range(len(self.blocks))], ignore_index=True)

    def _block_frame(self, i: int) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "model": self.model.name,
                "block": self.blocks[i],
                "depth": (i + 1) / len(self.blocks),
                "unit": np.arange(len(self.maps[i])),
                "frequency_cycles_per_token": self.frequencies[i],
                "partner": self.partners[i],
                "partner_cosine": self.cosines[i],
                "norm": np.sqrt((self.maps[i] ** 2).sum((1, 2))),
            }
        )

    def summary(self) -> pd.DataFrame:
        """One row a block: units, mean frequency, mean partner cosine, its null, share of units paired beyond the null."""
        rows = range(len(self.blocks))
        return pd.DataFrame(
            {
                "model": self.model.name,
                "block": self.blocks,
                "depth": [(i + 1) / len(self.blocks) for i in rows],
                "units": [len(self.maps[i]) for i in rows],
                "mean_frequency": [float(np.nanmean(self.frequencies[i])) for i in rows],
                "mean_partner_cosine": [float(self.cosines[i].mean()) for i in rows],
                "null_mean": self.null_mean,
                "null_q05": self.null_q05,
                "share_paired": [self.share_paired(i) for i in rows],
            }
        )


def token_mixing(model: Model, *, surrogates: int = 20, seed: int = 0) -> TokenMixing:
    """Units, frequencies and opposite-phase partners of every block of a Mixer, gMixer, ResMLP or gMLP.

    Raises ModelError for another family, whose blocks have no token-mixing weights."""
    if model.family != "mixer":
        raise ModelError(
            f"{model.name} is a {model.family} and has no token-mixing weights; token_mixing takes Mixer, gMixer, ResMLP and gMLP"
        )
    grid = model.structure.token_grid
    blocks = [(block.path, *_first_layer(block)) for block in model.structure.blocks]
    if grid is None or not blocks:
        raise ModelError(f"the patch grid of {model.name} is not known, so its units cannot be drawn as maps")
    maps = tuple(_weight(layer).reshape(-1, *grid) for _path, _form, layer in blocks)
    pairs = [partners(m) for m in maps]
    nulls = [partner_null(m, surrogates, seed) for m in maps]
    return TokenMixing(
        model=model.record,
        form=blocks[0][1],
        grid=grid,
        blocks=tuple(path for path, _form, _layer in blocks),
        maps=maps,
        frequencies=tuple(power_centroid(m) for m in maps),
        partners=tuple(partner for partner, _cosine in pairs),
        cosines=tuple(cosine for _partner, cosine in pairs),
        null_mean=np.array([mean for mean, _q05 in nulls]),
        null_q05=np.array([q05 for _mean, q05 in nulls]),
        surrogates=surrogates,
        seed=seed,
    )


def _first_layer(block: Block) -> tuple[str, nn.Module]:
    path = next(path for cls, path in _FIRST if isinstance(block.module, cls))
    gated = path == "mlp_tokens.fc1" and type(block.module.get_submodule("mlp_tokens")).__name__ == "GluMlp"
    return ("mlp_tokens.fc1 (gated)" if gated else path), block.module.get_submodule(path)


def _weight(layer: nn.Module) -> np.ndarray:
    weight = layer.get_parameter("weight").detach().float().cpu().numpy()
    copied: np.ndarray = weight.copy()
    return copied


def partners(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each map [unit, h, w] the unit of most negative cosine similarity, and that cosine. Needs two units or more.

    Raises LayerError for a single unit."""
    if len(maps) < 2:
        raise LayerError("a partner needs at least two units")
    cosine = _cosines(maps)
    np.fill_diagonal(cosine, np.inf)
    found = cosine.argmin(1)
    return found, cosine[np.arange(len(maps)), found]


def _cosines(maps: np.ndarray) -> np.ndarray:
    rows = maps.reshape(len(maps), -1).astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    cosine: np.ndarray = unit @ unit.T
    return cosine


def partner_null(maps: np.ndarray, surrogates: int, seed: int) -> tuple[float, float]:
    """(mean, 5 % quantile) of the partner cosine over phase-randomised copies of the maps."""
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([partners(randomise_phases(maps, rng))[1] for _ in range(surrogates)])
    return float(drawn.mean()), float(np.quantile(drawn, 0.05))


def paired_order(maps: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Low frequency first, each unit followed by its most opposite unit among those not yet placed."""
    cosine = _cosines(maps)
    free = np.ones(len(maps), dtype=bool)
    order: list[int] = []
    for unit in np.argsort(frequency, kind="stable"):  # NaN (constant units) sorts last
        if not free[unit]:
            continue
        free[unit] = False
        order.append(int(unit))
        if free.any():
            partner = int(np.where(free, cosine[unit], np.inf).argmin())
            free[partner] = False
            order.append(partner)
    return np.array(order)
