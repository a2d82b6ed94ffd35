"""`compare_reports`: which numbers of two reports moved beyond their intervals.

Two values with 95 % intervals are compared by the interval of their difference, recovered from the
two intervals (MOVER; Newcombe 1998 for fractions with Wilson intervals, Zou and Donner 2008 for
any): from a with [l, u] and b with [l', u'],

    b - a - sqrt((b - l')^2 + (u - a)^2)  to  b - a + sqrt((u' - b)^2 + (a - l)^2).

A number moved if that leaves out zero. With symmetric intervals this is the z test of the
difference. Of independent values that did not change 5 % move by chance. Other rules mistake that
fraction: "the intervals do not overlap" is true of 0.6 %, and "each value lies outside the other's
interval" of 17 % (of two values of equal standard error). Values measured on the same images err
together, so that their difference varies less than the rule says: fewer then move by chance, and
those that do are the surer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from mixer_probe.core.errors import MeasureError, StoreError
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import (
    ImagesRecord,
    ModelRecord,
    Result,
    SavedResults,
    from_dict,
    open_results,
    storable,
    to_dict,
)
from mixer_probe.core.validate import checked
from mixer_probe.core.words import short_name
from mixer_probe.models import Layer
from mixer_probe.stats.differences import LEVEL, difference_interval, difference_p

# Columns that say which row it is. The others are what was measured.
_KEYS = frozenset(
    (
        "model",
        "model_a",
        "model_b",
        "arm",
        "arm_b",
        "seed_b",
        "trained",
        "layer",
        "layer_a",
        "layer_b",
        "donor",
        "receiver",
        "donor_layer",
        "receiver_layer",
        "fit",
        "condition",
        "module",
        "block",
        "role",
        "side",
        "unit",
        "channel",
        "kernel",
        "operator",
        "head",
        "row",
        "column",
        "other_row",
        "other_column",
        "place",
        "index",
        "shots",
        "method",
        "method_a",
        "method_b",
        "mode",
        "measure",
        "metric",
        "stage",
        "randomised",
        "class",
        "true",
        "predicted",
        "end",
        "rank",
        "target",
        "probe",
        "quantity",
        "reader",
        "view",
        "channels",
        "distortion",
        "kind",
        "group",
        "concept",
        "atom",
        "image",
        "form",
        "dtype",
        "cost",
        "scale",
        "size_px",
        "seed",
        "where",
        "step",
        "source",
        "test",
        "statistic",
        "kind_a",
        "kind_b",
    )
)
# In some tables a column of that name is the answer.
_ANSWERS = {
    "LayerMatches": {"layer_b"},
    "SimilarityMatrix": {"method"},
    "ChannelPage": {"image", "class"},
    "TopImages": {"image", "index", "row", "column"},
    "AttributionPanel": {"predicted", "target", "layer"},
    "Attribution": {"predicted", "target", "layer"},
    "ClassSelectivity": {"class"},
    "UnitImportance": {"class"},
    "Dissection": {"concept"},
    "DissectedChannel": {"image"},
}
# Tables that repeat the numbers of others: only what they add is compared.
_ONLY = {"Narrative": {"verdict"}}
# Fields that tell results of one kind and one network apart.
_FIELDS = (
    "quantity",
    "family",
    "measure",
    "layer",
    "layer_a",
    "layer_b",
    "channel",
    "kernel",
    "reduce",
    "grid",
    "without_top_pc",
    "form",
    "preset",
    "probe",
    "by",
    "lowest",
    "kind",
    "over",
    "source",
    "concept",
    "parameter",
    "label",
    "matrix_label",
    "method",
    "magnitudes",
    "calibrated",
    "step",
)
_MORE = {"SimilarityMatrix": ("estimator",), "Agreement": ("methods",)}
# How a matrix was computed is no other matrix.
_FEWER = {"SimilarityMatrix": {"method"}}
# Ranges of random draws: where they lie says nothing about how well the number is known.
_RANGES = re.compile(r"(^|_)null_count_\d+$|^random$")
# Parts of an interval that is there as a whole.
_PARTS = ("images", "seeds")

Saved = SavedResults | Sequence[Any] | str | os.PathLike[str]


@storable
@dataclass(frozen=True)
class Change:
    """Numbers or words of one column that differ and have no interval: `differing` of `rows`
    values. The largest change is from `before` to `after`, in `row`."""

    result: str
    column: str
    rows: int
    differing: int
    row: str
    before: float | str
    after: float | str


@dataclass(frozen=True)
class ReportDiff(Result):
    """What differs between report A and report B. `values` [n, 6] are the numbers that differ and
    have intervals: of A the value and its bounds, then of B; `results`, `rows` and `columns` say
    which. `compared` numbers have intervals on both sides, `plain` numbers and words have none, and
    `changes` are those of them that differ. `notes` are models, images and settings that differ.

    `moved` says which numbers lie beyond their intervals, as the module says; 5 % of those that
    differ would by chance."""

    title: ClassVar[str] = "Differences of reports"
    frame = Frame(
        "number",
        """result=results row=rows number=columns a,a_low,a_high,b,b_low,b_high=values difference
        low,high=bounds moved p=p_value q=q_value""",
    )

    name_a: str
    name_b: str
    matched: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...]
    results: Annotated[tuple[str, ...], "number"]
    rows: Annotated[tuple[str, ...], "number"]
    columns: Annotated[tuple[str, ...], "number"]
    values: Annotated[np.ndarray, "number", 6]
    compared: int
    plain: int
    changes: tuple[Change, ...]

    @cached_property
    def bounds(self) -> Annotated[np.ndarray, "number", 2]:
        """95 % intervals [n, 2] of B minus A."""
        return difference_interval(*self.values.T)

    @cached_property
    def p_value(self) -> Annotated[np.ndarray, "number"]:
        """Two-sided p-values [n] of no difference, by the interval's side towards zero taken for
        1.96 standard errors."""
        return difference_p(*self.values.T)

    @cached_property
    def q_value(self) -> Annotated[np.ndarray, "number"]:
        """p-values [n] adjusted for the false discovery rate among the numbers that differ
        (Benjamini and Hochberg 1995)."""
        q: np.ndarray = false_discovery_control(self.p_value) if len(self.values) else np.empty(0)
        return q

    @property
    def moved(self) -> Annotated[np.ndarray, "number"]:
        """Which numbers [n] moved beyond their intervals."""
        beyond: np.ndarray = (self.bounds[:, 0] > 0) | (self.bounds[:, 1] < 0)
        return beyond

    @property
    def expected(self) -> float:
        """How many of the numbers that differ would move by chance, had nothing changed but the
        images."""
        return (1 - LEVEL) * len(self.values)

    @property
    def same(self) -> bool:
        """Whether nothing differs, not even a number within its interval."""
        return not (len(self.values) or self.changes or self.only_a or self.only_b or self.notes)

    @property
    def difference(self) -> Annotated[np.ndarray, "number"]:
        """B minus A [n]."""
        return np.asarray(self.values[:, 3] - self.values[:, 0])

    def to_frame(self) -> pd.DataFrame:
        """One number with intervals that differs a row, those that moved most first."""
        return super().to_frame().sort_values("p", kind="stable", ignore_index=True)

    def changes_frame(self) -> pd.DataFrame:
        """One column without intervals that differs a row."""
        return pd.DataFrame(
            [vars(c) for c in self.changes], columns=[f.name for f in fields(Change)]
        )


@checked(MeasureError)
def compare_reports(
    a: Saved,
    b: Saved,
    *,
    same: Mapping[str, str] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-8,
) -> ReportDiff:
    """What differs between two reports.

    `a` and `b` are folders of reports, results files, or results. Results are matched by their
    kind, networks, images and what else tells them apart, their rows by layer, channel, class, ...;
    a network called otherwise in `b` is named in `same` (name in A -> name in B). Numbers are the
    same if they are within `atol` + `rtol` times their size.

    Raises StoreError for a path without results, and for a name in `same` that is not in A."""
    left, right = _opened(a), _opened(b)
    first, second = left.results, right.results
    if same:
        known = {record.name for record in _records(first, ModelRecord)}
        for name in same:
            if name not in known:
                raise StoreError(
                    f"there is no network '{name}' in A; it has "
                    f"{', '.join(sorted(known)) or 'none'}"
                )
        names = {
            old + baseline: new + baseline
            for old, new in same.items()
            for baseline in ("", "?untrained")
        }
        first = tuple(from_dict(_replaced(to_dict(r), names)) for r in first)
    in_a, in_b = _by_identity(first), _by_identity(second)
    found = _Comparison(rtol, atol)
    found.only_a += [_label(r) for key, r in in_a.items() if key not in in_b]
    found.only_b += [_label(r) for key, r in in_b.items() if key not in in_a]
    shared = [key for key in in_a if key in in_b]
    for key in shared:
        found.compare(_label(in_a[key]), in_a[key], in_b[key])
    name_a, name_b = (
        str(Path(saved)) if isinstance(saved, (str, os.PathLike)) else letter
        for saved, letter in ((a, "A"), (b, "B"))
    )
    return ReportDiff(
        name_a,
        name_b,
        len(shared),
        tuple(found.only_a),
        tuple(found.only_b),
        tuple(_notes(left, right, first, second)),
        tuple(found.results),
        tuple(found.rows),
        tuple(found.columns),
        np.array(found.values, dtype=np.float64).reshape(-1, 6),
        found.compared,
        found.plain,
        tuple(found.changes),
    )


def _opened(saved: Saved) -> SavedResults:
    if isinstance(saved, SavedResults):
        return saved
    return (
        open_results(saved)
        if isinstance(saved, (str, os.PathLike))
        else SavedResults(tuple(saved), {})
    )


def _replaced(data: Any, names: Mapping[str, str]) -> Any:
    """JSON data with some texts replaced."""
    if isinstance(data, dict):
        return {key: _replaced(value, names) for key, value in data.items()}
    if isinstance(data, list):
        return [_replaced(value, names) for value in data]
    return names.get(data, data) if isinstance(data, str) else data


# -- which results and rows belong together --------------------------------------------------------


def _by_identity(results: Sequence[Any]) -> dict[Any, Any]:
    """Results by their kind, networks, images and the fields that tell them apart; equal ones are
    numbered."""
    found: dict[Any, Any] = {}
    for result in results:
        kind = type(result).__name__
        models = [m.name for m in _own(result, ModelRecord)]
        images = [(r.name, r.split) for r in _own(result, ImagesRecord)]
        key, n = (kind, *models, *images, *_apart(result, kind).items()), 0
        while (key, n) in found:
            n += 1
        found[key, n] = result
    return found


def _apart(result: Any, kind: str) -> dict[str, Any]:
    """The fields that tell results of one kind apart."""
    names = [*(n for n in _FIELDS if n not in _FEWER.get(kind, ())), *_MORE.get(kind, ())]
    values = {f.name: getattr(result, f.name) for f in fields(result) if f.name in names}
    plain = {
        name: value.name if isinstance(value, Layer) else value for name, value in values.items()
    }
    return {
        name: value for name, value in plain.items() if isinstance(value, (str, int, bool, tuple))
    }


def _own(result: Any, kind: type[Any]) -> list[Any]:
    """Records in the result's own fields."""
    values = [getattr(result, f.name) for f in fields(result)]
    return [
        r
        for value in values
        for r in (value if isinstance(value, tuple) else (value,))
        if isinstance(r, kind)
    ]


