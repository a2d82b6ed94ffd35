"""Weights of a file matched to a network: found inside of what training scripts put around them,
and refused with a sentence when they do not fit whole."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mixer_probe.core.errors import CheckpointError
from mixer_probe.core.text import quoted
from mixer_probe.core.words import first_and_more
from mixer_probe.models.arrays import tensors_of

StateDict = dict[str, torch.Tensor]
# How deep mappings are searched for weights.
_DEPTH = 4
# Names of the file that are compared with those of the network, to tell a renaming.
_MOST = 2000
# What training code calls a network that it holds; timm's conversions are tried on what is under
# these.
_PREFIXES = (
    "module.",
    "model.",
    "net.",
    "network.",
    "backbone.",
    "encoder.",
    "teacher.",
    "student.",
)
# Modules that torch puts around parts of a network.
_INSIDE = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Of several that fit, averages over training come first, as timm takes them, and DINO's student
# last.
_AVERAGES = {"ema", "averaged", "swa", "teacher"}
# What training code keeps by the names of the weights, and is none.
_NO_WEIGHTS = re.compile(r"optim|momentum|exp_avg|grad", re.IGNORECASE)
_LOSSES = re.compile(r"loss|criterion|metric|n_averaged", re.IGNORECASE)
# Old checkpoints do not count batches, and the count plays no part in a forward pass.
_COUNTS = "num_batches_tracked"
_WEIGHTS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class _Fit:
    """Weights that fill a network: `place` are the keys above them in the file, `left` the tensors
    beside them that are of no use to the network."""

    place: str
    weights: StateDict
    left: tuple[str, ...]
    converted: bool = False

    @property
    def rank(self) -> int:
        words = set(re.split(r"[._]", self.place))
        return 0 if words & _AVERAGES else 2 if "student" in words else 1


def load_into(network: nn.Module, content: Mapping[Any, Any], source: str) -> str:
    """Load the weights that fit, whole: every tensor of the network is in the file, in its shape.

    They are searched in nested mappings, under any prefix; where none fits, timm's own conversion
    of other people's keys is tried (`checkpoint_filter_fn`; for the arrays of Google's npz files
    `load_pretrained`, and the published names of its Mixers). Of several that fit, averages over
    training (`state_dict_ema`, a DINO `teacher`, ...) come first. Returns a note of which were
    taken, and what beside them was left out.

    Raises CheckpointError, and leaves the network as it was, when nothing fits (with what differs),
    and for weights that are not finite dense numbers of a floating-point type."""
    if any(isinstance(value, np.ndarray) for value in content.values()):
        content = tensors_of(network, content, source)
    options = [(place, tensors) for place, tensors in _mappings(content, "", _DEPTH, {}) if tensors]
    if not options:
        raise CheckpointError(
            f"checkpoint {source} holds no named tensors; save the network's state_dict()"
        )
    target = _Target(network, source)
    fits = [fit for place, tensors in options for fit in target.fits(place, tensors)] or list(
        target.converted(options)
    )
    if not fits:
        raise CheckpointError(target.misfit(options))
    best = min(fits, key=lambda fit: fit.rank)
    counts = {key: value for key, value in target.own.items() if key.endswith(_COUNTS)}
    network.load_state_dict({**counts, **target.checked(best.weights)})
    others = list(dict.fromkeys(fit.place for fit in fits if fit.place != best.place))
    notes = []
    if others or best.rank != 1:
        there = f", where {first_and_more(map(_shown, others), 3)} would fit too" if others else ""
        notes.append(f"The weights are those of {_shown(best.place)}{there}.")
    if best.converted:
        notes.append("They were converted by timm's checkpoint_filter_fn.")
    if best.left:
        notes.append(f"Left out: {first_and_more(map(quoted, best.left), 3)}.")
    return " ".join(notes)


def _mappings(
    content: Mapping[Any, Any], place: str, depth: int, seen: dict[int, int]
) -> Iterator[tuple[str, StateDict]]:
    """(keys above, tensors by name) of the mapping and of those inside it. Since they can hold each
    other, one is looked at again only where more of its inside is within the `depth`, which `seen`
    has of each."""
    seen[id(content)] = depth
    yield (
        place,
        {
            key: value
            for key, value in content.items()
            if isinstance(key, str) and isinstance(value, torch.Tensor)
        },
    )
    if depth:
        for key, value in content.items():
            if (
                isinstance(value, Mapping)
                and seen.get(id(value), -1) < depth - 1
                and not _NO_WEIGHTS.search(str(key))
            ):
                yield from _mappings(value, f"{place}{key}.", depth - 1, seen)


def _under_prefixes(
    tensors: StateDict, prefix: str = "", depth: int = _DEPTH
) -> Iterator[tuple[str, StateDict]]:
    yield prefix, tensors
    for word in (*_PREFIXES, "_orig_mod.") if depth else ():
        part = {
            key.removeprefix(word): value for key, value in tensors.items() if key.startswith(word)
        }
        if part:
            yield from _under_prefixes(part, prefix + word, depth - 1)


class _Target:
    """A network with tensors `own`, which weights of the file `source` are to fill."""

    def __init__(self, network: nn.Module, source: str) -> None:
        self.network, self.source, self.own = network, source, network.state_dict()
        self.needed = [key for key in self.own if not key.endswith(_COUNTS)]

    def fits(self, place: str, tensors: StateDict, converted: bool = False) -> Iterator[_Fit]:
        """Every part of the tensors that fills the network, whatever stands before its names."""
        names = {self._bare(key): key for key in tensors}
        if len(names) < len(tensors):
            names = {key: key for key in tensors}
        for prefix in (
            name.removesuffix(self.needed[0]) for name in names if name.endswith(self.needed[0])
        ):
            if prefix and not prefix.endswith("."):
                continue
            if not all(
                prefix + k in names and tensors[names[prefix + k]].shape == self.own[k].shape
                for k in self.needed
            ):
                continue
            mine = {
                name.removeprefix(prefix): key
                for name, key in names.items()
                if name.startswith(prefix)
            }
            if all(key in self.own or _LOSSES.search(key) for key in mine):
                weights = {key: tensors[mine[key]] for key in self.own if key in mine}
                used = {mine[key] for key in weights}
                yield _Fit(
                    place + prefix,
                    weights,
                    tuple(key for key in tensors if key not in used),
                    converted,
                )

    def _bare(self, key: str) -> str:
        """The key without the modules that torch put around parts of the network."""
        parts = key.split(".")
        inside = _INSIDE if any(".module." in name for name in self.own) else {*_INSIDE, "module"}
        return ".".join(
            part
            for i, part in enumerate(parts)
            if part not in inside or (i == 0 and part == "module")
        )

    def converted(self, options: list[tuple[str, StateDict]]) -> Iterator[_Fit]:
        """What fits after timm's own conversion of the original authors' checkpoints, where the
        model's file has one."""
        home = sys.modules.get(type(self.network).__module__)
        convert: Callable[..., Mapping[str, torch.Tensor]] | None = getattr(
            home, "checkpoint_filter_fn", None
        )
        if convert is None:
            return
        for place, tensors in options:
            for prefix, part in _under_prefixes(tensors):
                try:
                    found = {
                        k: v
                        for k, v in convert(dict(part), self.network).items()
                        if isinstance(v, torch.Tensor)
                    }
                except (
                    KeyError,
                    IndexError,
                    RuntimeError,
                    ValueError,
                    AttributeError,
                    AssertionError,
                    TypeError,
                ):
                    # The conversion expects another network's keys: others are reported as they
                    # were given.
                    continue
                yield from self.fits(place + prefix, found, converted=True)

    def checked(self, weights: StateDict) -> StateDict:
        """The weights in the types of the network. Raises CheckpointError for any that are not
        finite dense numbers."""
        found = {}
        for key, value in weights.items():
            if key.endswith(_COUNTS):
                found[key] = value
                continue
            own = self.own[key]
            number = own.is_floating_point()
            fits = (
                value.dtype in _WEIGHTS
                if number
                else not (value.is_floating_point() or value.is_complex())
            )
            forms = {
                f"sparse ({str(value.layout).removeprefix('torch.')})": value.layout
                is not torch.strided,
                "quantised": value.is_quantized,
                "without values (on torch's meta device)": value.is_meta,
                "nested": value.is_nested,
                str(value.dtype).removeprefix("torch."): not fits,
            }
            wrong = next((form for form, holds in forms.items() if holds), None)
            if wrong is not None:
                wanted = (
                    "float32, float16, bfloat16 or float64"
                    if number
                    else str(own.dtype).removeprefix("torch.")
                )
                raise CheckpointError(
                    f"'{key}' in checkpoint {self.source} is {wrong}, and weights are dense "
                    f"tensors of {wanted}"
                )
            found[key] = value.to(own.dtype)
        # A network may itself keep an infinite constant.
        bad = [key for key, value in found.items() if not _finite(value) and _finite(self.own[key])]
        if bad:
            raise CheckpointError(
                f"{len(bad)} of {len(found)} tensors in checkpoint {self.source} have values that "
                f"are NaN or infinite, the first of them '{bad[0]}'; give a checkpoint of finite "
                "weights"
            )
        return found

    def misfit(self, options: list[tuple[str, StateDict]]) -> str:
        """A sentence on the weights of the file that come closest: what differs, the names of both,
        and a helpful renaming."""
        own = self.own
        parts = [
            part
            for _, tensors in options
            for _, part in _under_prefixes({self._bare(k): v for k, v in tensors.items()})
        ]
        nearest = max(parts, key=lambda part: (sum(key in own for key in part), len(part)))
        shapes = [
            f"'{k}' has shape {tuple(nearest[k].shape)}, the network needs {tuple(own[k].shape)}"
            for k in self.needed
            if k in nearest and nearest[k].shape != own[k].shape
        ]
        missing = [k for k in self.needed if k not in nearest]
        unexpected = [k for k in nearest if k not in own]
        differences = [
            *shapes,
            *(f"'{k}' is missing" for k in missing),
            *(f"{quoted(k)} is not in the network" for k in unexpected),
        ]
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        # The one replacement in names that most often makes an unexpected tensor a missing one of
        # the same shape.
        replacements = Counter(
            pair
            for key in missing
            for name in unexpected[:_MOST]
            if nearest[name].shape == own[key].shape and (pair := _difference(name, key))
        )
        renaming = ""
        for (theirs, ours), count in replacements.most_common(1):
            if 2 * count > len(missing):
                renaming = f"; {count} would fit with {quoted(theirs)} renamed {quoted(ours)}"
        in_file, in_network = (first_and_more(map(quoted, names), 3) for names in (nearest, own))
        return (
            f"checkpoint {self.source} does not fit {type(self.network).__name__}: "
            f"{'; '.join(differences[:3])}{more} (in the file: {in_file}; in the network: "
            f"{in_network}{renaming})"
        )


def check_finite(network: nn.Module, source: str) -> None:
    """Raise CheckpointError for weights that timm has loaded and that are not finite."""
    bad = [name for name, parameter in network.named_parameters() if not _finite(parameter)]
    if bad:
        raise CheckpointError(
            f"the weights of {source} have values that are NaN or infinite, the first of them in "
            f"'{bad[0]}'"
        )


def _finite(value: torch.Tensor) -> bool:
    return value.is_meta or bool(value.isfinite().all())


def _shown(place: str) -> str:
    return quoted(place.rstrip(".")) if place else "the file itself"


def _difference(name: str, key: str) -> tuple[str, str] | None:
    """What is left of two dotted names without the parts that both begin and end with; None where
    nothing is the same."""
    a, b = name.split("."), key.split(".")
    start = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    end = next(
        (i for i, (x, y) in enumerate(zip(a[start:][::-1], b[start:][::-1])) if x != y),
        min(len(a), len(b)) - start,
    )
    left = ".".join(a[start : len(a) - end]), ".".join(b[start : len(b) - end])
    return left if start + end else None
