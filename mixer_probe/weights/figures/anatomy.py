"""The anatomy of networks as bars: how much of each mixes locations, channels, both or neither."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mixer_probe.core.errors import MeasureError
from mixer_probe.plotting.style import model_label, styled
from mixer_probe.weights.module_anatomy import MIXES, Anatomy

# Colour, text colour and hatch: the light ones differ in lightness too, and the last two in hatch.
_LOOKS = {
    "across": ("#0072B2", "white", ""),
    "both": ("#CC79A7", "black", ""),
    "within": ("#F0C24B", "black", ""),
    "neither": ("#8A8A8A", "black", ""),
    "rest": ("#E6E6E6", "black", "////"),
}
_LABELS = {
    "across": "across locations",
    "both": "both",
    "within": "within a location (channels)",
    "neither": "neither",
    "rest": "outside all modules (embeddings, layer scales)",
}
_THICKNESS = 0.56
# Percent of the bar: a label of a narrower segment stands above it, and one below the second has none.
_FITS, _SHOWN = 13.5, 0.1
# Room that a label above the bar takes, in percent of the axis.
_ROOM = 12.0


@styled
def anatomy_bars(results: Sequence[Anatomy]) -> Figure:
    """One stacked bar a network for its parameters and one for its multiply-accumulates, by what the modules mix.

    Raises MeasureError for no network at all."""
    if not results:
        raise MeasureError("anatomy_bars needs one network or more")
    figure = Figure(figsize=(10.5, 1.3 + 0.52 * len(results)))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, share, title in zip(panels, ("parameter_share", "mac_share"), ("Parameters", "Multiply-accumulates"), strict=True):
        for row, result in enumerate(results):
            _bar(axes, row, 100 * result.summary()[share].to_numpy(float))
        axes.set(title=title, xlabel="fraction of the network (%)", xlim=(0, 100))
    panels[0].set_yticks(range(len(results)), [model_label(r.model) for r in results])
    panels[0].set_ylim(len(results) - 0.45, -0.72)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    _legend(figure, results)
    return figure


def _bar(axes: Axes, row: int, shares: np.ndarray) -> None:
    lefts = np.cumsum(shares) - shares
    for mixes, left, share in zip(MIXES, lefts, shares, strict=True):
        colour, _text, hatch = _LOOKS[mixes]
        axes.barh(row, share, _THICKNESS, left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.6)
    wide = shares >= _FITS
    for mixes, left, share in zip(np.array(MIXES)[wide], lefts[wide], shares[wide], strict=True):
        axes.text(left + share / 2, row, _percent(share), ha="center", va="center", fontsize=8.5, color=_LOOKS[mixes][1])
    _labels_above(axes, row, lefts, shares, np.flatnonzero(~wide & (shares >= _SHOWN)))


def _labels_above(axes: Axes, row: int, lefts: np.ndarray, shares: np.ndarray, narrow: np.ndarray) -> None:
    """Percentages of segments too narrow for them, moved apart where they would touch, each with a line to its segment."""
    centres = lefts[narrow] + shares[narrow] / 2
    for centre, place, index in zip(centres, _spread(centres), narrow, strict=True):
        edge, text = row - _THICKNESS / 2, row - _THICKNESS / 2 - 0.1
        axes.plot([centre, place], [edge, text], color="black", linewidth=0.6, clip_on=False)
        axes.text(place, text - 0.02, _percent(shares[index]), ha="center", va="bottom", fontsize=7.5)


def _spread(centres: np.ndarray) -> np.ndarray:
    """Places in the same order, at least one label apart and inside the axis."""
    places: np.ndarray = np.clip(centres, _ROOM / 2, 100 - _ROOM / 2)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + _ROOM)
    for i in range(len(places) - 1, -1, -1):
        limit = places[i + 1] - _ROOM if i + 1 < len(places) else 100 - _ROOM / 2
        places[i] = min(places[i], limit)
    return places


def _percent(share: float) -> str:
    return f"{share:.1f} %" if share < 99.95 else "100 %"


def _legend(figure: Figure, results: Sequence[Anatomy]) -> None:
    present = {m.mixes for r in results for m in r.units if m.parameters or m.macs}
    shown = [m for m in MIXES if m in present]
    handles = [Patch(facecolor=_LOOKS[m][0], hatch=_LOOKS[m][2], edgecolor="white", linewidth=0.6) for m in shown]
    figure.legend(handles, [_LABELS[m] for m in shown], loc="outside lower center", ncols=len(shown))
