"""Numbers of several training runs: what an arm of a study (an architecture, a distortion, a form
of token mixing) does to a quantity, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np

from mixer_probe.core.errors import MeasureError, closest
from mixer_probe.core.finding import Number
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import Result
from mixer_probe.stats.contrasts import contrast


@dataclass(frozen=True)
class RunQuantity(Result):
    """One quantity of training runs of one `family`: `values` [arm, seed, step, layer], NaN where
    it was not measured.

    The first arm is the reference. `steps` [step] are those of the checkpoints; a quantity of the
    finished networks has one. `layers` and their relative `depths` [layer]; a quantity of the whole
    network has one. `unit` is that of the values: "%" for fractions, which are shown as
    percentages, and "log2" for logarithms, which are shown as what they are of; `n` what each value
    was measured on, in words, such as "1,000 test images".
    `protocol` says how the runs were trained, and `machine` where.

    Intervals are Student's over seeds, those of differences Welch's (`contrast`)."""

    title: ClassVar[str] = "Quantities of training runs"
    frame: ClassVar[Frame] = Frame(
        "arm seed step layer",
        "family quantity arm=arms seed=seeds step=steps layer=layers depth=depths value=values "
        "unit n",
    )

    quantity: str
    unit: str
    family: str
    arms: Annotated[tuple[str, ...], "arm"]
    seeds: Annotated[tuple[int, ...], "seed"]
    steps: Annotated[tuple[int, ...], "step"]
    layers: Annotated[tuple[str, ...], "layer"]
    depths: Annotated[np.ndarray, "layer"]
    values: Annotated[np.ndarray, "arm", "seed", "step", "layer"]
    n: str
    protocol: str
    machine: str

    def of(self, arm: str, steps: slice = slice(-1, None)) -> np.ndarray:
        """The values [seed] of an arm, averaged over layers and over the `steps`, by default the
        last one. Raises MeasureError for an unknown arm."""
        values: np.ndarray = self.values[self._index(arm), :, steps].mean((1, 2))
        return values

    def mean(self, arm: str, steps: slice = slice(-1, None)) -> Number:
        """The mean over seeds of `of`, with its interval, which for fractions stays in 0 to 1."""
        found = _number("mean", [self.of(arm, steps)], [1.0])
        if self.unit != "%":
            return found
        return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))

    def difference(
        self, arm: str, reference: str | None = None, steps: slice = slice(-1, None)
    ) -> Number:
        """The mean of an arm minus that of a reference (the first arm), with its interval."""
        samples = [self.of(reference or self.arms[0], steps), self.of(arm, steps)]
        return _number("difference", samples, [-1.0, 1.0])

    def change(self, arm: str) -> Number:
        """The mean over seeds of the last value minus the first one, with its interval: of layers
        where there are several, averaged over steps, else of steps."""
        values = self.values[self._index(arm)]
        series = values[:, -1] if len(self.layers) > 1 and len(self.steps) == 1 else values.mean(2)
        return _number("change", [series[:, -1] - series[:, 0]], [1.0])

    def _index(self, arm: str) -> int:
        if arm not in self.arms:
            raise MeasureError(f"there is no arm '{arm}'; {closest(arm, self.arms)}")
        return self.arms.index(arm)


def difference_of_differences(a: RunQuantity, b: RunQuantity, arm: str) -> Number:
    """How much more `arm` changes the quantity in the family of `b` than in that of `a`, with its
    interval."""
    samples = [r.of(name) for r in (a, b) for name in (r.arms[0], arm)]
    return _number("difference of differences", samples, [1.0, -1.0, -1.0, 1.0])


def _number(kind: str, samples: Sequence[np.ndarray], weights: Sequence[float]) -> Number:
    value, low, high = (float(part) for part in contrast(samples, weights))
    return Number(kind, value, low, high, n=min(len(sample) for sample in samples))


@dataclass(frozen=True)
class RunSimilarity(Result):
    """Similarity of every pair of runs at the same layer: `values` [network, network, layer],
    symmetric, with the arm and the seed of every network. `reference` [network, layer] is the
    similarity of each network to its untrained state. `measure`, `n` and the rest are as for
    `RunQuantity`."""

    title: ClassVar[str] = "Similarity of training runs"
    frame: ClassVar[Frame] = Frame(
        "network network_b layer",
        "family measure arm=arms seed=seeds arm_b=arms_b seed_b=seeds_b layer=layers depth=depths "
        "value=values n",
    )

    measure: str
    family: str
    arms: Annotated[tuple[str, ...], "network"]
    seeds: Annotated[tuple[int, ...], "network"]
    layers: Annotated[tuple[str, ...], "layer"]
    depths: Annotated[np.ndarray, "layer"]
    values: Annotated[np.ndarray, "network", "network_b", "layer"]
    n: str
    protocol: str
    machine: str

    @property
    def arms_b(self) -> Annotated[tuple[str, ...], "network_b"]:
        """The arms of the second network of every pair."""
        return self.arms

    @property
    def seeds_b(self) -> Annotated[tuple[int, ...], "network_b"]:
        """The seeds of the second network of every pair."""
        return self.seeds

    def within(self, arm: str) -> np.ndarray:
        """Mean over the pairs of networks of an arm [layer]; NaN for fewer than two."""
        return self._mean(self._of(arm), self._of(arm))

    def between(self, arm: str, other: str) -> np.ndarray:
        """Mean over the pairs of a network of one arm and one of the other [layer], of different
        seeds: networks with the same seed begin with the same weights."""
        return self._mean(self._of(arm), self._of(other))

    def excess(self, arm: str, other: str) -> Number:
        """Mean over layers of `between` minus the mean of `within` of both arms: 0 is expected
        where the two arms give networks that differ as much as two seeds do.

        Each network is in several pairs, so that the interval is from leaving out one seed at a
        time, in both arms: Student's t over the pseudo-values (Arvesen 1969, jackknifing
        U-statistics). NaN for fewer than three seeds."""
        a, b = self._of(arm), self._of(other)
        value = self._excess(a, b)
        seeds = np.array(self.seeds)
        left = [self._excess(a[seeds[a] != s], b[seeds[b] != s]) for s in dict.fromkeys(self.seeds)]
        count = len(left)
        if not np.isfinite(left).all():
            return Number("excess", value, n=count)
        # Of a mean over pairs the mean of the pseudo-values is the value itself.
        return _number("excess", [count * value - (count - 1) * np.array(left)], [1.0])

    def _excess(self, a: np.ndarray, b: np.ndarray) -> float:
        own = (self._mean(a, a) + self._mean(b, b)) / 2
        return float((self._mean(a, b) - own).mean())

    def _of(self, arm: str) -> np.ndarray:
        if arm not in self.arms:
            raise MeasureError(f"there is no arm '{arm}'; {closest(arm, self.arms)}")
        return np.flatnonzero([name == arm for name in self.arms])

    def _mean(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        seeds = np.array(self.seeds)
        pairs = seeds[rows][:, None] != seeds[columns][None]
        if not pairs.any():
            return np.full(len(self.layers), np.nan)
        mean: np.ndarray = self.values[np.ix_(rows, columns)][pairs].mean(0)
        return mean


@dataclass(frozen=True)
class StudyAnswer(Result):
    """What a study answers: its `question` and the `sentences` computed from its numbers."""

    title: ClassVar[str] = "Answer"
    frame: ClassVar[Frame] = Frame("sentence", "question index=sentence sentence=sentences")

    question: str
    sentences: Annotated[tuple[str, ...], "sentence"]


@dataclass(frozen=True)
class UnitHistory(Result):
    """Token-mixing units of one `block` of one run during its training: `maps` [step, unit, row,
    column] after each of the `steps`; `network` names the run."""

    title: ClassVar[str] = "Token-mixing units during training"
    frame: ClassVar[Frame] = Frame("step unit", "network block step=steps unit norm")

    network: str
    block: str
    steps: Annotated[tuple[int, ...], "step"]
    maps: Annotated[np.ndarray, "step", "unit", "row", "column"]

    @property
    def norm(self) -> Annotated[np.ndarray, "step", "unit"]:
        """Euclidean norm of every unit at every step."""
        norm: np.ndarray = np.sqrt(np.square(self.maps.astype(np.float64)).sum((2, 3)))
        return norm


def half_rise(steps: Sequence[int], values: np.ndarray) -> np.ndarray:
    """log2 of the step [...] at which `values` [..., step] reach half of their way from the first
    to the last value for good: the last crossing, interpolated in log2 of the step, with step 0 at
    log2 of 1/2. NaN where first and last value are equal."""
    x = np.log2(np.maximum(steps, 0.5))
    first, last = values[..., :1], values[..., -1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        way = np.where(last != first, (values - first) / (last - first), np.nan)
    # The last step that is below half of the way, and the one after it.
    before = len(steps) - 1 - np.argmax((way < 0.5)[..., ::-1], axis=-1)
    after = np.minimum(before + 1, len(steps) - 1)
    low, high = (np.take_along_axis(way, i[..., None], -1)[..., 0] for i in (before, after))
    found: np.ndarray = x[before] + (0.5 - low) / (high - low) * (x[after] - x[before])
    return np.where(np.isnan(way[..., -1]), np.nan, found)
