"""Pictures of what differs between two reports."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

from mixer_probe.plotting.style import COLOURS, GREY, plain, styled

_LETTERS = 62


@styled
def differences(frame: pd.DataFrame, most: int = 24) -> Figure:
    """The numbers that moved most between two reports, and whether more moved than by chance.

    `frame` is `ReportDiff.to_frame()`. Left: the first `most` rows, the difference and its 95 % interval as shares of the arm of
    the interval towards zero, so that numbers of any unit stand on one scale. Right: all differences in standard errors against
    what as many draws of a normal distribution give."""
    shown = frame.head(most)
    figure = Figure(figsize=(11.0, max(3.6, 1.3 + 0.27 * len(shown))))
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 0.62))
    _largest(left, shown)
    _against_chance(right, frame)
    return figure


def _largest(axes: Axes, shown: pd.DataFrame) -> None:
    scale = np.maximum(_arm(shown), np.finfo(float).tiny)
    for y, (row, s) in enumerate(zip(shown.itertuples(), scale, strict=True)):
        colour = COLOURS[1] if row.moved else GREY
        ends = [float(np.clip(v / s, -12, 12)) for v in (row.low, row.difference, row.high)]
        axes.plot([ends[0], ends[2]], [y, y], color=colour, linewidth=1.4)
        axes.plot(ends[1], y, "o" if row.moved else "s", color=colour, markerfacecolor=colour if row.moved else "white")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [_name(row) for row in shown.itertuples()], fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.03)
    axes.set_xlabel("B minus A, in half-widths of its 95 % interval (beyond 1: changed)")
    axes.set_title(f"The {len(shown)} largest differences", loc="right")


def _arm(frame: pd.DataFrame) -> np.ndarray:
    """Half width of the interval on its side towards zero."""
    up = frame["difference"] > 0
    arm: np.ndarray = np.where(up, frame["difference"] - frame["low"], frame["high"] - frame["difference"])
    return arm


def _name(row: object) -> str:
    words = [str(getattr(row, part)) for part in ("number", "row", "result")]
    text = plain(" · ".join(word for word in words if word))
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"


def _against_chance(axes: Axes, frame: pd.DataFrame) -> None:
    n = len(frame)
    expected = norm.isf((np.arange(n) + 0.5) / n / 2)
    observed = np.minimum(norm.isf(np.sort(frame["p"].to_numpy()) / 2), 12.0)
    end = 1.05 * max(float(expected.max()), 2.5)
    axes.plot([0, end], [0, end], color=GREY, linewidth=1.0)
    axes.axhline(norm.isf(0.025), color="black", linewidth=0.8, linestyle=":")
    axes.plot(expected, observed, "o", color=COLOURS[0], markersize=3)
    axes.set_xlabel("expected under the null (standard errors)")
    axes.set_ylabel("observed (standard errors)")
    axes.set_title(f"{n} differences against the null")
