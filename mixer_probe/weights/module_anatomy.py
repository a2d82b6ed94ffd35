"""The anatomy of a network: which of its modules mix locations, which channels, and how large they
are.

Tolstikhin et al. (2021), Section 2: "Modern deep vision architectures consist of layers that mix
features (i) at a given spatial location, (ii) between different spatial locations, or both at
once." What a module mixes is measured (`dependence`), not inferred from its class. A module is
listed as one unit if it has no smaller parts with weights, or if it mixes locations by more than
its parts do: because none of them does, or by matrix products of its own. Attention,
squeeze-and-excitation and Swin's patch merging are such units, more than the linear layers that
they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Literal

import pandas as pd
from torch import nn

from mixer_probe.core.errors import LayerError, MeasureError, closest
from mixer_probe.core.result import ModelRecord, Result, storable
from mixer_probe.core.validate import checked
from mixer_probe.models.macs import count_by_module
from mixer_probe.models.model import Model
from mixer_probe.weights.dependence import Mixes, dependence

Role = Literal["unit", "inside", "part", "rest"]
# In the order in which tables and figures show them. What is in no unit is added to the stream of
# features as it is.
MIXES = ("across", "both", "within", "neither", "rest")
_PARTS = ("stem", "spatial", "channel", "norm", "head")


@storable
@dataclass(frozen=True)
class ModuleAnatomy:
    """One module: `mixes` is "across" locations, "within" a location (over its channels), "both" or
    "neither".

    `kind` is its class and `part` the standard part of the network that it belongs to: stem,
    spatial, channel, norm or head, "block" for the rest of a block, "between" for what stands
    between blocks, "other" for the rest. `role` is "unit" for modules that add up to the network,
    "inside" for what a unit holds, "part" for a standard part that consists of units, and "rest"
    for what is in no unit. `parameters` and `macs` (multiply-accumulates of one image) are those of
    the whole module."""

    module: str
    part: str
    kind: str
    role: Role
    mixes: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class Anatomy(Result):
    """Every module of a network with what it mixes and how large it is, in the order in which a
    forward pass finishes them.

    Units and the rest add up to `parameters` and `macs`."""

    title: ClassVar[str] = "Anatomy"

    model: ModelRecord
    input_size: tuple[int, int, int]
    modules: Annotated[tuple[ModuleAnatomy, ...], "module"]
    parameters: int
    macs: int
    seed: int

    @property
    def units(self) -> tuple[ModuleAnatomy, ...]:
        """The rows that add up to the network."""
        return tuple(m for m in self.modules if m.role in ("unit", "rest"))

    def mixes(self, module: str) -> str:
        """How the module at that path mixes. Raises LayerError for a module that is not listed."""
        found = {m.module: m.mixes for m in self.modules}
        if module not in found:
            raise LayerError(
                f"no module '{module}' in the anatomy of {self.model.name}; "
                f"{closest(module, found)}"
            )
        return found[module]

    def to_frame(self) -> pd.DataFrame:
        """One row per module; `parameter_fraction` and `mac_fraction` are fractions of the whole
        network."""
        frame = pd.DataFrame([asdict(m) for m in self.modules])
        frame.insert(0, "model", self.model.name)
        frame.insert(7, "parameter_fraction", frame["parameters"] / self.parameters)
        frame["mac_fraction"] = frame["macs"] / self.macs
        return frame

    def summary(self, head: bool = True) -> pd.DataFrame:
        """One row per type of mixing: units, parameters, MACs and their fractions of the network.

        Without `head` the fractions are of the network without its classifier, as in Table 1 of the
        Mixer paper."""
        counted = [m for m in self.units if head or m.part != "head"]
        frame = pd.DataFrame([asdict(m) for m in counted])
        sums = (
            frame.groupby("mixes")[["parameters", "macs"]].sum().reindex(list(MIXES), fill_value=0)
        )
        sums.insert(
            0,
            "units",
            frame[frame["role"] == "unit"]
            .groupby("mixes")
            .size()
            .reindex(list(MIXES), fill_value=0),
        )
        sums["parameter_fraction"] = sums["parameters"] / sums["parameters"].sum()
        sums["mac_fraction"] = sums["macs"] / sums["macs"].sum()
        table: pd.DataFrame = sums.reset_index()
        table.insert(0, "model", self.model.name)
        return table


@checked(MeasureError)
def anatomy(model: Model, seed: int = 0) -> Anatomy:
    """What every module of a network mixes, with its parameters and multiply-accumulates.

    Listed are modules with weights or matrix products or that mix locations (pooling), and the
    standard parts of `model.layers` except whole blocks. Which outputs depend on which inputs is
    measured in float64 on a copy of the network on the CPU, on noise drawn with `seed`; see
    `dependence`. MACs are those of one image of the model's input size, as `model.macs` counts
    them. Position embeddings, class tokens and layer scales that are parameters of a block are the
    rest.

    Raises MeasureError for a network whose outputs are not finite."""
    profiler = _ModuleProfiler(model)
    found = dependence(model, profiler.is_measured, seed)
    rows = profiler.profile(found)
    # What belongs to no unit: all that a network counts, less its units.
    units = [row for row in rows if row.role == "unit"]
    owned = {id(p) for row in units for p in profiler.modules[row.module].parameters()}
    parameters = sum(p.numel() for p in model.module.parameters() if id(p) not in owned)
    macs = profiler.macs[""] - sum(row.macs for row in units)
    rest = (
        [ModuleAnatomy("(rest)", "other", "", "rest", "rest", parameters, macs)]
        if parameters or macs
        else []
    )
    return Anatomy(
        model.record, model.input.size, (*rows, *rest), model.parameters, profiler.macs[""], seed
    )


class _ModuleProfiler:
    """The modules of a network with what each holds, and the choice of what to measure and to
    list."""

    def __init__(self, model: Model) -> None:
        self.modules = {path: module for path, module in model.module.named_modules() if path}
        counted = count_by_module(model.module, model.input.size)
        self.macs, self._own_macs = counted.macs, counted.own
        self._order = {path: i for i, path in enumerate(counted.macs)}
        self._parameters = {
            path: sum(p.numel() for p in module.parameters())
            for path, module in self.modules.items()
        }
        self._blocks = [block.path for block in model.structure.blocks]
        self._standard: dict[str, str] = {}
        for layer in (layer for layer in model.layers if layer.kind in _PARTS):
            # Swin's attention is read where its branch ends, in a drop path that holds nothing.
            attention = layer.module.removesuffix("drop_path1") + "attn"
            moved = layer.module.endswith("drop_path1") and attention in self.modules
            self._standard[attention if moved else layer.module] = layer.kind
        self._leaves = set(self._find_leaves(model.module, ""))

    def _find_leaves(self, module: nn.Module, path: str) -> Iterator[str]:
        """The largest modules that hold nothing smaller with weights or matrix products."""
        for name, child in module.named_children():
            place = f"{path}.{name}" if path else name
            below = [f"{place}.{name}" for name, _child in child.named_modules() if name]
            if place in self._order and not any(
                self._parameters[p] > 0 or self.macs.get(p, 0) > 0 for p in below
            ):
                yield place
            else:
                yield from self._find_leaves(child, place)

    def is_measured(self, path: str, found: Mapping[str, Mixes]) -> bool:
        """Leaves, standard parts, and whatever might mix locations though nothing in it does."""
        if path in self._leaves or path in self._standard or self._own_macs[path] > 0:
            return True
        below = [mixes for other, mixes in found.items() if other.startswith(path + ".")]
        return bool(below) and self._parameters[path] > 0 and not any(map(_crosses, below))

    def profile(self, found: Mapping[str, Mixes]) -> list[ModuleAnatomy]:
        """The listed modules in execution order, each with its role."""
        crossing = {path for path, mixes in found.items() if _crosses(mixes)}
        whole = {
            p
            for p in crossing
            if self._own_macs[p] > 0 or not any(other.startswith(p + ".") for other in crossing)
        }
        units = {
            path
            for path in {*whole, *(self._leaves & found.keys())}
            if not _is_under(path, whole - {path})
        }
        places = dict.fromkeys(self._blocks, "block") | self._standard
        first, last = (self._order[self._blocks[i]] for i in (0, -1))
        rows = []
        for path in sorted(found, key=self._order.__getitem__):
            parameters, macs = self._parameters[path], self.macs.get(path, 0)
            if path not in units | self._leaves | self._standard.keys() or not (
                parameters or macs or path in crossing
            ):
                continue
            role: Role = "unit" if path in units else "inside" if _is_under(path, units) else "part"
            outside = (
                "stem"
                if self._order[path] < first
                else "between"
                if self._order[path] < last
                else "head"
            )
            enclosing = max(
                (place for place in places if _is_under(path, {place})), key=len, default=None
            )
            part = outside if enclosing is None else places[enclosing]
            kind = type(self.modules[path]).__name__
            rows.append(ModuleAnatomy(path, part, kind, role, found[path], parameters, macs))
        return rows


def _crosses(mixes: str) -> bool:
    return mixes in ("across", "both")


def _is_under(path: str, places: Iterable[str]) -> bool:
    return any((path + ".").startswith(place + ".") for place in places)
