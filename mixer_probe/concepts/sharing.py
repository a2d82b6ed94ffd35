"""What the networks of a dictionary share: how well the code of one reconstructs another, which
atoms are active in both, and how the energy of atoms is divided among networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from mixer_probe.concepts.dictionary import (
    Dictionary,
    DictionaryRecipe,
    check_parts,
    fit_dictionary,
    orders,
    positions_of,
)
from mixer_probe.concepts.grid_activations import GridActivations
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.finding import Number
from mixer_probe.core.frame import Frame
from mixer_probe.core.memory import slices
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.stats.intervals import crossed_interval

Sums = dict[str, np.ndarray]
Condition = Literal["networks", "shuffled images", "untrained", "two seeds"]
# An atom belongs to one network that has at least this fraction of its energy.
OWN = 0.9
# Groups of images whose influence gives the intervals.
GROUPS = 20
_IMAGES = 64


@dataclass(frozen=True)
class ConceptSharing(Result):
    """What networks share in dictionaries of `atoms` atoms, `active` of them in a code, trained
    with several `seeds` on `fit_images` images and measured on others, at one layer of each
    network. `layers` are their names, `depths` relative; `grid` is that of the positions.

    `condition` says what the networks are: "networks" to compare, the same ones on "shuffled
    images" (each sees other images at the same time: the null hypothesis), the same ones
    "untrained", or "two seeds" of one architecture, which share as much as training allows.

    All with interval [..., (value, low, high)], for other images and other seeds:

    - `r2` [network, network_b]: fraction of the variance of the second network's activations that
      its decoder explains from the first network's code; on the diagonal the network's own.
    - `cofiring`: the sum over positions and atoms of the smaller of two networks' codes, divided by
      that of the larger: 1 if the same atoms are equally active in both, 0 if none is active in
      both.
    - `sharing`: the entropy of the energy of an atom over two networks, relative to that of equal
      energies (log 2), averaged over atoms with their energy as weight. The energy of an atom in a
      network is the mean square of what it adds to the network's activations by its own code. 0:
      every atom is of one network. 1: every atom has the same energy in both.
    - `own` [network]: fraction of the network's energy in atoms of which it has 90 % of the energy
      of all networks.

    `energies` [seed, network, atom] are these energies; `stability` is the cosine of the decoders
    of atoms matched between two seeds, averaged with energy as weight (NaN for one seed)."""

    title: ClassVar[str] = "Shared concepts"
    frame: ClassVar[Frame] = Frame(
        "network network_b",
        "model_a=models.name layer_a=layers model_b=models_b.name layer_b=layers_b condition "
        "r2,r2_low,r2_high=r2 cofiring,cofiring_low,cofiring_high=cofiring "
        "sharing,sharing_low,sharing_high=sharing atoms active n",
    )

    models: Annotated[tuple[ModelRecord, ...], "network"]
    layers: Annotated[tuple[str, ...], "network"]
    depths: Annotated[np.ndarray, "network"]
    grid: tuple[int, int]
    condition: str
    images: ImagesRecord
    fit_images: ImagesRecord
    atoms: int
    active: int
    seeds: Annotated[tuple[int, ...], "seed"]
    r2: Annotated[np.ndarray, "network", "network_b", 3]
    cofiring: Annotated[np.ndarray, "network", "network_b", 3]
    sharing: Annotated[np.ndarray, "network", "network_b", 3]
    own: Annotated[np.ndarray, "network", 3]
    energies: Annotated[np.ndarray, "seed", "network", "atom"]
    stability: float

    @property
    def models_b(self) -> Annotated[tuple[ModelRecord, ...], "network_b"]:
        """The networks that are reconstructed."""
        return self.models

    @property
    def layers_b(self) -> Annotated[tuple[str, ...], "network_b"]:
        """Their layers."""
        return self.layers

    @property
    def n(self) -> int:
        """Images that the numbers were measured on."""
        return self.images.n

    @cached_property
    def sharedness(self) -> Annotated[np.ndarray, "seed", "atom"]:
        """The entropy of the energy of each atom over all networks, relative to that of equal
        energies [seed, atom]; NaN for atoms that are never active and for a single network."""
        return entropy(self.energies, axis=1)

    def number(self, kind: str, a: int, b: int) -> Number:
        """One of `r2`, `cofiring` and `sharing` of two networks, with its interval."""
        value, low, high = (float(v) for v in getattr(self, kind)[a, b])
        return Number(kind, value, low, high, n=self.n)


def entropy(energies: np.ndarray, axis: int) -> np.ndarray:
    """Entropy of shares of `energies` along an axis, relative to that of equal shares; NaN where
    all are zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        p = energies / energies.sum(axis, keepdims=True)
        terms = np.where(p == 0, 0.0, p * np.log(p))
        found: np.ndarray = -terms.sum(axis) / np.log(energies.shape[axis])
    return found


