"""The list of channels: one row a channel, with what is known of it, sorted and searched by any of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mixer_probe.channels import ChannelStatistics, ClassSelectivity
from mixer_probe.core.errors import MeasureError, closest

# What a person can sort by, draw and search: the column, and what it is called.
STATISTICS = {
    "mean": "mean",
    "std": "standard deviation",
    "skew": "skew",
    "kurtosis": "excess kurtosis",
    "share_nonpositive": "fraction at or below zero",
    "share_zero": "fraction of exact zeros",
    "largest_ratio": "largest |a| / median |a|",
    "nearest_correlation": "r with nearest channel",
}
SELECTIVITY = {
    "selectivity": "selectivity",
    "auroc": "AUROC",
    "dprime": "d′",
    "p_value": "corrected p",
}
OTHERS = {"class": "most selective class", "dead": "dead", "channel": "channel"}
TITLES = {**SELECTIVITY, **STATISTICS, **OTHERS, "layer": "layer", "depth": "relative depth"}
# Small values are the remarkable ones.
_ASCENDING = ("p_value", "class", "channel")
_ALIASES = {"d'": "dprime", "p": "p_value", "deviation": "std", "name": "layer", "block": "layer"}


def sortable(labelled: bool) -> list[str]:
    """Columns to sort by, the usual one first."""
    known = ["kurtosis", *(name for name in STATISTICS if name != "kurtosis"), "dead", "channel"]
    return [*SELECTIVITY, "class", *known] if labelled else known


def drawable(labelled: bool) -> list[str]:
    """Columns for the axes of a scatter."""
    return [*(SELECTIVITY if labelled else ()), *STATISTICS, "channel"]


def listing(statistics: ChannelStatistics, selectivity: ClassSelectivity | None, wanted: str = "") -> pd.DataFrame:
    """One row a layer and channel of `statistics`; `auroc`, `dprime` and `beyond` (the null) are of the class `wanted`, or of the
    class that the channel tells best.

    `selectivity` is how far the AUROC of `wanted` is from 1/2, or the strength |z| where no class is wanted."""
    frame = statistics.to_frame()
    if selectivity is None:
        return frame
    parts = [_of_layer(selectivity, selectivity.index(layer.name), wanted) for layer in statistics.layers]
    return frame.merge(pd.concat(parts, ignore_index=True), on=["layer", "channel"], how="left", sort=False)


def _of_layer(found: ClassSelectivity, i: int, wanted: str) -> pd.DataFrame:
    best = found.preferred[i]
    rows = np.arange(len(best))
    column = np.full(len(best), found.class_names.index(wanted)) if wanted else best
    auroc = np.where(column >= 0, found.auroc[i][rows, column], np.nan)
    return pd.DataFrame(
        {
            "layer": found.layers[i].name,
            "channel": rows,
            "class": np.where(best >= 0, np.array(found.class_names)[best], ""),
            "auroc": auroc,
            "dprime": np.where(column >= 0, found.dprime[i][rows, column], np.nan),
            "selectivity": np.abs(auroc - 0.5) if wanted else found.strength[i],
            "p_value": found.p_value[i],
            "beyond": np.abs(auroc - 0.5) > chance(found, i)[rows, column],
        }
    )


def chance(found: ClassSelectivity, i: int) -> np.ndarray:
    """How far from 1/2 the largest AUROC of layer `i` is in 95 % of random deals of the classes, [channel, class]: the result's
    `threshold`, which is in standard deviations of the AUROC, in units of the AUROC.

    The deviation is that of the class preferred, |AUROC - 1/2| / strength; over m of n images it goes as 1 / sqrt(m (n - m))."""
    rows, best = np.arange(len(found.preferred[i])), found.preferred[i]
    root = np.sqrt(found.counts * (found.n - found.counts))
    with np.errstate(divide="ignore", invalid="ignore"):
        deviation = np.abs(found.auroc[i][rows, best] - 0.5) / found.strength[i]
    return np.asarray(found.threshold[i] * deviation[:, None] * root[best][:, None] / root[None, :])


def ordered(frame: pd.DataFrame, column: str, turned: bool = False) -> pd.DataFrame:
    """Sorted by a column, what is remarkable first (`turned`: last), undefined values at the end."""
    ascending = (column in _ASCENDING) != turned
    return frame.sort_values(column, ascending=ascending, kind="stable", na_position="last", ignore_index=True)


@dataclass(frozen=True)
class _Condition:
    column: str
    sign: str
    value: str


_COMPARE: dict[str, Callable[[pd.Series, float], pd.Series]] = {
    "<=": lambda column, value: column <= value,
    ">=": lambda column, value: column >= value,
    "<": lambda column, value: column < value,
    ">": lambda column, value: column > value,
    "=": lambda column, value: column == value,
}
_PARTS = re.compile(r"^(.+?)\s*(<=|>=|=|<|>)\s*(.+)$")


def search(frame: pd.DataFrame, text: str) -> pd.DataFrame:
    """The rows that meet all conditions of `text`, such as "class = frog, kurtosis > 3"; a number alone is a channel, a word part
    of a class or a layer. Raises MeasureError for what cannot be read."""
    for part in re.split(r",|\band\b", text):
        if part.strip():
            frame = frame[_meets(frame, part.strip())]
    return frame.reset_index(drop=True)


def _meets(frame: pd.DataFrame, text: str) -> pd.Series:
    found = _PARTS.match(text)
    if found is None:
        return _mentions(frame, text)
    column, sign, value = _column(frame, found[1].strip()), found[2], found[3].strip()
    if column in ("class", "layer"):
        if sign != "=":
            raise MeasureError(f"'{text}': a {column} has a name and no size; write {column} = NAME")
        return frame[column].str.casefold() == value.casefold()
    return _COMPARE[sign](frame[column].astype(float), _number(text, value))


def _mentions(frame: pd.DataFrame, text: str) -> pd.Series:
    if text.isdecimal():
        return frame["channel"] == int(text)
    places = [frame[name].str.contains(text, case=False, regex=False) for name in ("class", "layer") if name in frame]
    return places[0] | places[-1]


def _column(frame: pd.DataFrame, text: str) -> str:
    known = {title.casefold(): name for name, title in TITLES.items() if name in frame}
    known |= {name: name for name in TITLES if name in frame} | {k: v for k, v in _ALIASES.items() if v in frame}
    if text.casefold() not in known:
        raise MeasureError(f"there is no '{text}' to search by; {closest(text.casefold(), list(known))}")
    return known[text.casefold()]


def _number(text: str, value: str) -> float:
    words = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
    try:
        return words[value.casefold()] if value.casefold() in words else float(value)
    except ValueError:
        raise MeasureError(f"'{text}': '{value}' is no number; write for instance kurtosis > 3") from None


def shown_table(frame: pd.DataFrame, columns: Sequence[str] = ()) -> pd.DataFrame:
    """The columns that people read, under their titles."""
    names = columns or ["layer", "channel", *(name for name in TITLES if name in frame and name not in ("layer", "channel"))]
    return frame[list(names)].rename(columns=TITLES)
