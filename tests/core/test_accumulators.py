"""What every accumulator promises, whatever it adds up. Their numbers have tests of their own."""

from __future__ import annotations

import importlib
import io
import json
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

import mixer_probe
from mixer_probe.channels import ChannelMoments, RunningTop, channel_moments, extremes
from mixer_probe.channels.overlap import ActivationMask, Overlap, Threshold, highest
from mixer_probe.channels.top import TopMaps
from mixer_probe.core.accumulator import Accumulator
from mixer_probe.core.errors import MeasureError, StoreError
from mixer_probe.core.result import ImagesRecord, ModelRecord
from mixer_probe.linear import RidgeMoments
from mixer_probe.models import Layer
from mixer_probe.probing.patch_position import (
    GroupedMoments,
    PatchTokens,
    PositionMoments,
    centres,
)
from mixer_probe.similarity import MinibatchCKA, StreamingCKA
from mixer_probe.weights.channel_kernels import KernelSums

# Batches of 23 images, the first two in one part and the others in another.
BATCHES = np.split(np.arange(23), [7, 13, 18])
LAYER = Layer("x", "block", 1.0, (3, 3), 5, 0, 9)
X = 50 + np.random.default_rng(0).normal(size=(23, 9, 5)) * np.arange(1, 6)
Y = np.random.default_rng(1).integers(3, size=23)
PLACES = centres((3, 3), (30, 30))
MASKS = np.random.default_rng(2).integers(2, size=(23, 9, 2)).astype(np.float32)
ORDERS = np.stack([np.arange(23), np.roll(np.arange(23), 5)])
MODEL = ModelRecord("hand", "mixer", True, "made by hand", "0" * 64, 1)
IMAGES = ImagesRecord("noise", "", 0, 0, "1" * 64)