@checked(MeasureError)
def concept_sharing(
    fit: Sequence[GridActivations],
    test: Sequence[GridActivations],
    recipe: DictionaryRecipe | None = None,
    *,
    condition: Condition = "networks",
    seeds: int = 2,
    device: str = "cpu",
) -> ConceptSharing:
    """`ConceptSharing` of networks from dictionaries with the seeds 0 to `seeds` - 1 after the
    recipe's, trained on `fit` and measured on `test`, in the same order of networks.

    Intervals are those of two crossed factors, seeds and groups of images (`crossed_interval`), of
    pseudo-values of the delete-a-group jackknife (Shao and Tu 1995).

    Raises what `fit_dictionary` raises, and MeasureError for one network, for `test` activations of
    other networks or layers, and for fewer images than groups."""
    recipe = recipe or DictionaryRecipe()
    shuffled = condition == "shuffled images"
    dictionaries = fit_dictionaries(fit, recipe, seeds, shuffled=shuffled, device=device)
    return sharing_of(dictionaries, fit, test, recipe, condition)


def sharing_of(
    dictionaries: Sequence[Dictionary],
    fit: Sequence[GridActivations],
    test: Sequence[GridActivations],
    recipe: DictionaryRecipe,
    condition: Condition = "networks",
) -> ConceptSharing:
    """`ConceptSharing` of dictionaries that were trained with the recipe's seed and those after
    it."""
    if len(fit) != len(test):
        raise MeasureError(f"{len(test)} networks to test for {len(fit)}: give the same ones")
    for ours, theirs in zip(fit, test):
        if (ours.model.fingerprint, ours.layer.name) != (
            theirs.model.fingerprint,
            theirs.layer.name,
        ):
            raise MeasureError(
                f"the dictionary is of {ours.model.name} at '{ours.layer.name}', not of "
                f"{theirs.model.name} at '{theirs.layer.name}': give the same networks and layers "
                "in the same order"
            )
    shuffled = condition == "shuffled images"
    seeds = tuple(range(recipe.seed, recipe.seed + len(dictionaries)))
    sums = [
        code_sums(found, test, orders(test, seed, shuffled))
        for found, seed in zip(dictionaries, seeds, strict=True)
    ]
    every = {name: np.stack([one[name] for one in sums]) for name in sums[0]}
    return ConceptSharing(
        models=tuple(part.model for part in test),
        layers=tuple(part.layer.name for part in test),
        depths=np.array([part.layer.depth for part in test]),
        grid=test[0].grid,
        condition=condition,
        images=test[0].images,
        fit_images=fit[0].images,
        atoms=recipe.atoms,
        active=recipe.active,
        seeds=seeds,
        **{name: _estimate(every, of) for name, of in _QUANTITIES.items()},
        energies=_energies(every).sum(1) / every["positions"].sum(1)[:, None, None],
        stability=_stability(dictionaries, every),
    )


def fit_dictionaries(
    fit: Sequence[GridActivations],
    recipe: DictionaryRecipe,
    seeds: int,
    *,
    shuffled: bool = False,
    device: str = "cpu",
) -> list[Dictionary]:
    """`fit_dictionary` with the recipe's seed and those after it. Raises as it does, and
    MeasureError for one network."""
    if len(fit) < 2:
        raise MeasureError("sharing needs at least two networks")
    return [
        fit_dictionary(fit, replace(recipe, seed=seed), shuffled=shuffled, device=device)
        for seed in range(recipe.seed, recipe.seed + seeds)
    ]


