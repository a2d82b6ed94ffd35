"""Figure of what differs between two reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import norm

from mixer_probe.plotting.style import COLOURS, GREY, plain, styled

# Letters of a label; what is longer is cut.
_LETTERS = 62


@styled
def differences(frame: pd.DataFrame, most: int = 24) -> Figure:
    """The numbers that changed most between two reports, and whether more changed than expected by
    chance.

    `frame` is `ReportDiff.to_frame()`. Left: the first `most` rows, the difference and its 95 %
    interval relative to the half-width of the interval on its side towards zero, so that numbers of
    any unit stand on one scale. Right: all differences in standard errors against the quantiles of
    a normal distribution."""
    shown = frame.head(most)
    figure = Figure(figsize=(11.0, max(3.6, 1.3 + 0.27 * len(shown))))
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 0.62))
    labels, rows = [], list[Any](shown.itertuples())
    for y, row in enumerate(rows):
        arm = row.difference - row.low if row.difference > 0 else row.high - row.difference
        colour = COLOURS[1] if row.moved else GREY
        ends = [
            float(np.clip(v / max(arm, np.finfo(float).tiny), -12, 12))
            for v in (row.low, row.difference, row.high)
        ]
        left.plot([ends[0], ends[2]], [y, y], color=colour, linewidth=1.4)
        left.plot(
            ends[1],
            y,
            "o" if row.moved else "s",
            color=colour,
            markerfacecolor=colour if row.moved else "white",
        )
        text = plain(" · ".join(str(word) for word in (row.number, row.row, row.result) if word))
        labels.append(text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…")
    left.axvline(0, color="black", linewidth=0.8)
    left.set_yticks(range(len(shown)), labels, fontsize=7)
    left.invert_yaxis()
    left.margins(y=0.03)
    left.set_xlabel("B minus A, in half-widths of its 95 % interval (beyond 1: changed)")
    left.set_title(f"The {len(shown)} largest differences", loc="right")
    n = len(frame)
    expected = norm.isf((np.arange(n) + 0.5) / n / 2)
    observed = np.minimum(norm.isf(np.sort(frame["p"].to_numpy()) / 2), 12.0)
    end = 1.05 * max(float(expected.max()), 2.5)
    right.plot([0, end], [0, end], color=GREY, linewidth=1.0)
    right.axhline(norm.isf(0.025), color="black", linewidth=0.8, linestyle=":")
    right.plot(expected, observed, "o", color=COLOURS[0], markersize=3)
    right.set_xlabel("expected under the null (standard errors)")
    right.set_ylabel("observed (standard errors)")
    right.set_title(f"{n} differences against the null")
    return figure