def tokens(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(X[rows])


def overlap(accumulator: Overlap, rows: np.ndarray) -> None:
    active = torch.from_numpy(X[rows] > 50).transpose(1, 2)
    mask = ActivationMask(active.sum(2, dtype=torch.int32), active.nonzero()[:, 2].int())
    for i, row in zip(rows, accumulator.update(mask, int(rows[0])), strict=True):
        accumulator.count(row, MASKS[ORDERS[:, i]].swapaxes(0, 1).reshape(9, -1), 0)


def sides(rows: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return {"a": X[rows, 0], "b": X[rows, 1, :3]}, {"c": X[rows, 0, :4] ** 2}


@dataclass(frozen=True)
class Case:
    """How to make an accumulator, one with `other` settings, add images, and read the result."""

    make: Callable[[], Any]
    other: Callable[[], Any] | None
    add: Callable[[Any, np.ndarray], Any]
    result: Callable[[Any], Any]
    # Whether no two of its arrays share a dimension, so that none contradicts another.
    alone: bool = False


CASES = {
    "RidgeMoments": Case(
        RidgeMoments,
        None,
        lambda a, rows: a.update(X[rows, 0], Y[rows]),
        lambda a: a.compute([1.0]).scores(X[:, 1]),
    ),
    "ChannelMoments": Case(
        ChannelMoments,
        None,
        lambda a, rows: a.update({"x": channel_moments(LAYER, tokens(rows), None)}, len(rows)),
        lambda a: a.compute(MODEL, IMAGES, [LAYER]).to_frame().iloc[:, 4:].to_numpy(dtype=float),
    ),
    "KernelSums": Case(
        KernelSums,
        None,
        lambda a, rows: a.update({"x": tokens(rows).sum(0)}, len(rows)),
        lambda a: a.compute(),
        alone=True,
    ),
    "RunningTop": Case(
        partial(RunningTop, 4),
        partial(RunningTop, 4, lowest=True),
        lambda a, rows: a.update(extremes(LAYER, tokens(rows), None), int(rows[0])),
        lambda a: list(a.compute()),
    ),
    "TopMaps": Case(
        partial(TopMaps, 4),
        partial(TopMaps, 3),
        lambda a, rows: a.update(LAYER, tokens(rows), int(rows[0])),
        lambda a: [a.compute(LAYER, 2, False, np.argsort(-X.mean(1)[:, 2])[:4])],
    ),
    "Threshold": Case(
        partial(Threshold, 6),
        partial(Threshold, 7),
        lambda a, rows: a.update(highest(LAYER, tokens(rows), None, keep={"x": 7})),
        lambda a: list(a.compute()),
    ),
    "Overlap": Case(
        partial(Overlap, 5, ORDERS, 2),
        partial(Overlap, 5, ORDERS[::-1], 2),
        overlap,
        lambda a: a.compute(MASKS.sum(1), np.ones((23, 2), bool)).iou,
    ),
    "PositionMoments": Case(
        partial(PositionMoments, PLACES),
        partial(PositionMoments, PLACES + 1),
        lambda a, rows: a.update(a.of(tokens(rows)), len(rows)),
        lambda a: list(vars(a.compute(np.array([0.1]))).values()),
    ),
    "GroupedMoments": Case(
        partial(GroupedMoments, PLACES),
        partial(GroupedMoments, PLACES + 1),
        lambda a, rows: a.update(a.of(tokens(rows)), len(rows)),
        lambda a: [p.directions for p in a.compute(np.array([0.1]), np.array([0.1]))],
    ),
    "PatchTokens": Case(
        PatchTokens,
        None,
        lambda a, rows: a.update({"x": tokens(rows)}),
        lambda a: a.compute(np.arange(23)),
        alone=True,
    ),
    "StreamingCKA": Case(
        partial(StreamingCKA, hold=False),
        partial(StreamingCKA, seed=1, hold=False),
        lambda a, rows: a.update(*sides(rows)),
        lambda a: [a.compute().values, a.compute().null.mean],
    ),
    "StreamingCKA held": Case(
        StreamingCKA,
        partial(StreamingCKA, 100),
        lambda a, rows: a.update(*sides(rows)),
        lambda a: [a.compute().values, a.compute().interval.low],
    ),
    # Its null is drawn by the number of the batch in a part, so that it is left out.
    "MinibatchCKA": Case(
        partial(MinibatchCKA, 0),
        partial(MinibatchCKA, 0, seed=1),
        lambda a, rows: a.update(*sides(rows)),
        lambda a: a.compute().values,
    ),
}


def of(case: Case, batches: list[np.ndarray]) -> Any:
    accumulator = case.make()
    for rows in batches:
        case.add(accumulator, rows)
    return accumulator


def assert_close(found: Any, expected: Any, rounding: float = 1e-9) -> None:
    """Numbers to rounding, and everything else equal."""
    left, right = pytree.tree_flatten(found), pytree.tree_flatten(expected)
    assert left[1] == right[1]
    for a, b in zip(left[0], right[0], strict=True):
        if isinstance(b, (np.ndarray, torch.Tensor, float)):
            np.testing.assert_allclose(a, b, rtol=rounding, atol=rounding)
        else:
            assert a == b


assert_same = partial(assert_close, rounding=0)


def through_files(state: dict[str, Any]) -> dict[str, Any]:
    """The state written as npz and JSON, and read again."""
    leaves, spec = pytree.tree_flatten(state)
    arrays = {
        str(i): np.asarray(v)
        for i, v in enumerate(leaves)
        if isinstance(v, (np.ndarray, torch.Tensor))
    }
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    rest = json.loads(json.dumps([None if str(i) in arrays else v for i, v in enumerate(leaves)]))
    read = np.load(file, allow_pickle=False)
    return pytree.tree_unflatten(
        [read[str(i)] if str(i) in arrays else v for i, v in enumerate(rest)], spec
    )


def subclasses(cls: type) -> set[type]:
    return {cls}.union(*map(subclasses, cls.__subclasses__()))


def test_every_accumulator_of_the_package_is_tested_here() -> None:
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(mixer_probe.__path__, "mixer_probe.")
    ]
    known = subclasses(Accumulator) - {Accumulator}
    assert {cls.__name__ for cls in known} == {name.partition(" ")[0] for name in CASES}
    classes = {v for module in modules for v in vars(module).values() if isinstance(v, type)}
    like = {
        cls
        for cls in classes
        if cls.__module__.startswith("mixer_probe.")
        and all(callable(getattr(cls, name, None)) for name in ("update", "compute"))
    }
    assert like == known | {Accumulator}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_parts_merged_in_order_are_all_images_at_once(case: Case) -> None:
    first, second, whole = of(case, BATCHES[:2]), of(case, BATCHES[2:]), of(case, BATCHES)
    before = second.state()
    first.merge(second)
    assert_close(first.state(), whole.state())
    assert_close(case.result(first), case.result(whole))
    first.merge(case.make())
    empty = case.make()
    empty.merge(first)
    assert_close(empty.state(), whole.state())
    case.add(first, BATCHES[0])
    assert_same(second.state(), before)


# Those of other seeds or of another number of kept images merge.
@pytest.mark.parametrize(
    "name", ["RunningTop", "Threshold", "Overlap", "PositionMoments", "GroupedMoments"]
)
def test_other_settings_do_not_merge(name: str) -> None:
    case = CASES[name]
    assert case.other is not None
    accumulator = of(case, BATCHES)
    before = accumulator.state()
    with pytest.raises(MeasureError, match="do not merge"):
        accumulator.merge(case.other())
    assert_same(accumulator.state(), before)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_state_read_from_a_file_gives_the_same_and_goes_on(case: Case) -> None:
    first, whole = of(case, BATCHES[:2]), of(case, BATCHES)
    state = through_files(first.state())
    for loaded in (case.make(), of(case, BATCHES[3:])):
        loaded.load_state(state)
        assert_same(loaded.state(), state)
        for rows in BATCHES[2:]:
            case.add(loaded, rows)
        assert_close(loaded.state(), whole.state())
        assert_close(case.result(loaded), case.result(whole))
    # What was loaded and added to is neither the state nor the accumulator that gave it.
    case.make().load_state(state)
    assert_close(first.state(), of(case, BATCHES[:2]).state())
    empty = case.make()
    empty.load_state(through_files(case.make().state()))
    assert_close(empty.state(), case.make().state())


@pytest.mark.parametrize("name", CASES)
def test_a_foreign_state_is_refused_and_changes_nothing(name: str) -> None:
    case = CASES[name]
    accumulator = of(case, BATCHES[:2])
    before = accumulator.state()
    kind = name.partition(" ")[0]
    foreign = "Threshold" if kind == "RunningTop" else "RunningTop"
    refused = {
        f"a state of '{foreign}', and a {kind} holds": of(CASES[foreign], BATCHES).state(),
        "a state of None": {},
        "has no '": {"accumulator": kind},
        "has an unknown 'size'": before | {"size": 1},
    }
    if case.other is not None:
        refused[f"the state is of a {kind} with "] = case.other().state()
    for sentence, state in refused.items():
        with pytest.raises(StoreError, match=sentence):
            accumulator.load_state(state)
    leaves, spec = pytree.tree_flatten(before)
    shapes = []
    for i, leaf in enumerate(leaves):
        for other in (object(), leaf[..., :-1] if np.ndim(leaf) else object()):
            changed = pytree.tree_unflatten([*leaves[:i], other, *leaves[i + 1 :]], spec)
            try:
                case.make().load_state(changed)
            except StoreError as error:
                shapes.append("does not go together" in str(error))
            else:
                assert type(other) is not object
    assert any(shapes) or case.alone
    assert_same(accumulator.state(), before)