def _label(result: Any) -> str:
    """ "Linear probes of mixer-s0, ridge", "Channel page of mixer-s0, blocks.3:17"."""
    kind = type(result).__name__
    models = dict.fromkeys(short_name(m.name) for m in _own(result, ModelRecord))
    fields_apart = _apart(result, kind)
    if isinstance(fields_apart.get("channel"), int):
        fields_apart["layer"] = f"{fields_apart.get('layer', '')}:{fields_apart['channel']}"
    apart = [
        v
        for name, v in fields_apart.items()
        if isinstance(v, str) and v and (name, v) != ("reduce", "mean")
    ]
    title: str = type(result).title
    return ", ".join(
        [title + (f" of {' and '.join(models)}" if models else ""), *dict.fromkeys(apart)]
    )


def _records(value: Any, kind: type[Any]) -> Iterator[Any]:
    """All records inside results."""
    if isinstance(value, kind):
        yield value
    elif is_dataclass(value):
        for f in fields(value):
            yield from _records(getattr(value, f.name), kind)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _records(item, kind)


@dataclass
class _Comparison:
    """What the comparison of one pair of results after the other found."""

    rtol: float
    atol: float

    def __post_init__(self) -> None:
        self.results: list[str] = []
        self.rows: list[str] = []
        self.columns: list[str] = []
        self.values: list[np.ndarray] = []
        self.changes: list[Change] = []
        self.only_a: list[str] = []
        self.only_b: list[str] = []
        self.compared = self.plain = 0

    def compare(self, label: str, x: Result, y: Result) -> None:
        """Compare all columns that two tables share."""
        kind = type(x).__name__
        frame = _joined(x.to_frame(), y.to_frame(), _KEYS - _ANSWERS.get(kind, set()))
        for side, only in (("left_only", self.only_a), ("right_only", self.only_b)):
            missing = frame[frame["_merge"] == side]
            only += (
                [f"{label}: {len(missing)} rows, the first {missing['row'].iloc[0]}"]
                if len(missing)
                else []
            )
        both = frame[frame["_merge"] == "both"]
        names = [c.removesuffix("_A") for c in frame.columns if c.endswith("_A")]
        shared = [name for name in names if f"{name}_B" in frame.columns]
        shared = [name for name in shared if name in _ONLY.get(kind, shared)]
        intervals, bounds = interval_columns(shared)
        for column in shared:
            if column in intervals:
                names = [f"{name}_{side}" for side in "AB" for name in (column, *intervals[column])]
                values = both[names].to_numpy(dtype=np.float64)
                known = np.isfinite(values).all(axis=1)
                self._plain(label, both[~known], column)
                self.compared += int(known.sum())
                differing = np.flatnonzero(known & ~self._close(values[:, 0], values[:, 3]))
                self.values += list(values[differing])
                self.rows += both["row"].iloc[differing].tolist()
                self.results += [label] * len(differing)
                self.columns += [column] * len(differing)
            elif column not in bounds:
                self._plain(label, both, column)

    def _plain(self, label: str, both: pd.DataFrame, column: str) -> None:
        """Compare a column without intervals."""
        rows, a, b = both["row"], both[f"{column}_A"], both[f"{column}_B"]
        self.plain += len(rows)
        numbers = all(pd.api.types.is_numeric_dtype(side) for side in (a, b))
        if numbers:
            a, b = (side.astype(float) for side in (a, b))
        differs = (
            ~self._close(a.to_numpy(), b.to_numpy())
            if numbers
            else (a.map(repr) != b.map(repr)).to_numpy()
        )
        if not differs.any():
            return
        gap = (
            np.nan_to_num(np.abs((a - b).to_numpy()), nan=np.inf, posinf=np.inf)
            if numbers
            else differs.astype(float)
        )
        i = int(np.argmax(np.where(differs, gap, -1.0)))
        before, after = (float(side.iloc[i]) if numbers else str(side.iloc[i]) for side in (a, b))
        self.changes.append(
            Change(label, column, len(rows), int(differs.sum()), rows.iloc[i], before, after)
        )

    def _close(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        close: np.ndarray = np.isclose(a, b, rtol=self.rtol, atol=self.atol, equal_nan=True)
        return close


def _joined(a: pd.DataFrame, b: pd.DataFrame, known: frozenset[str]) -> pd.DataFrame:
    """Rows of both side by side, columns with _A and _B, `row` for people, and `_merge` that says
    which side has the row."""
    keys = [name for name in a.columns if name in known and name in b.columns]
    several = [
        name
        for name in keys
        if a[name].nunique(dropna=False) > 1 or b[name].nunique(dropna=False) > 1
    ]
    sides = []
    for frame, letter in ((a, "A"), (b, "B")):
        side = frame.drop(columns=keys).add_suffix(f"_{letter}")
        side["key"] = _texts(frame, keys)
        side["row"] = _texts(frame, [name for name in several if name != "trained"])
        side["again"] = side.groupby("key").cumcount()
        sides.append(side)
    return sides[0].merge(
        sides[1], on=["key", "row", "again"], how="outer", indicator=True, sort=False
    )


def _texts(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """ "blocks.3, shots 5" of every row."""

    def text(name: str, value: Any) -> str:
        if isinstance(value, str):
            return short_name(value) if name.startswith("model") else value
        return "" if value is None or value != value else f"{name.replace('_', ' ')} {value}"

    parts = [[text(name, value) for value in frame[name]] for name in names]
    return [", ".join(p for p in row if p) for row in zip(*parts)] if parts else [""] * len(frame)


def interval_columns(columns: Sequence[str]) -> tuple[dict[str, tuple[str, str]], set[str]]:
    """Which columns have an interval, with the names of its bounds; and all bounds.

    Bounds are called low and high, with the number's name before or behind; without it they follow
    their number."""
    found: dict[str, tuple[str, str]] = {}
    parts = {f"{part}_{end}" for part in _PARTS for end in ("low", "high")} & set(columns)
    for i, low in enumerate(columns):
        stem = _stem(low)
        high = re.sub(r"(^|_)low($|_)", r"\1high\2", low)
        if stem is None or high not in columns or low in parts or _RANGES.search(stem):
            continue
        value = stem if stem in columns else columns[i - 1]
        if i and _stem(value) is None and _stem(value.replace("high", "low")) is None:
            found.setdefault(value, (low, high))
    return found, {bound for pair in found.values() for bound in pair} | parts


def _stem(column: str) -> str | None:
    """ "accuracy" of "accuracy_low" and of "low_accuracy", "" of "low", None of others."""
    match = re.fullmatch(r"(?:(.+)_)?low|low_(.+)", column)
    return None if match is None else match[1] or match[2] or ""


# -- what they were measured on --------------------------------------------------------------------


def _notes(
    left: SavedResults, right: SavedResults, a: Sequence[Any], b: Sequence[Any]
) -> Iterator[str]:
    """Networks of one name with other weights, images of one name that are not the same, and
    settings that differ."""
    first, second = ({r.name: r for r in _records(results, ModelRecord)} for results in (a, b))
    for name in first:
        if name in second and first[name].fingerprint != second[name].fingerprint:
            texts = [f"{r.fingerprint[:12]} ({r.weights})" for r in (first[name], second[name])]
            yield (
                f"{name} has other weights, settings or preprocessing: {texts[0]} in A, {texts[1]} "
                "in B"
            )
    one, other = _images_of(a), _images_of(b)
    for where in one:
        if where in other and one[where] != other[where]:
            name = "/".join(part for part in where if part)
            counts = [
                ", ".join(str(n) for n in sorted({n for n, _ in side[where]}))
                for side in (one, other)
            ]
            differ = (
                f"{counts[0]} images in A, {counts[1]} in B"
                if counts[0] != counts[1]
                else "other images or classes"
            )
            yield f"{name}: {differ}"
    study_a, study_b = (dict(side.settings.get("study") or {}) for side in (left, right))
    for name in study_a:
        if name in study_b and study_a[name] != study_b[name]:
            yield f"setting {name}: {study_a[name]} in A, {study_b[name]} in B"


def _images_of(results: Sequence[Any]) -> dict[tuple[str, str], set[tuple[int, str]]]:
    found: dict[tuple[str, str], set[tuple[int, str]]] = {}
    for record in _records(results, ImagesRecord):
        found.setdefault((record.name, record.split), set()).add((record.n, record.fingerprint))
    return found
