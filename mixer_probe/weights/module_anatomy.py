"""The anatomy of a network: which of its modules mix locations, which channels, and how large they are.

Tolstikhin et al. (2021), Section 2: "Modern deep vision architectures consist of layers that mix features (i) at a given spatial
location, (ii) between different spatial locations, or both at once." Which module does what is measured (`dependence`), not told
by its class. A module is listed as one unit if it has no smaller parts with weights, or if it mixes locations by more than its
parts do: because none of them does, or by matrix products of its own. Attention, squeeze-and-excitation and Swin's patch merging
are such units, more than the linear layers that they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import pandas as pd
from torch import nn

from mixer_probe.core.errors import LayerError, MeasureError, closest
from mixer_probe.core.result import ModelRecord, Result, storable
from mixer_probe.core.validate import checked
from mixer_probe.models.macs import count_by_module
from mixer_probe.models.model import Model
from mixer_probe.weights.dependence import Mixes, dependence

Role = Literal["unit", "inside", "part", "rest"]
# In the order in which tables and figures show them. What is in no unit is added to the stream of features as it is.
MIXES = ("across", "both", "within", "neither", "rest")
_PARTS = ("stem", "spatial", "channel", "norm", "head")


@storable
@dataclass(frozen=True)
class ModuleAnatomy:
    """One module: `mixes` is "across" locations, "within" a location (over its channels), "both" or "neither".

    `kind` is its class and `part` the standard part of the network that it belongs to: stem, spatial, channel, norm or head,
    "block" for the rest of a block, "between" for what stands between blocks, "other" for the rest. `role` is "unit" for
    modules that add up to the network, "inside" for what a unit holds, "part" for a standard part that consists of units, and
    "rest" for what is in no unit. `parameters` and `macs` (multiply-accumulates of one image) are those of the whole module."""

    module: str
    part: str
    kind: str
    role: Role
    mixes: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class Anatomy(Result):
    """Every module of a network with what it mixes and how large it is, in the order in which a forward pass finishes them.

    Units and the rest add up to `parameters` and `macs`."""

    title: ClassVar[str] = "Anatomy"

    model: ModelRecord
    input_size: tuple[int, int, int]
    modules: tuple[ModuleAnatomy, ...]
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
            raise LayerError(f"no module '{module}' in the anatomy of {self.model.name}; {closest(module, found)}")
        return found[module]

    def to_frame(self) -> pd.DataFrame:
        """One row a module; shares are of the whole network."""
        frame = pd.DataFrame([asdict(m) for m in self.modules])
        frame.insert(0, "model", self.model.name)
        frame.insert(7, "parameter_share", frame["parameters"] / self.parameters)
        frame["mac_share"] = frame["macs"] / self.macs
        return frame

    def summary(self, head: bool = True) -> pd.DataFrame:
        """One row a way of mixing: units, parameters, MACs and their shares of the network.

        Without `head` the shares are of the network without its classifier, as in Table 1 of the Mixer paper."""
        counted = [m for m in self.units if head or m.part != "head"]
        frame = pd.DataFrame([asdict(m) for m in counted])
        sums = frame.groupby("mixes")[["parameters", "macs"]].sum().reindex(list(MIXES), fill_value=0)
        sums.insert(0, "units", frame[frame["role"] == "unit"].groupby("mixes").size().reindex(list(MIXES), fill_value=0))
        sums["parameter_share"] = sums["parameters"] / sums["parameters"].sum()
        sums["mac_share"] = sums["macs"] / sums["macs"].sum()
        table: pd.DataFrame = sums.reset_index()
        table.insert(0, "model", self.model.name)
        return table


@checked(MeasureError)
def anatomy(model: Model, seed: int = 0) -> Anatomy:
    """What every module of a network mixes, with its parameters and multiply-accumulates.

    Listed are modules with weights or matrix products or that mix locations (pooling), and the standard parts of
    `model.layers` except whole blocks. Which outputs depend on which inputs is measured in float64 on a copy of the network on
    the CPU, on noise drawn with `seed`; see `dependence`. MACs are those of one image of the model's input size, as
    `model.macs` counts them. Position embeddings, class tokens and layer scales that are parameters of a block are the rest.

    Raises MeasureError for a network whose outputs are not finite."""
    return _Anatomist(model).dissect(seed)


class _Anatomist:
    """A network with what each module holds, and the choice of what to measure and to list."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._modules = {path: module for path, module in model.module.named_modules() if path}
        self._macs, self._own, self._order = module_macs(model)
        self._parameters = {path: _count(module.parameters()) for path, module in self._modules.items()}
        self._standard = _standard_parts(model)
        self._leaves = set(self._find_leaves(model.module, ""))

    def dissect(self, seed: int) -> Anatomy:
        model = self._model
        found = dependence(model, self._wanted, seed)
        units = self._find_units(found)
        rows = [self._row(path, found, units) for path in sorted(found, key=self._order.__getitem__)]
        listed = tuple(row for row in rows if self._is_listed(row))
        modules = (*listed, *self._rest(listed))
        return Anatomy(model.record, model.input.size, modules, model.parameters, self._macs[""], seed)

    def _find_leaves(self, module: nn.Module, path: str) -> Iterator[str]:
        """The largest modules that hold nothing smaller with weights or matrix products."""
        for name, child in module.named_children():
            place = f"{path}.{name}" if path else name
            if place in self._order and not any(map(self._weighs, _below(child, place))):
                yield place
            else:
                yield from self._find_leaves(child, place)

    def _weighs(self, path: str) -> bool:
        return self._parameters[path] > 0 or self._macs.get(path, 0) > 0

    def _wanted(self, path: str, found: Mapping[str, Mixes]) -> bool:
        """Leaves, standard parts, and whatever might mix locations though nothing in it does."""
        if path in self._leaves or path in self._standard or self._own[path] > 0:
            return True
        below = [mixes for other, mixes in found.items() if other.startswith(path + ".")]
        return bool(below) and self._parameters[path] > 0 and not any(map(_crosses, below))

    def _find_units(self, found: Mapping[str, Mixes]) -> set[str]:
        crossing = {path for path, mixes in found.items() if _crosses(mixes)}
        whole = {p for p in crossing if self._own[p] > 0 or not any(other.startswith(p + ".") for other in crossing)}
        return {path for path in {*whole, *(self._leaves & found.keys())} if not _is_under(path, whole - {path})}

    def _row(self, path: str, found: Mapping[str, Mixes], units: set[str]) -> ModuleAnatomy:
        role: Role = "unit" if path in units else "inside" if _is_under(path, units) else "part"
        kind = type(self._modules[path]).__name__
        return ModuleAnatomy(path, self._part(path), kind, role, found[path], self._parameters[path], self._macs.get(path, 0))

    def _is_listed(self, row: ModuleAnatomy) -> bool:
        known = row.role == "unit" or row.module in self._leaves or row.module in self._standard
        return known and bool(row.parameters or row.macs or _crosses(row.mixes))

    def _part(self, path: str) -> str:
        enclosing = [place for place in self._standard if _is_under(path, {place})]
        if enclosing:
            return self._standard[max(enclosing, key=len)]
        blocks = [block.path for block in self._model.structure.blocks]
        if _is_under(path, blocks):
            return "block"
        order = self._order[path]
        if order < self._order[blocks[0]]:
            return "stem"
        return "between" if order < self._order[blocks[-1]] else "head"

    def _rest(self, listed: Iterable[ModuleAnatomy]) -> list[ModuleAnatomy]:
        """What belongs to no unit: all that a network counts, less its units."""
        units = [row for row in listed if row.role == "unit"]
        owned = {id(p) for row in units for p in self._modules[row.module].parameters()}
        parameters = sum(p.numel() for p in self._model.module.parameters() if id(p) not in owned)
        macs = self._macs[""] - sum(row.macs for row in units)
        return [ModuleAnatomy("(rest)", "other", "", "rest", "rest", parameters, macs)] if parameters or macs else []