def code_sums(
    dictionary: Dictionary, parts: Sequence[GridActivations], images: Sequence[np.ndarray]
) -> Sums:
    """Sums over the positions of groups of images, each network at its own `images`: `positions`
    [group], `errors` [group, source, target] and `variance` [group, network] of normalised
    activations, `squares` [group, network, atom] of codes, `smaller` [group, network, network], the
    smaller of two networks' codes (the diagonal: the network's); and `norms` [network, atom],
    squared, of decoders.

    Raises MeasureError for parts that are not those of the dictionary, and for fewer than `GROUPS`
    images."""
    check_parts(parts)
    n, networks = len(images[0]), len(parts)
    widths = tuple(part.layer.channels for part in parts)
    if widths != dictionary.widths:
        raise MeasureError(
            f"the dictionary is of networks with {dictionary.widths} channels, not {widths}"
        )
    if n < GROUPS:
        raise MeasureError(f"intervals need at least {GROUPS} images, not {n}")
    shapes: dict[str, tuple[int, ...]] = {
        "positions": (),
        "errors": (networks, networks),
        "variance": (networks,),
        "squares": (networks, dictionary.atoms),
        "smaller": (networks, networks),
    }
    found = {name: np.zeros((GROUPS, *shape)) for name, shape in shapes.items()}
    for group, rows in enumerate(np.array_split(np.arange(n), GROUPS)):
        for some in slices(len(rows), _IMAGES):
            chosen = [order[rows[some]] for order in images]
            x = positions_of(dictionary, parts, chosen)
            found["positions"][group] += len(x[0])
            found["variance"][group] += [float(part.double().square().sum()) for part in x]
            codes = []
            for i, own in enumerate(x):
                values, atoms = dictionary.encode(i, own)
                for j, decoded in enumerate(dictionary.decode(values, atoms)):
                    found["errors"][group, i, j] += float((decoded - x[j]).double().square().sum())
                codes.append(own.new_zeros(len(own), dictionary.atoms).scatter_(1, atoms, values))
            found["squares"][group] += [c.double().square().sum(0).cpu().numpy() for c in codes]
            found["smaller"][group] += [
                [float(torch.minimum(a, b).double().sum()) for b in codes] for a in codes
            ]
    norms = torch.stack([own.double().square().sum(1) for own in dictionary.decoders])
    return {**found, "norms": norms.cpu().numpy()}


def _energies(sums: Sums) -> np.ndarray:
    """Energy [seed, group, network, atom], summed over positions."""
    found: np.ndarray = sums["squares"] * sums["norms"][:, None]
    return found


def _r2(sums: Sums) -> np.ndarray:
    found: np.ndarray = 1 - sums["errors"] / sums["variance"][..., None, :]
    return found


def _cofiring(sums: Sums) -> np.ndarray:
    both = sums["smaller"]
    single = np.diagonal(both, axis1=-2, axis2=-1)
    found: np.ndarray = both / (single[..., :, None] + single[..., None, :] - both)
    return found


def _sharing(sums: Sums) -> np.ndarray:
    """[..., network, network_b] from `energies` [..., network, atom]."""
    e = sums["energies"]
    pairs = np.stack(np.broadcast_arrays(e[..., :, None, :], e[..., None, :, :]), -2)
    weights = pairs.sum(-2)
    found: np.ndarray = (np.nan_to_num(entropy(pairs, -2)) * weights).sum(-1) / weights.sum(-1)
    return found


def _own(sums: Sums) -> np.ndarray:
    e = sums["energies"]
    with np.errstate(invalid="ignore"):
        mine = e / e.sum(-2, keepdims=True) >= OWN
    found: np.ndarray = (e * mine).sum(-1) / e.sum(-1)
    return found


_QUANTITIES: dict[str, Callable[[Sums], np.ndarray]] = {
    "r2": _r2,
    "cofiring": _cofiring,
    "sharing": _sharing,
    "own": _own,
}


def _estimate(sums: Sums, of: Callable[[Sums], np.ndarray]) -> np.ndarray:
    """Value, low and high [..., 3] of a quantity of sums over images: means over seeds of the
    values of all images, with the interval of the pseudo-values [seed, group]."""
    by_group = {
        "errors": sums["errors"],
        "variance": sums["variance"],
        "smaller": sums["smaller"],
        "energies": _energies(sums),
    }
    whole = of({name: value.sum(1) for name, value in by_group.items()})
    left = of({name: value.sum(1, keepdims=True) - value for name, value in by_group.items()})
    pseudo = GROUPS * whole[:, None] - (GROUPS - 1) * left
    mean, low, high = crossed_interval(np.moveaxis(pseudo, (0, 1), (-2, -1)))
    value = whole.mean(0)
    least = -np.inf if of is _r2 else 0.0
    bounds = (np.clip(value + side - mean, least, 1.0) for side in (low, high))
    return np.stack([value, *bounds], -1)


def _stability(dictionaries: Sequence[Dictionary], sums: Sums) -> float:
    weights = _energies(sums).sum((1, 2))
    found = []
    for i, a in enumerate(dictionaries):
        for j, b in enumerate(dictionaries[:i]):
            cosines = (a.decoder @ b.decoder.T).cpu().numpy()
            rows, columns = linear_sum_assignment(-cosines)
            pair = weights[i, rows] * weights[j, columns] > 0
            weight = (weights[i, rows] + weights[j, columns]) * pair
            found.append(float((cosines[rows, columns] * weight).sum() / weight.sum()))
    return float(np.mean(found)) if found else float("nan")
