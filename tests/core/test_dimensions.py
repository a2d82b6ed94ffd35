"""Fields of results name their dimensions, which agree in size, and `Frame` makes a table of
them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pytest

from mixer_probe.channels import TopImages
from mixer_probe.core.dimensions import OF_FIELD, field_axes, select, sizes
from mixer_probe.core.errors import StoreError
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import (
    ImagesRecord,
    ModelRecord,
    Result,
    from_dict,
    load_results,
    storable,
    to_dict,
)
from mixer_probe.core.typed import field_types
from mixer_probe.models.layer import Layer
from mixer_probe.report.views import all_views
from mixer_probe.weights.stem import StemComponents, StemFilters, stem_components
from tests.helpers.golden import GOLDEN
from tests.sealed import sealed

# -- a toy -----------------------------------------------------------------------------------------


@storable
@dataclass(frozen=True)
class Place:
    name: str
    depth: float


@storable
@dataclass(frozen=True)
class Bounds:
    low: Annotated[np.ndarray, "place"]


@dataclass(frozen=True)
class Toy(Result):
    frame = Frame(
        "place target",
        """run=name place=places.name places.depth target=targets score best=draws.max
        first=draws.first draws=draw rank=target low,high=limits bound=bounds.low half note""",
        below="other",
    )

    name: str
    places: Annotated[tuple[Place | None, ...], "place"]
    targets: Annotated[tuple[str, ...], "target"]
    score: Annotated[np.ndarray, "place", "target"]
    draws: Annotated[np.ndarray, "draw", "target"]
    limits: Annotated[np.ndarray, "target", 2]
    maps: Annotated[tuple[np.ndarray, ...], "place", "row", "column"]
    weights: Annotated[tuple[np.ndarray, ...], "place", "row?"]
    edges: Annotated[np.ndarray, "target + 1"]
    note: Annotated[tuple[str, ...], "target?"] = ()
    bounds: Annotated[Bounds | None, "place"] = None
    other: Toy | None = None

    @property
    def half(self) -> Annotated[np.ndarray, "target"]:
        return self.edges[1:] / 2


def toy(**changes: Any) -> Toy:
    values = {
        "name": "a",
        "places": (Place("x", 0.5), None),
        "targets": ("t", "u", "v"),
        "score": np.arange(6.0).reshape(2, 3),
        "draws": np.array([[1, 5, 2], [3, 4, 2]]),
        "limits": np.array([[0, 1], [2, 3], [4, 5]]),
        "maps": (np.zeros((2, 3)), np.zeros((4, 5))),
        "weights": (np.zeros(2), np.zeros(0)),
        "edges": np.arange(4),
    }
    return Toy(**{**values, **changes})


@storable
@dataclass(frozen=True)
class Pair:
    first: Annotated[np.ndarray, "..."]
    second: Annotated[np.ndarray, "..."]


@dataclass(frozen=True)
class Paired(Result):
    frame = Frame("place target", "first=both.first second=row.second")

    both: Annotated[Pair, "place", "target"]
    row: Annotated[Pair, "target"]


def test_a_record_may_have_the_dimensions_of_its_field() -> None:
    table, row = np.arange(6.0).reshape(2, 3), np.arange(3.0)
    found = Paired(Pair(table, -table), Pair(row, 10 * row))
    assert sizes(found) == {"place": 2, "target": 3}
    assert found.to_frame()["first"].tolist() == [0, 1, 2, 3, 4, 5]
    assert found.to_frame()["second"].tolist() == [0, 10, 20] * 2
    chosen = select(found, "target", [2, 0])
    np.testing.assert_array_equal(chosen.both.second, -table[:, [2, 0]])
    np.testing.assert_array_equal(chosen.row.first, [2, 0])
    for other in (Pair(table, table[:, :2]), Pair(table[0], table[0]), Pair(table.T, table.T)):
        with pytest.raises(ValueError, match="of a Pair"):
            replace(found, both=other)


def test_rows_are_the_product_of_dimensions_and_columns_follow_the_declaration() -> None:
    expected = pd.DataFrame(
        {
            "run": ["a"] * 6,
            "place": ["x"] * 3 + [""] * 3,
            "depth": [0.5] * 3 + [np.nan] * 3,
            "target": ["t", "u", "v"] * 2,
            "score": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
            "best": [3, 5, 2] * 2,
            "first": [1, 5, 2] * 2,
            "draws": [2] * 6,
            "rank": [0, 1, 2] * 2,
            "low": [0, 2, 4] * 2,
            "high": [1, 3, 5] * 2,
            "bound": [np.nan] * 6,
            "half": [0.5, 1.0, 1.5] * 2,
            "note": [""] * 6,
        }
    )
    pd.testing.assert_frame_equal(toy().to_frame(), expected)
    other = toy(name="b", note=("k", "l", "m"), bounds=Bounds(np.array([7.0, 8.0])))
    below = toy(other=other).to_frame()
    pd.testing.assert_frame_equal(below[:6], expected)
    assert below["run"][6:].tolist() == ["b"] * 6
    assert below["note"][6:].tolist() == ["k", "l", "m"] * 2
    assert below["bound"][6:].tolist() == [7.0] * 3 + [8.0] * 3


def test_more_columns_are_given_by_arrays_over_the_rows() -> None:
    frame = Frame("target place", "score").of(toy(), {"more": np.array([[1], [2], [3]])})
    assert frame["score"].tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    assert frame["more"].tolist() == [1, 1, 2, 2, 3, 3]
    assert Frame("", "name draw").of(toy()).to_dict("list") == {"name": ["a"], "draw": [2]}
    assert Frame("rank", "rank").of(Ranked(("p", "q")))["rank"].tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"'score' has the dimensions \('place', 'target'\)"):
        Frame("place", "score").of(toy())


@dataclass(frozen=True)
class Ranked(Result):
    names: Annotated[tuple[str, ...], "rank"]


def test_sizes_and_the_result_at_some_indices() -> None:
    known = {"place": 2, "target": 3, "draw": 2, "row": (2, 4), "column": (3, 5)}
    assert sizes(toy()) == known
    part = select(toy(bounds=Bounds(np.array([7.0, 8.0]))), "place", [1])
    assert sizes(part) == {**known, "place": 1, "row": 4, "column": 5}
    assert part.places == (None,)
    assert part.score.tolist() == [[3.0, 4.0, 5.0]]
    assert part.bounds == Bounds(np.array([8.0]))
    assert select(toy(), "draw", [1, 0]).draws.tolist() == [[3, 4, 2], [1, 5, 2]]
    with pytest.raises(ValueError, match="'edges' of a Toy has 3 of 'target', and 'targets' has 2"):
        select(toy(), "target", [2, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": np.zeros((3, 3))}, "'score' of a Toy has 3 of 'place', and 'places' has 2"),
        (
            {"score": np.zeros(2)},
            r"'score' of a Toy has 1 axes instead of \[place, target\]",
        ),
        ({"draws": np.zeros((2, 2))}, "'draws' of a Toy has 2 of 'target', and 'targets' has 3"),
        ({"limits": np.zeros((3, 4))}, "'limits' of a Toy has an axis of 4, not of 2"),
        ({"maps": (np.zeros((2, 3)),)}, "'maps' of a Toy has 1 of 'place', and 'places' has 2"),
        ({"maps": (np.zeros(2),) * 2}, "'maps' of a Toy has 2 axes instead of"),
        ({"weights": (np.zeros(3),) * 2}, r"'weights' of a Toy has 3 of 'row', and 'maps' has"),
        ({"edges": np.arange(3)}, "'edges' of a Toy has 2 of 'target', and 'targets' has 3"),
        ({"note": ("k",)}, "'note' of a Toy has 1 of 'target', and 'targets' has 3"),
        ({"bounds": Bounds(np.zeros(3))}, "'bounds' of a Toy has 3 of 'place', and 'places' has 2"),
    ],
)
def test_fields_that_disagree_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy(**change)
    with pytest.raises(ValueError, match=message):
        replace(toy(), **change)


def test_what_is_not_known_is_allowed() -> None:
    toy(weights=(np.zeros(0), np.zeros(4)), note=(), bounds=None)
    toy(places=(), score=np.zeros((0, 3)), maps=(), weights=())


# -- all types of results --------------------------------------------------------------------------

MODEL = ModelRecord("mixer", "mixer", True, "file", "a" * 64, 1)
IMAGES = ImagesRecord("demo", "test", 3, 2, "b" * 64)
LAYER = Layer("stem", "stem", 0.0, (2, 2), 4, 0, 4)
# Results that no section shows by themselves, and that have no golden file.
OF_OTHERS: dict[type[Any], Callable[[], Any]] = {
    TopImages: lambda: TopImages(
        MODEL, IMAGES, LAYER, 3, "peak", False, (8, 8), np.arange(4), *[np.zeros((4, 2), int)] * 4
    ),
    StemComponents: lambda: stem_components(
        StemFilters(MODEL, "stem", np.eye(6, 48).reshape(6, 3, 4, 4), (4, 4), np.ones(6))
    ),
}
# No two of their fields have a dimension in common.
ALONE = {
    "Anatomy",
    "ConvolutionEquivalence",
    "KernelTying",
    "ModelCost",
    "Narrative",
    "PaperFigures",
    "Skipped",
    "SpatialKernels",
    "StudyAnswer",
    "WeightSpectra",
}
# Tuples beside which nothing stands in parallel.
FREE = {
    "ChannelPage.partners",
    "Narrative.curves",
    "Narrative.findings",
    "OnlineCode.groups",
    "ReportDiff.changes",
    "ReportDiff.notes",
    "ReportDiff.only_a",
    "ReportDiff.only_b",
    "WeightSpectra.left_out",
    "WeightSpectra.nulls",
}


def parts(value: Any) -> Iterator[Any]:
    """The results and records inside a result, itself included."""
    if is_dataclass(value):
        yield value
        for field in fields(value):
            yield from parts(getattr(value, field.name))
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from parts(one)


def cut(value: Any, axes: tuple[str, ...], k: int) -> Any:
    """A field that lacks the last of its axis `k`."""
    if isinstance(value, np.ndarray):
        return value.take(range(value.shape[k] - 1), k)
    if is_dataclass(value):
        own = field_axes(type(value))
        if OF_FIELD in own.values():
            return replace(value, **{name: cut(getattr(value, name), axes, k) for name in own})
        return select(value, axes[k], range(sizes(value)[axes[k]] - 1))
    return tuple(cut(one, axes[1:], k - 1) for one in value) if k else value[:-1]


def contradictions(record: Any) -> Iterator[dict[str, Any]]:
    """A record as data with one field cut along one axis, for every axis of a dimension that other
    axes of the record have too."""
    given = to_dict(record)
    known = {n: axes for n, axes in field_axes(type(record)).items() if given[n] not in (None, [])}
    shared = [axis.partition(" ")[0].rstrip("?") for axes in known.values() for axis in axes]
    for name, axes in known.items():
        for k, axis in enumerate(axes):
            dimension = axis.partition(" ")[0].rstrip("?")
            if shared.count(dimension) > 1 or dimension.isdigit():
                data = {**given, name: to_dict(cut(getattr(record, name), axes, k))}
                # An axis of no element cannot be cut, and a field of none may be unknown.
                if data != given and not (axis.endswith("?") and not data[name]):
                    yield data


@pytest.mark.parametrize("kind", [*all_views(), *OF_OTHERS], ids=lambda kind: kind.__name__)
def test_saved_results_with_contradictory_fields_are_refused(
    kind: type[Any], tmp_path: Path
) -> None:
    file = tmp_path / "results.json"
    golden = GOLDEN / f"{kind.__name__}.json"
    result = OF_OTHERS[kind]() if kind in OF_OTHERS else load_results(golden)[0]
    found = [(type(part), data) for part in parts(result) for data in contradictions(part)]
    for of, data in found:
        told = rf"'\w+' of a {of.__name__} (has (an axis|.* of '[\w.]+', and '.*' has)|is a tuple)"
        with pytest.raises(StoreError, match=told):
            from_dict(data)
    own = next((data for of, data in found if of is kind), None)
    assert (own is None) == (kind.__name__ in ALONE)
    if own is not None:
        file.write_text(sealed([own]))
        with pytest.raises(StoreError, match=f"not a result .* of a {kind.__name__} "):
            load_results(file)


@pytest.mark.parametrize("kind", [*all_views(), *OF_OTHERS], ids=lambda kind: kind.__name__)
def test_arrays_and_tuples_name_their_dimensions(kind: type[Any]) -> None:
    silent = {
        f"{kind.__name__}.{field.name}"
        for field in fields(kind)
        if field.name not in field_axes(kind)
        and ("ndarray" in (text := str(field_types(kind)[field.name])) or "..." in text)
    }
    assert silent <= FREE