def _standard_parts(model: Model) -> dict[str, str]:
    """Module paths of stem, spatial and channel mixing, final norm and head, with their kind."""
    modules = dict(model.module.named_modules())
    parts = {layer.module: layer.kind for layer in model.layers if layer.kind in _PARTS}
    # Swin's attention is read where its branch ends, in a drop path that holds nothing.
    attentions = {path: path.removesuffix("drop_path1") + "attn" for path in parts if path.endswith("drop_path1")}
    return {attentions.get(p, p) if attentions.get(p, p) in modules else p: kind for p, kind in parts.items()}


def _below(module: nn.Module, path: str) -> Iterator[str]:
    return (f"{path}.{name}" for name, _child in module.named_modules() if name)


def _crosses(mixes: str) -> bool:
    return mixes in ("across", "both")


def _is_under(path: str, places: Iterable[str]) -> bool:
    return any((path + ".").startswith(place + ".") for place in places)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def module_macs(model: Model) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Multiply-accumulates of one image by module path ("" is the network): those of all that a module calls, those of its own
    code alone, and the order in which modules finish their first call.

    They are counted as `model.macs` is, by torch's FlopCounterMode, read before and after every call."""
    counted = count_by_module(model.module, model.input.size)
    return counted.macs, counted.own, {path: i for i, path in enumerate(counted.macs)}
