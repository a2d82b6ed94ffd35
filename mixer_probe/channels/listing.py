"""Channels as one table, with their statistics and selectivity, sorted and searched by any of
them."""

from __future__ import annotations

import operator
import re

import numpy as np
import pandas as pd

from mixer_probe.channels.selectivity import ClassSelectivity
from mixer_probe.channels.statistics import ChannelStatistics
from mixer_probe.core.errors import MeasureError, closest

# What channels can be sorted by, drawn by and searched by: the column, and its title.
STATISTICS = {
    "mean": "mean",
    "std": "standard deviation",
    "skew": "skew",
    "kurtosis": "excess kurtosis",
    "fraction_nonpositive": "fraction at or below zero",
    "fraction_zero": "fraction of exact zeros",
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
_COMPARE = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_PARTS = re.compile(r"^(.+?)\s*(<=|>=|=|<|>)\s*(.+)$")
_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}


def sortable(labelled: bool) -> list[str]:
    """Columns to sort by, the usual one first; with those of selectivity for `labelled` images."""
    known = ["kurtosis", *(name for name in STATISTICS if name != "kurtosis"), "dead", "channel"]
    return [*SELECTIVITY, "class", *known] if labelled else known


def drawable(labelled: bool) -> list[str]:
    """Columns of numbers, for the axes of a scatter plot."""
    return [*(SELECTIVITY if labelled else ()), *STATISTICS, "channel"]


def list_channels(
    statistics: ChannelStatistics, selectivity: ClassSelectivity | None, class_name: str = ""
) -> pd.DataFrame:
    """One row per layer and channel of `statistics`, with the columns of its `to_frame` and those
    of `selectivity`, if given.

    `auroc`, `dprime` and `beyond` (the null) are those of the class, or of the class for which the
    channel is most selective. The column `selectivity` is the distance of the AUROC of the class
    from 1/2, or the strength |z| without a class."""
    frame = statistics.to_frame()
    if selectivity is None:
        return frame
    parts = []
    for layer in statistics.layers:
        i = selectivity.index(layer.name)
        best = selectivity.preferred[i]
        rows = np.arange(len(best))
        column = (
            np.full(len(best), selectivity.class_names.index(class_name)) if class_name else best
        )
        auroc = np.where(column >= 0, selectivity.auroc[i][rows, column], np.nan)
        table = {
            "layer": layer.name,
            "channel": rows,
            "class": np.where(best >= 0, np.array(selectivity.class_names)[best], ""),
            "auroc": auroc,
            "dprime": np.where(column >= 0, selectivity.dprime[i][rows, column], np.nan),
            "selectivity": np.abs(auroc - 0.5) if class_name else selectivity.strength[i],
            "p_value": selectivity.p_value[i],
            "beyond": np.abs(auroc - 0.5) > selectivity.null_band(i)[rows, column],
        }
        parts.append(pd.DataFrame(table))
    return frame.merge(
        pd.concat(parts, ignore_index=True), on=["layer", "channel"], how="left", sort=False
    )


def sort_channels(frame: pd.DataFrame, column: str, reverse: bool = False) -> pd.DataFrame:
    """Sorted by a column, what is remarkable first (`reverse`: last), undefined values at the
    end."""
    ascending = (column in _ASCENDING) != reverse
    return frame.sort_values(
        column, ascending=ascending, kind="stable", na_position="last", ignore_index=True
    )


def search_channels(frame: pd.DataFrame, text: str) -> pd.DataFrame:
    """The rows that meet all conditions of `text`, such as "class = frog, kurtosis > 3"; a number
    alone is a channel, a word part of a class or a layer. Raises MeasureError for what cannot be
    read."""
    for part in re.split(r",|\band\b", text):
        if part.strip():
            frame = frame[_condition(frame, part.strip())]
    return frame.reset_index(drop=True)


def _condition(frame: pd.DataFrame, text: str) -> pd.Series:
    """Which rows meet one condition."""
    found = _PARTS.match(text)
    if found is None:
        if text.isdecimal():
            return frame["channel"] == int(text)
        places = [
            frame[name].str.contains(text, case=False, regex=False)
            for name in ("class", "layer")
            if name in frame
        ]
        return places[0] | places[-1]
    name, sign, value = found[1].strip().casefold(), found[2], found[3].strip().casefold()
    columns = {title.casefold(): name for name, title in TITLES.items() if name in frame}
    columns |= {name: name for name in TITLES if name in frame} | {
        k: v for k, v in _ALIASES.items() if v in frame
    }
    if name not in columns:
        raise MeasureError(
            f"there is no '{found[1].strip()}' to search by; {closest(name, list(columns))}"
        )
    column = columns[name]
    if column in ("class", "layer"):
        if sign != "=":
            raise MeasureError(
                f"'{text}': a {column} has a name and no size; write {column} = NAME"
            )
        return frame[column].str.casefold() == value
    try:
        number = _WORDS[value] if value in _WORDS else float(value)
    except ValueError:
        raise MeasureError(
            f"'{text}': '{found[3].strip()}' is no number; write for instance kurtosis > 3"
        ) from None
    return pd.Series(_COMPARE[sign](frame[column].astype(float), number))
