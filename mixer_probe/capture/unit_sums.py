"""What readings add up in a pass, unit by unit: the same whatever processes do which units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mixer_probe.capture.stream import Piece, Reading
from mixer_probe.capture.units import Units
from mixer_probe.core.accumulator import Accumulator
from mixer_probe.core.hooks import first_image
from mixer_probe.models.layer import Layer

Sums = dict[str, Accumulator]


class UnitSums:
    """The `readings` of a pass over units of images.

    Those that add up (`Reading.into`) do so with an empty accumulator for each unit. What these
    hold when the unit ends is handed over by `end`, or merged at once by `join`."""

    def __init__(self, units: Units, also: Sequence[Reading]) -> None:
        self.units = units
        self._added = {r.key: r for r in also if r.into is not None}
        self._now: dict[str, Reading] = {}
        self._unit = -1
        # Whether a piece has been read by some of the readings only.
        self._between = False
        # States to go on from, images read of each unit, and the sums of units that are whole.
        self._begun: dict[int, Mapping[str, Any]] = {}
        self._read: dict[int, int] = {}
        self._whole: dict[int, Sums] = {}
        self.readings = [r if r.into is None else self._by_unit(r) for r in also]
        if self._added:
            # Comes last, when the others have read the piece.
            layers = next(iter(self._added.values())).layers[:1]
            self.readings.append(Reading(layers, lambda *_: self._switch(), self._count))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what is added up."""
        return tuple(self._added)

    def begin(self, unit: int, states: Mapping[str, Any] | None) -> bool:
        """Go on from the `states` that `end` gave of an interrupted unit; False where these are of
        other sums."""
        states = states or {"images": 0, "sums": {}}
        if states["images"] and states["sums"].keys() != self._added.keys():
            return False
        self._begun[unit], self._read[unit] = states, states["images"]
        return True

    def end(self, unit: int, images: int) -> dict[str, Any] | None:
        """States of the sums over the first `images` of a unit; None where other images were
        read."""
        if not self._added:
            return {"images": images, "sums": {}}
        if self._read.get(unit, 0) != images or (self._between and unit == self._unit):
            return None
        if unit in self._whole:
            found = self._whole.pop(unit)
        elif unit == self._unit:
            found = self._sums()
        else:
            return dict(self._begun[unit])
        return {"images": images, "sums": {name: one.state() for name, one in found.items()}}

    def join(self, unit: int) -> None:
        """Add the sums of a whole unit, the next in order."""
        for name, found in self._whole.pop(unit, {}).items():
            into = self._added[name].into
            assert into is not None
            into.merge(found)

    def fold(self, name: str, states: Iterable[Any]) -> dict[str, Any]:
        """The state of all units from those of each, in their order."""
        total = _empty(self._added[name])
        for state in states:
            total.merge(_loaded(self._added[name], state))
        return total.state()

    def load(self, found: Mapping[str, Any]) -> None:
        """Take the states of all units."""
        for name, state in found.items():
            into = self._added[name].into
            assert into is not None
            into.merge(_loaded(self._added[name], state))

    def _by_unit(self, reading: Reading) -> Reading:
        """The same reading, each unit with an accumulator of its own."""

        def reduced(layer: Layer, positions: torch.Tensor, prefix: torch.Tensor | None) -> Any:
            self._switch()
            return self._now[reading.key].reducer(layer, positions, prefix)

        return replace(
            reading, reducer=reduced, add=lambda piece: self._now[reading.key].add(piece)
        )

    def _switch(self) -> None:
        """Begin the unit of the batch that passes, if it is another than that before."""
        image = first_image()
        assert image is not None
        unit, self._between = self.units.of_image(image), True
        if unit == self._unit:
            return
        self._unit, self._now = unit, {}
        begun = self._begun.get(unit, {"sums": {}})["sums"]
        for name, reading in self._added.items():
            assert reading.again is not None
            self._now[name] = reading.again()
            if name in begun:
                into = self._now[name].into
                assert into is not None
                into.load_state(begun[name])

    def _count(self, piece: Piece) -> None:
        self._between = False
        self._read[self._unit] = self._read.get(self._unit, 0) + piece.n
        if self._read[self._unit] == len(self.units[self._unit]):
            self._whole[self._unit] = self._sums()

    def _sums(self) -> Sums:
        return {name: one.into for name, one in self._now.items() if one.into is not None}


def _empty(reading: Reading) -> Accumulator:
    assert reading.again is not None
    found = reading.again().into
    assert found is not None
    return found


def _loaded(reading: Reading, state: Mapping[str, Any]) -> Accumulator:
    found = _empty(reading)
    found.load_state(state)
    return found
