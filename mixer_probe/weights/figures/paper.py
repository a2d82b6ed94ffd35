"""Figs. 5, 6 and 7 of the Mixer paper as A4 pages, with a caption that states the provenance of the
weights.

Tolstikhin et al. 2021 give neither the colours nor how units are paired and sorted; both are this
package's: see `mixer_probe.weights.token_units`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixer_probe.core.errors import MeasureError
from mixer_probe.plotting.style import DIVERGING, model_label, plain, styled
from mixer_probe.weights import PaperFigures, TokenMixing
from mixer_probe.weights.figures.stem import filter_colours
from mixer_probe.weights.figures.tiles import Tiling, scaled, tile

# Inches: a page of A4, its margin, and what panels leave for title and caption.
A4 = (8.27, 11.69)
_MARGIN, _TOP, _CAPTION, _GAP, _HEAD = 0.5, 0.25, 1.55, 0.22, 0.66
_LETTERS = 150
_PAIRS_TEXT = (
    "Units are arranged in opposite-phase pairs (most negative cosine similarity), sorted row by "
    "row from low to high frequency (power centroid of the mean-removed map). Null of the cosine: "
    "same amplitude spectra, random phases."
)


@styled
def paper_figure_5(
    result: PaperFigures, blocks: Sequence[int | str] | None = None, *, shared_scale: bool = False
) -> Figure:
    """All hidden units of the token-mixing MLPs of three blocks side by side, by default the first
    three as in the paper.

    Colours are symmetric around zero, per unit unless `shared_scale`."""
    units = result.units
    chosen = (
        list(range(min(3, len(units.blocks))))
        if blocks is None
        else [units.index(b) for b in blocks]
    )
    figure = _page()
    places = _places(1, len(chosen))
    for place, i in zip(places[0], chosen, strict=True):
        axes = _panel(figure, place)
        _draw_units(axes, units, i, place[2:], shared_scale)
        axes.set_title(_unit_title(units, i), fontsize=7.5, fontweight="normal")
    first = chosen == list(range(len(chosen)))
    which = "first" if first else "last" if chosen[-1] == len(units.blocks) - 1 else "chosen"
    lead = (
        f"Hidden units of the token-mixing MLPs of {', '.join(units.blocks[i] for i in chosen)} of "
        f"{model_label(result.model)}, all {len(units.units(chosen[0]))} of each block: a unit has "
        f"{units.grid[0] * units.grid[1]} weights, one for each of the "
        f"{units.grid[0]}×{units.grid[1]} incoming patches. {_PAIRS_TEXT} "
        f"{_scale_text(shared_scale)}"
    )
    paper = (
        "Layout of Fig. 5 of the paper, which shows a Mixer-B/16 trained on JFT-300M; those "
        "weights were never released."
        if first
        else (
            "Not shown in the paper, which reports no clearly identifiable structure in deeper "
            "layers."
        )
    )
    number = "Figure 5" if first else "In addition to Figure 5"
    _frame_texts(
        figure,
        f"{number} · token-mixing units of the {which} blocks",
        [lead, paper, _weights_text(result)],
    )
    return figure


@styled
def paper_figure_6(
    results: Sequence[PaperFigures], blocks: Sequence[int] = (0, 1), *, shared_scale: bool = False
) -> Figure:
    """All hidden units of the first two token-mixing MLPs (rows) of up to three networks (columns).

    Raises MeasureError for no network, and for more than three, which would not print legibly."""
    if not 1 <= len(results) <= 3:
        raise MeasureError(f"a page of Fig. 6 holds one to three networks, not {len(results)}")
    figure = _page()
    rows = [b for b in blocks if all(b < len(r.units.blocks) for r in results)]
    for row, block in zip(_places(len(rows), len(results)), rows, strict=True):
        for place, result in zip(row, results, strict=True):
            axes = _panel(figure, place)
            _draw_units(axes, result.units, block, place[2:], shared_scale)
            axes.set_title(
                f"{model_label(result.model)}\n{_unit_title(result.units, block)}",
                fontsize=7,
                fontweight="normal",
            )
    lead = (
        "All hidden units of the first token-mixing MLPs (rows) of these networks (columns), with "
        f"one weight per incoming patch. {_PAIRS_TEXT} {_scale_text(shared_scale)}"
    )
    paper = (
        "Layout of Fig. 6 of the paper, whose columns are a Mixer-B/16 trained on ImageNet, "
        "ImageNet-21k and JFT-300M. The first two correspond to timm's goog_in21k_ft_in1k (despite "
        "its name) and goog_in21k."
    )
    _frame_texts(
        figure,
        "Figure 6 · token-mixing units across networks",
        [lead, paper, *map(_weights_text, results)],
    )
    return figure


@styled
def paper_figure_7(results: Sequence[PaperFigures]) -> Figure:
    """All linear units of the patch embedding of one or two networks as colour pictures, low
    frequency first.

    Raises MeasureError for no network, and for more than two."""
    if not 1 <= len(results) <= 2:
        raise MeasureError(f"a page of Fig. 7 holds one or two networks, not {len(results)}")
    figure = _page()
    for place, result in zip(_places(1, len(results))[0], results, strict=True):
        axes, stem = _panel(figure, place), result.stem
        pictures = filter_colours(stem.filters[stem.order])
        columns = _columns(len(pictures), pictures.shape[1] / pictures.shape[2], place[2:], step=1)
        axes.imshow(np.clip(tile(pictures, columns, 1.0), 0, 1), aspect="equal")
        axes.set_anchor("NW")
        axes.set_title(
            f"{model_label(result.model)} · {len(stem)} units of {stem.shape[2]}×{stem.shape[3]} "
            f"px\nmean frequency {result.stem_frequency:.3f} cycles/px (shuffled: "
            f"{result.stem_shuffled.mean():.3f})",
            fontsize=7.5,
            fontweight="normal",
        )
    lead = (
        "Linear projection units of the patch embedding, each as a colour image of its weights: "
        "mid-grey is zero, brighter is positive and darker negative in each colour; each unit has "
        "its own scale. Units are sorted row by row from low to high frequency (power centroid "
        "over all colours). Shuffled: the same with the pixels of each unit in random order."
    )
    paper = (
        "Layout of Fig. 7 of the paper, which shows a Mixer-B/16 and a Mixer-B/32, both trained on "
        "JFT-300M; those weights were never released."
    )
    _frame_texts(
        figure,
        "Figure 7 · linear units of the patch embedding",
        [lead, paper, *map(_weights_text, results)],
    )
    return figure


def _scale_text(shared: bool) -> str:
    whose = "all units of a block share one" if shared else "each unit has its own"
    return f"Red is positive weight, blue negative, white zero; {whose} scale."


def _weights_text(result: PaperFigures) -> str:
    """The provenance of the weights: the note of the model, which corrects misleading tags of
    timm."""
    model = result.model
    return f"{model_label(model)}: {model.note or 'weights from ' + model.weights + '.'}"


def _unit_title(units: TokenMixing, i: int) -> str:
    one = units.measures(i)
    return (
        f"{plain(units.blocks[i])} · units {len(one.maps)}\nfrequency "
        f"{one.statistics.frequency:.3f} (shuffled {np.mean(one.shuffled.frequency):.3f})\ncosine "
        f"with opposite {one.statistics.partner_cosine:.2f} (null {one.null_mean:.2f})"
    )


Place = tuple[float, float, float, float]


def _page() -> Figure:
    figure = Figure(figsize=A4)
    # Panels stand where they are put: a page has a fixed size.
    figure.set_layout_engine("none")
    return figure


def _places(rows: int, columns: int) -> list[list[Place]]:
    """Left, top, width and height in inches of panels that share the page."""
    width = (A4[0] - 2 * _MARGIN - (columns - 1) * _GAP) / columns
    height = (A4[1] - 2 * _MARGIN - _TOP - _CAPTION) / rows - _HEAD
    return [
        [
            (
                _MARGIN + c * (width + _GAP),
                _MARGIN + _TOP + _HEAD + r * (height + _HEAD),
                width,
                height,
            )
            for c in range(columns)
        ]
        for r in range(rows)
    ]


def _panel(figure: Figure, place: Place) -> Axes:
    left, top, width, height = place
    bottom = A4[1] - top - height
    axes = figure.add_axes((left / A4[0], bottom / A4[1], width / A4[0], height / A4[1]))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def _columns(count: int, aspect: float, size: tuple[float, float], step: int) -> int:
    """Columns, a multiple of `step`, in which `count` tiles of height / width `aspect` are largest
    inside width x height."""
    width, height = size
    choices = range(step, max(step, count) + 1, step)
    return max(choices, key=lambda n: min(width / n, height / aspect / -(-count // n)))


def _draw_units(
    axes: Axes, units: TokenMixing, i: int, size: tuple[float, float], shared: bool
) -> None:
    maps = units.units(i)
    columns = _columns(len(maps), units.grid[0] / units.grid[1], size, step=2)
    canvas = Tiling(len(maps), units.grid, columns, pairs=True).draw(
        scaled(maps, shared)[units.order(i)]
    )
    axes.imshow(
        canvas,
        cmap=mpl.colormaps[DIVERGING].with_extremes(bad="white"),
        vmin=-1,
        vmax=1,
        aspect="equal",
    )
    axes.set_anchor("NW")


def _frame_texts(figure: Figure, title: str, paragraphs: Sequence[str]) -> None:
    figure.text(
        _MARGIN / A4[0], 1 - _MARGIN / A4[1], title, fontsize=11, fontweight="bold", va="top"
    )
    lines = [
        line for text in dict.fromkeys(paragraphs) for line in textwrap.wrap(plain(text), _LETTERS)
    ]
    figure.text(
        _MARGIN / A4[0],
        (_MARGIN + _CAPTION - 0.12) / A4[1],
        "\n".join(lines),
        fontsize=6.8,
        va="top",
        linespacing=1.35,
    )
