"""The anatomy of networks as bars: how much of each mixes locations, channels, both or neither."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mixer_probe.core.errors import MeasureError
from mixer_probe.plotting.style import model_label, styled
from mixer_probe.weights.module_anatomy import MIXES, Anatomy

# Colour, text colour and hatch: the light ones differ in lightness too, and the last two in hatch.
LOOKS = {
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
# Percent of the bar: a label of a narrower segment stands above it, and one below the second has
# none.
_FITS, _SHOWN = 13.5, 0.1
# Room that a label above the bar takes, in percent of the axis.
_ROOM = 12.0


@styled
def anatomy_bars(results: Sequence[Anatomy]) -> Figure:
    """One stacked bar per network for its parameters and one for its multiply-accumulates, by what
    the modules mix.

    Raises MeasureError for no network at all."""
    if not results:
        raise MeasureError("anatomy_bars needs one network or more")
    figure = Figure(figsize=(10.5, 1.3 + 0.52 * len(results)))
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"parameter_fraction": "Parameters", "mac_fraction": "Multiply-accumulates"}
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        for row, result in enumerate(results):
            percentages = 100 * result.summary()[column].to_numpy(float)
            lefts = np.cumsum(percentages) - percentages
            centres = lefts + percentages / 2
            for mixes, left, percentage in zip(MIXES, lefts, percentages, strict=True):
                colour, _text, hatch = LOOKS[mixes]
                axes.barh(
                    row,
                    percentage,
                    _THICKNESS,
                    left,
                    color=colour,
                    hatch=hatch,
                    edgecolor="white",
                    linewidth=0.6,
                )
            texts = [f"{p:.1f} %" if p < 99.95 else "100 %" for p in percentages]
            for i in np.flatnonzero(percentages >= _FITS):
                axes.text(
                    centres[i],
                    row,
                    texts[i],
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color=LOOKS[MIXES[i]][1],
                )
            # Segments too narrow for their label have it above, with a line, moved apart where
            # labels would touch.
            narrow = np.flatnonzero((percentages < _FITS) & (percentages >= _SHOWN))
            edge = row - _THICKNESS / 2
            for i, place in zip(narrow, label_places(centres[narrow]), strict=True):
                axes.plot(
                    [centres[i], place],
                    [edge, edge - 0.1],
                    color="black",
                    linewidth=0.6,
                    clip_on=False,
                )
                axes.text(place, edge - 0.12, texts[i], ha="center", va="bottom", fontsize=7.5)
        axes.set(title=title, xlabel="fraction of the network (%)", xlim=(0, 100))
    panels[0].set_yticks(range(len(results)), [model_label(r.model) for r in results])
    panels[0].set_ylim(len(results) - 0.45, -0.72)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    present = {m.mixes for r in results for m in r.units if m.parameters or m.macs}
    shown = [m for m in MIXES if m in present]
    handles = [
        Patch(facecolor=LOOKS[m][0], hatch=LOOKS[m][2], edgecolor="white", linewidth=0.6)
        for m in shown
    ]
    figure.legend(
        handles, [_LABELS[m] for m in shown], loc="outside lower center", ncols=len(shown)
    )
    return figure


def label_places(centres: np.ndarray) -> np.ndarray:
    """Positions of labels near `centres`, in the same order, at least one label apart and inside
    the axis."""
    places: np.ndarray = np.clip(centres, _ROOM / 2, 100 - _ROOM / 2)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + _ROOM)
    for i in range(len(places) - 1, -1, -1):
        limit = places[i + 1] - _ROOM if i + 1 < len(places) else 100 - _ROOM / 2
        places[i] = min(places[i], limit)
    return places
