"""What the atoms of a shared dictionary are: which networks have them, what they respond to, how
they depend on position, and what their removal does to each network's predictions.

Two networks may differ in atoms that neither uses. Whether they differ in what they use is seen by
taking an atom out of a layer and following the change to the logits (the replacement test of RSVC:
Kondapaneni et al. 2025), beside the same code along random directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor

from mixer_probe.capture import ImageSource, edit, input_pictures, intervene, part_of
from mixer_probe.capture.resumed import finished_before, recorded_blocks
from mixer_probe.capture.stream import transform_of
from mixer_probe.concepts.dictionary import Dictionary, orders
from mixer_probe.concepts.grid_activations import Cells, GridActivations
from mixer_probe.concepts.sharing import OWN, code_sums, entropy
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.fingerprint import check_same_images
from mixer_probe.core.frame import Frame
from mixer_probe.core.hooks import returned
from mixer_probe.core.memory import slices
from mixer_probe.core.progress import task
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.switches import evaluating
from mixer_probe.core.validate import checked
from mixer_probe.images.classes import class_name, require_labels
from mixer_probe.linear.stratification import stratified
from mixer_probe.models import Model
from mixer_probe.models.classes import labels_as_outputs
from mixer_probe.models.layer import Layer
from mixer_probe.similarity.inputs import to_grid
from mixer_probe.stats import (
    FEWEST,
    check_permutations,
    crossed_interval,
    delta_interval,
    difference_interval,
    max_null,
    max_p,
    mean_interval,
    paired_counts,
    permutation_p,
)
from mixer_probe.stats.claims import LEVEL
from mixer_probe.stats.differences import difference_p
from mixer_probe.weights.spectrum import power_spectrum

# Owners of an atom other than a network: all networks, or neither all nor one.
ALL, SOME = -1, -2
# An atom is shared by all networks where each has this fraction of an equal share of its energy. A
# network has it at all with this fraction of its energy.
SHARED, PRESENT = 0.5, 0.01
# Atoms with a smaller fraction of an equal share of the energy of every network are not shown.
LEAST = 0.1
# A crop shows this fraction of a side of the image.
CONTEXT = 0.5
# Draws of the null that a map may lie anywhere in its image.
SHIFTS = 199
_IMAGES = 256
EFFECTS = ("logit", "effect", "excess", "accuracy", "class_accuracy")
# Rounding must not make equal statistics differ.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class ConceptAtoms(Result):
    """Some of the `dictionary_atoms` atoms of a dictionary, on images that it was not trained on,
    in each of the networks that share it. `layers` are the networks' own, `depths` relative, `grid`
    that of the positions, whose cells the codes are of.

    `index` [atom] is their place in the dictionary. `owner` [atom] is the network that has at least
    90 % of the energy of an atom, -1 where every network has at least half of an equal share of it
    (shared by all), -2 for others. `energies` [network, atom] are as in `ConceptSharing`. The
    activity of an atom at a cell is the norm of what it adds there to a network's normalised
    activations, by the network's own code. p-values and the effects of removal are NaN in networks
    with less than 1 % of the energy of an atom.

    - `class_means` [network, atom, class]: mean activity of the images of a class; `best_class`
      [network, atom] is the class with the largest, -1 for atoms that are never active; `auroc` is
      the probability that an image of it has the larger mean activity than one of another class,
      ties counting half; `class_p` its p-value over label `permutations`, corrected for the choice
      of the class and for all atoms and networks (Westfall and Young 1993).
    - `mean_map` [network, atom, row, column]: mean activity at each cell. `position_r2` [network,
      atom]: fraction of the variance of the activity that the cell explains
      (eta squared). `position_null` is its expectation where content does not depend on position:
      each map lies anywhere in its image (shifts around the edges), which is the variance within
      images divided by the number of images. `position_p` is the p-value over such shifts,
      corrected for all atoms and networks.
    - `frequency` [network, atom, (value, low, high)]: mean spatial frequency of the maps of the
      activity in cycles per image, weighted by power, without their means. `white_frequency` is
      that of equal power at all frequencies.
    - `top_image`, `top_cell`, `top_value` [network, atom, rank]: the images with the largest
      activity, the cell that has it, and the activity. `crops` (uint8 RGB) are their surroundings,
      `boxes` (top, left, bottom, right) of the cell as fractions of the crop.

    With an atom taken out of the layer of a network, over `n_causal` of the images (NaN for 0):

    - `logit` [network, atom, 3]: mean change of the logit of the right class.
    - `effect`: mean magnitude of this change; `control` [network, atom, draw] is that of the same
      code along random directions of the same norm, drawn from the covariance of the layer's
      activations; `excess` [network, atom, 3] is how much larger the effect is, with an interval
      for other images and other directions.
    - `accuracy`, `class_accuracy` [network, atom, 3]: change of the accuracy, and of that of the
      images of `best_class` (Tango's interval)."""

    title: ClassVar[str] = "Atoms of a shared dictionary"
    frame: ClassVar[Frame] = Frame(
        "network atom",
        """model=models.name layer=layers atom=index shared_by sharedness energy=energies
        most_active_class=best_names auroc class_p position_r2 position_null position_p
        frequency,frequency_low,frequency_high=frequency logit,logit_low,logit_high=logit
        effect,effect_low,effect_high=effect control=control.mean
        excess,excess_low,excess_high=excess used
        accuracy,accuracy_low,accuracy_high=accuracy
        class_accuracy,class_accuracy_low,class_accuracy_high=class_accuracy n n_causal""",
    )

    models: Annotated[tuple[ModelRecord, ...], "network"]
    layers: Annotated[tuple[str, ...], "network"]
    depths: Annotated[np.ndarray, "network"]
    grid: tuple[int, int]
    images: ImagesRecord
    dictionary_atoms: int
    index: Annotated[np.ndarray, "atom"]
    owner: Annotated[np.ndarray, "atom"]
    energies: Annotated[np.ndarray, "network", "atom"]
    class_names: Annotated[tuple[str, ...], "class"]
    class_means: Annotated[np.ndarray, "network", "atom", "class"]
    best_class: Annotated[np.ndarray, "network", "atom"]
    auroc: Annotated[np.ndarray, "network", "atom"]
    class_p: Annotated[np.ndarray, "network", "atom"]
    permutations: int
    mean_map: Annotated[np.ndarray, "network", "atom", "row", "column"]
    position_r2: Annotated[np.ndarray, "network", "atom"]
    position_null: Annotated[np.ndarray, "network", "atom"]
    position_p: Annotated[np.ndarray, "network", "atom"]
    frequency: Annotated[np.ndarray, "network", "atom", 3]
    white_frequency: float
    top_image: Annotated[np.ndarray, "network", "atom", "rank"]
    top_cell: Annotated[np.ndarray, "network", "atom", "rank"]
    top_value: Annotated[np.ndarray, "network", "atom", "rank"]
    crops: Annotated[np.ndarray, "network", "atom", "rank", "height", "width", 3]
    boxes: Annotated[np.ndarray, "network", "atom", "rank", 4]
    n_causal: int
    logit: Annotated[np.ndarray, "network", "atom", 3]
    effect: Annotated[np.ndarray, "network", "atom", 3]
    control: Annotated[np.ndarray, "network", "atom", "draw"]
    excess: Annotated[np.ndarray, "network", "atom", 3]
    accuracy: Annotated[np.ndarray, "network", "atom", 3]
    class_accuracy: Annotated[np.ndarray, "network", "atom", 3]
    seed: int

    @property
    def n(self) -> int:
        """Images."""
        return self.images.n

    @property
    def sharedness(self) -> Annotated[np.ndarray, "atom"]:
        """Entropy of the energy of each atom over networks, relative to that of equal energies; NaN
        for a single network."""
        # Without negative zeros.
        return entropy(self.energies, axis=0) + 0.0

    @property
    def shared_by(self) -> Annotated[tuple[str, ...], "atom"]:
        """The network that an atom is of, "all" or "some"."""
        names = {ALL: "all", SOME: "some"} | {i: m.name for i, m in enumerate(self.models)}
        return tuple(names[int(i)] for i in self.owner)

    @property
    def best_names(self) -> Annotated[np.ndarray, "network", "atom"]:
        """The names of `best_class`."""
        names: np.ndarray = np.array([*self.class_names, ""])[self.best_class]
        return names

    @property
    def present(self) -> Annotated[np.ndarray, "network", "atom"]:
        """Whether a network has an atom: at least 1 % of its energy."""
        return _present(self.energies)

    @property
    def used(self) -> Annotated[np.ndarray, "network", "atom"]:
        """Whether the logit of the right class changes more without an atom than along random
        directions, corrected for all atoms and networks (Bonferroni)."""
        value, low, high = np.moveaxis(self.excess, -1, 0)
        p = difference_p(0.0, 0.0, 0.0, value, low, high) * np.isfinite(low).sum()
        found: np.ndarray = (value > 0) & (p <= LEVEL)
        return found

    def of(self, owner: int) -> np.ndarray:
        """Places of the atoms of an owner."""
        return np.flatnonzero(self.owner == owner)


@checked(MeasureError)
def concept_atoms(
    dictionary: Dictionary,
    models: Sequence[Model],
    parts: Sequence[GridActivations],
    images: ImageSource,
    *,
    most: int = 24,
    k: int = 4,
    pixels: int = 64,
    causal_images: int = 256,
    draws: int = 8,
    permutations: int = 999,
    batch_size: int = 64,
    seed: int = 0,
) -> ConceptAtoms:
    """`ConceptAtoms` of the `most` atoms chosen by `choose_atoms`, with the `k` images with the
    largest activity of each, in crops of at most `pixels`.

    `parts` are activations on labelled `images` that the dictionary was not trained on, `models`
    the networks that gave them, both in the order of the dictionary. Effects on predictions are
    measured on a stratified sample of `causal_images` (0 for none), beside `draws` random
    directions for each atom.

    Raises ImagesError for images without labels, and MeasureError for other images than those of
    the activations, networks that did not give them, images of one class, fewer images than
    `ConceptSharing` needs, and networks whose outputs are not the classes of the images."""
    check_permutations(permutations)
    _check(models, parts, images)
    labels = require_labels(
        images.labels, f"the images ({images.record.name})", "class selectivity", len(images)
    )
    classes, target = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise MeasureError("class selectivity needs images of two classes or more, not of one")
    sums = code_sums(dictionary, parts, orders(parts, 0, False))
    energies = sums["squares"].sum(0) * sums["norms"] / sums["positions"].sum()
    index, owner = choose_atoms(energies, most)
    activity = np.stack(
        [
            _activity(dictionary, parts, i, index) * np.sqrt(sums["norms"][i, index])[:, None, None]
            for i in range(len(parts))
        ]
    )
    grid = parts[0].grid
    maps = activity.reshape(*activity.shape[:-1], *grid)
    frequency, white = mean_frequency(maps)
    present = _present(energies[:, index])
    selective = class_selectivity(activity.mean(-1), target, present, permutations, seed)
    top = _top(activity, k)
    crops, boxes = _crops(models, images, top["top_image"], top["top_cell"], grid, pixels)
    rows = (
        stratified(labels, min(causal_images, len(labels)), seed) if causal_images else np.arange(0)
    )
    effects = {name: np.full((*present.shape, 3), np.nan) for name in EFFECTS}
    effects["control"] = np.full((*present.shape, draws), np.nan)
    for i, (model, part) in enumerate(zip(models, parts, strict=True) if len(rows) else ()):
        if not present[i].any():
            continue
        found = removal(
            dictionary,
            i,
            model,
            part,
            index[present[i]],
            part_of(images, rows),
            [target[rows] == best for best in selective["best_class"][i, present[i]]],
            draws=draws,
            batch_size=batch_size,
            seed=seed + i,
        )
        for name, values in found.items():
            effects[name][i, present[i]] = values
    return ConceptAtoms(
        models=tuple(part.model for part in parts),
        layers=tuple(part.layer.name for part in parts),
        depths=np.array([part.layer.depth for part in parts]),
        grid=grid,
        images=images.record,
        dictionary_atoms=dictionary.atoms,
        index=index,
        owner=owner,
        energies=energies[:, index],
        class_names=tuple(class_name(int(c), images.class_names) for c in classes),
        **selective,
        permutations=permutations,
        **position_dependence(maps, present, min(permutations, SHIFTS), seed),
        frequency=frequency,
        white_frequency=white,
        **top,
        crops=crops,
        boxes=boxes,
        n_causal=len(rows),
        **effects,
        seed=seed,
    )


def _present(energies: np.ndarray) -> np.ndarray:
    found: np.ndarray = energies >= PRESENT * energies.sum(0)
    return found


def _check(models: Sequence[Model], parts: Sequence[GridActivations], images: ImageSource) -> None:
    """Raise MeasureError unless the activations are those of the networks on the images."""
    if len(models) != len(parts):
        raise MeasureError(
            f"{len(models)} networks were given for activations of {len(parts)}: give the networks "
            "of the activations, in their order"
        )
    for i, (model, part) in enumerate(zip(models, parts, strict=True)):
        if model.record.fingerprint != part.model.fingerprint:
            raise MeasureError(
                f"network {i + 1} is {model.name}, and the activations at its place are of "
                f"{part.model.name} with other weights, settings or preprocessing: give the "
                "networks of the activations, in their order"
            )
    check_same_images(parts[0], images)


def choose_atoms(energies: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and owners of `most` of the atoms with `energies` [network, atom], see
    `ConceptAtoms`.

    Those shared by all networks and those of each network take turns, each giving its atom of the
    largest energy over all networks, until there are `most`; atoms of neither kind fill what is
    left. Atoms with less than a tenth of an equal share of the energy of every network are left
    out. The order is: shared by all, of each network, others, each by energy."""
    total, (networks, atoms) = energies.sum(0), energies.shape
    shares = energies / np.where(total > 0, total, 1)
    strong = (energies > 0) & (energies >= LEAST * energies.sum(1, keepdims=True) / atoms)
    owner = np.where(shares.min(0) >= SHARED / networks, ALL, SOME)
    owner = np.where(shares.max(0) >= OWN, shares.argmax(0), owner)
    by_energy = np.argsort(-total, kind="stable")
    by_energy = by_energy[strong.any(0)[by_energy]]
    turn = np.zeros(atoms, dtype=int)
    for kind in (ALL, *range(networks)):
        own = by_energy[owner[by_energy] == kind]
        turn[own] = np.arange(len(own))
    turn[owner == SOME] = atoms
    chosen = by_energy[np.argsort(turn[by_energy], kind="stable")][:most]
    place = np.where(owner == SOME, networks, owner)
    chosen = chosen[np.lexsort((-total[chosen], place[chosen]))]
    return chosen, owner[chosen]


def _activity(
    dictionary: Dictionary, parts: Sequence[GridActivations], network: int, index: np.ndarray
) -> np.ndarray:
    """The codes [atom, image, cell] of one network."""
    n, cells = parts[network].values.shape[:2]
    found = np.empty((len(index), n, cells), dtype=np.float32)
    for rows in slices(n, _IMAGES):
        images = np.arange(n)[rows]
        x = parts[network].rows(images).to(dictionary.means.device)
        code = dictionary.code(network, dictionary.normalised(network, x))
        found[:, rows] = code[:, index].T.reshape(len(index), len(images), cells).cpu().numpy()
    return found


# -- what atoms respond to -------------------------------------------------------------------------


def class_selectivity(
    activity: np.ndarray, target: np.ndarray, present: np.ndarray, permutations: int, seed: int
) -> dict[str, np.ndarray]:
    """`class_means`, `best_class`, `auroc` and `class_p` of mean activities [network, atom, image]
    by classes `target` [image]; p-values of those that are `present` [network, atom].

    The statistic of the permutation test is the sum of the ranks in a class, in standard deviations
    under permuted labels (exact, ties included)."""
    order = np.argsort(target, kind="stable")
    counts = np.bincount(target)
    starts, n = np.cumsum(counts) - counts, len(target)
    ranks = rankdata(activity, axis=-1)
    spread = np.sqrt(ranks.var(-1, ddof=1)[..., None] * counts * (n - counts) / n)

    def sums(values: np.ndarray, order: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.add.reduceat(values[..., order], starts, axis=-1)
        return found

    def standardised(order: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            found: np.ndarray = (sums(ranks, order) - counts * (n + 1) / 2) / spread
        return np.where((spread > 0) & present[..., None], found, np.nan)

    means = sums(activity.astype(np.float64), order) / counts
    constant = spread[..., 0] == 0
    best = means.argmax(-1)
    strength = np.take_along_axis(standardised(order), best[..., None], -1)[..., 0]
    m = counts[best]
    rank_sum = np.take_along_axis(sums(ranks, order), best[..., None], -1)[..., 0]
    auroc = (rank_sum - m * (m + 1) / 2) / (m * (n - m))
    rng = np.random.default_rng(seed)
    largest = [
        max_null(standardised(rng.permutation(n))[None], (1, 2, 3)) for _ in range(permutations)
    ]
    p = permutation_p(strength * (1 - _ROUNDING), np.reshape(largest, (-1, 1, 1)))
    return {
        "class_means": means,
        "best_class": np.where(constant, -1, best),
        "auroc": np.where(constant, np.nan, auroc),
        "class_p": p if permutations else np.full(best.shape, np.nan),
    }


def position_dependence(
    maps: np.ndarray, present: np.ndarray, shifts: int, seed: int
) -> dict[str, np.ndarray]:
    """`mean_map`, `position_r2`, `position_null` and `position_p` of maps [network, atom, image,
    row, column], see `ConceptAtoms`, with p-values of those that are `present` [network, atom]; NaN
    for a single cell and for atoms that are never active."""
    n = maps.shape[2]
    images = maps.mean((-2, -1), dtype=np.float64)[..., None, None]
    within = np.square(maps - images).sum((-3, -2, -1))
    total = np.square(maps - images.mean(2, keepdims=True)).sum((-3, -2, -1))
    # Where no map varies over positions there is nothing to explain.
    known = (within > 0) & (maps.shape[-1] * maps.shape[-2] > 1)

    def between(means: np.ndarray) -> np.ndarray:
        """Sum of squares between cells, relative to its expectation."""
        away = means - means.mean((-2, -1), keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            found: np.ndarray = n * np.square(away).sum((-2, -1)) / (within / n)
        return np.where(known, found, np.nan)

    with np.errstate(invalid="ignore", divide="ignore"):
        null = np.where(known, within / n / total, np.nan)
    mean_map = maps.mean(2, dtype=np.float64)
    ratio = between(mean_map)
    rng = np.random.default_rng(seed)
    drawn = np.array([between(_shifted_mean(maps, rng)) for _ in range(shifts)])
    tested = np.where(present, ratio, np.nan)
    return {
        "mean_map": mean_map,
        "position_r2": ratio * null,
        "position_null": null,
        "position_p": max_p(tested * (1 - _ROUNDING), np.where(present, drawn, np.nan))
        if shifts
        else np.full(ratio.shape, np.nan),
    }


def _shifted_mean(maps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mean over images of maps [network, atom, image, row, column], those of each image shifted
    around the edges by an amount of its own."""
    n, rows, columns = maps.shape[2:]
    shift = rng.integers(rows * columns, size=n)
    order = np.argsort(shift, kind="stable")
    values, starts = np.unique(shift[order], return_index=True)
    mean = np.zeros((*maps.shape[:2], rows, columns))
    sums = np.add.reduceat(maps[:, :, order], starts, axis=2, dtype=np.float64)
    for i, value in enumerate(values):
        mean += np.roll(sums[:, :, i], divmod(int(value), columns), (-2, -1))
    mean /= n
    return mean


def mean_frequency(maps: np.ndarray) -> tuple[np.ndarray, float]:
    """The mean spatial frequency [network, atom, (value, low, high)] of maps [network, atom, image,
    row, column] in cycles per image, weighted by power over all images, with the interval of a
    ratio of means; and that of equal power at all frequencies. NaN for constant maps and for a
    single cell; without an interval where the power is that of fewer than 12 images, (sum of
    powers)² / sum of squared powers."""
    rows, columns = maps.shape[-2:]
    cycles = np.hypot(
        *np.meshgrid(
            np.fft.fftfreq(rows, 1 / rows), np.fft.fftfreq(columns, 1 / columns), indexing="ij"
        )
    )
    found = np.full((*maps.shape[:2], 3), np.nan)
    for place in np.ndindex(*maps.shape[:2]):
        power = power_spectrum(maps[place])
        whole, weighted = power.sum((-2, -1)), (power * cycles).sum((-2, -1))
        if whole.sum() > 0:
            value = weighted.sum() / whole.sum()
            found[place][0] = value
            if whole.sum() ** 2 >= FEWEST * np.square(whole).sum():
                influence = (weighted - value * whole) / whole.mean()
                found[place][1:] = delta_interval(value, influence)
    cells = rows * columns
    return found, float(cycles.sum() / (cells - 1)) if cells > 1 else float("nan")


def _top(activity: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """The `k` images with the largest peaks of activities [network, atom, image, cell], the cells
    of the peaks, and these."""
    peaks = activity.max(-1)
    image = np.argsort(-peaks, axis=-1, kind="stable")[..., :k]
    cells = np.take_along_axis(activity.argmax(-1), image, -1)
    return {
        "top_image": image,
        "top_cell": cells,
        "top_value": np.take_along_axis(peaks, image, -1).astype(np.float64),
    }


def _crops(
    models: Sequence[Model],
    images: ImageSource,
    image: np.ndarray,
    cell: np.ndarray,
    grid: Cells,
    pixels: int,
) -> tuple[np.ndarray, np.ndarray]:
    """What each network is given around cells [network, atom, rank] of images, all of one size, and
    the boxes of the cells in it."""
    corner = np.stack(np.divmod(cell, grid[1]), -1) / grid
    size = np.maximum(CONTEXT, 1 / np.array(grid))
    first = np.clip(corner + 0.5 / np.array(grid) - size / 2, 0, 1 - size)
    boxes = np.concatenate([corner - first, corner - first + 1 / np.array(grid)], -1)
    boxes /= np.tile(size, 2)
    sides = [np.rint(size * model.input.size[1:]).astype(int) for model in models]
    largest = max(sides, key=lambda side: int(side.max()))
    scale = min(1.0, pixels / largest.max())
    height, width = (max(1, round(side * scale)) for side in largest.tolist())
    crops = np.empty((*cell.shape, height, width, 3), dtype=np.uint8)
    for i, model in enumerate(models):
        shown, where = np.unique(image[i], return_inverse=True)
        pictures = input_pictures(model, images, shown)
        for place, k in zip(np.ndindex(*image[i].shape), where.ravel(), strict=True):
            top, left = np.rint(first[i][place] * model.input.size[1:]).astype(int)
            rows, columns = sides[i]
            part = pictures[k, top : top + rows, left : left + columns]
            crops[i][place] = np.asarray(
                Image.fromarray(part).resize((width, height), Image.Resampling.LANCZOS)
            )
    return crops, boxes


# -- what networks do without them -----------------------------------------------------------------


def random_directions(part: GridActivations, count: int, seed: int) -> np.ndarray:
    """`count` directions [direction, channel] of unit norm, drawn from a normal law with the
    covariance of the activations."""
    channels = part.values.shape[-1]
    flat = part.values.reshape(-1, channels)
    mean, covariance = flat.mean(0, dtype=np.float64), np.zeros((channels, channels))
    for rows in slices(len(flat), 2**15):
        x = flat[rows] - mean
        covariance += x.T @ x
    values, vectors = np.linalg.eigh(covariance)
    # The symmetric root, which does not depend on the signs of eigenvectors.
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    drawn = np.random.default_rng(seed).normal(size=(count, channels)) @ root
    found: np.ndarray = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return found


def removal(
    dictionary: Dictionary,
    network: int,
    model: Model,
    part: GridActivations,
    index: np.ndarray,
    images: ImageSource,
    of_class: Sequence[np.ndarray],
    *,
    draws: int,
    batch_size: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """The effects of `ConceptAtoms` for one network with each of the atoms `index` taken out of its
    layer: x - s z D at every position of a cell, with the code z of the cell, the decoder D and the
    scale s of the network. Prefix tokens stay as they are. `of_class` [atom][image] are the images
    of the class of each atom."""
    atoms = len(index)
    own = (dictionary.decoders[network][torch.from_numpy(index)] * dictionary.scales[network]).cpu()
    drawn = random_directions(part, atoms * draws, seed).reshape(atoms, draws, -1)
    drawn *= np.linalg.norm(own.double().numpy(), axis=1)[:, None, None]
    directions = torch.cat([own[:, None].double(), torch.from_numpy(drawn)], 1)
    change, right = _changes(
        dictionary, network, model, part, index, images, directions, batch_size
    )
    size = np.abs(change)
    none = np.full(3, np.nan)
    return {
        "logit": np.stack(mean_interval(change[:, 0]), -1),
        "effect": np.stack(mean_interval(size[:, 0]), -1),
        "control": size[:, 1:].mean(-1),
        "excess": np.stack(crossed_interval(size[:, :1] - size[:, 1:]), -1),
        "accuracy": np.stack([_accuracy_change(right[k], right[-1]) for k in range(atoms)]),
        "class_accuracy": np.stack(
            [
                _accuracy_change(right[k, rows], right[-1, rows]) if rows.any() else none
                for k, rows in enumerate(of_class)
            ]
        ),
    }


def _accuracy_change(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Accuracy after minus accuracy before, of the same images, with its interval."""
    low, high = difference_interval(paired_counts(after, before))
    return np.array([after.mean() - before.mean(), low, high])


def _changes(
    dictionary: Dictionary,
    network: int,
    model: Model,
    part: GridActivations,
    index: np.ndarray,
    images: ImageSource,
    directions: Tensor,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Change of the logit of the right class [atom, direction, image] where the contribution of
    each atom along each of its `directions` [atom, direction, channel] is taken out of the layer,
    and whether predictions are right [atom + 1, image] without it along the first, the last row for
    the intact network.

    Only images in which an atom is active pass again, from the layer on."""
    layer, targets = model.layer(part.layer.name), labels_as_outputs(model, images)
    change = np.zeros((*directions.shape[:2], len(images)))
    right = np.zeros((len(index) + 1, len(images)), dtype=bool)
    start = 0
    with (
        evaluating(model.module),
        torch.no_grad(),
        task(f"{model.name}: atoms", len(images)) as advance,
    ):
        for batch in images.batches(transform_of(model), batch_size):
            x = batch.to(model.device, model.dtype)
            seen: list[Tensor] = []

            def see(values: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(values)
                return values

            with recorded_blocks(model) as blocks, intervene(model, {layer.name: edit("", see)}):
                logits = model.module(x).double()
            given = finished_before(model, layer, blocks)
            if layer.module in blocks:
                given[layer.module] = blocks[layer.module]
            here = slice(start, start + len(x))
            target = torch.from_numpy(targets[here]).to(logits.device)
            before = logits.gather(1, target[:, None])[:, 0]
            right[:, here] = (logits.argmax(1) == target).cpu().numpy()
            codes = _codes(dictionary, network, seen[0], layer, part.grid)[..., index]
            for k in range(len(index)):
                rows = codes[..., k].any(1).nonzero()[:, 0].to(x.device)
                if not len(rows):
                    continue
                at = start + rows.cpu().numpy()
                spread = _spread(codes[rows.to(codes.device), :, k], layer, part.grid).to(x)
                some = {path: value[rows] for path, value in given.items()}
                for j, direction in enumerate(directions[k].to(x)):
                    taken = spread[..., None] * direction
                    removed = edit(f"{index[k]} {j}", partial(torch.sub, other=taken))
                    with returned(model.module, some), intervene(model, {layer.name: removed}):
                        found = model.module(x[rows]).double()
                    after = found.gather(1, target[rows][:, None])[:, 0]
                    change[k, j, at] = (after - before[rows]).cpu().numpy()
                    if j == 0:
                        right[k, at] = (found.argmax(1) == target[rows]).cpu().numpy()
            start += len(x)
            advance(len(x))
    return change, right


def _codes(
    dictionary: Dictionary, network: int, values: Tensor, layer: Layer, grid: Cells
) -> Tensor:
    """The codes [image, cell, atom] of values [image, token, channel]."""
    cells = to_grid(values[:, layer.prefix_tokens :].float(), layer, grid)
    flat = cells.flatten(0, 1).to(dictionary.means.device)
    found: Tensor = dictionary.code(network, dictionary.normalised(network, flat))
    return found.reshape(*cells.shape[:2], -1)


def _spread(codes: Tensor, layer: Layer, grid: Cells) -> Tensor:
    """Codes [image, cell] at every token [image, token]: those of the cell at its positions, 0 at
    prefix tokens."""
    positions = F.interpolate(codes.reshape(-1, 1, *grid), size=layer.grid, mode="nearest")
    return F.pad(positions.flatten(1), (layer.prefix_tokens, 0))
