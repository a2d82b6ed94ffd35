"""The bars of an anatomy are its numbers, and their labels can be read."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ModelRecord
from mixer_probe.core.section import Picture, Table
from mixer_probe.weights import Anatomy, ModuleAnatomy
from mixer_probe.weights.figures import anatomy_bars
from mixer_probe.weights.figures.anatomy import LOOKS, label_places
from mixer_probe.weights.module_anatomy import MIXES
from mixer_probe.weights.views.anatomy import anatomy_section
from tests.report.test_figure_layout import outside, overlapping, texts_of

SIZES = {
    "a": {"across": (300, 1100), "both": (100, 90), "within": (9600, 8810)},
    "a-vision-transformer-with-a-very-long-name": {
        "both": (4800, 6700),
        "within": (4900, 3300),
        "rest": (300, 0),
    },
    "c": {
        "across": (150, 100),
        "both": (130, 100),
        "within": (9420, 9800),
        "neither": (200, 0),
        "rest": (100, 0),
    },
}


def of(name: str, sizes: dict[str, tuple[int, int]]) -> Anatomy:
    modules = tuple(
        ModuleAnatomy(
            f"m{i}",
            "head" if m == "rest" else "block",
            "Linear",
            "rest" if m == "rest" else "unit",
            m,
            p,
            q,
        )
        for i, (m, (p, q)) in enumerate(sizes.items())
    )
    totals = [sum(s[i] for s in sizes.values()) for i in (0, 1)]
    # A part holds units, so that it must not be counted with them.
    part = ModuleAnatomy("part", "block", "Mlp", "part", "within", 5000, 5000)
    return Anatomy(
        ModelRecord(name, "mixer", True, "", "0", totals[0]),
        (3, 8, 8),
        (*modules, part),
        totals[0],
        totals[1],
        0,
    )


@pytest.fixture(scope="module")
def results() -> list[Anatomy]:
    return [of(name, sizes) for name, sizes in SIZES.items()]


def segments(axes: Axes, row: int) -> list[Rectangle]:
    bars = [p for p in axes.patches if isinstance(p, Rectangle)]
    return [p for p in bars if abs(p.get_y() + p.get_height() / 2 - row) < 0.01]


def test_bars_are_the_shares_side_by_side_in_a_fixed_order(results: list[Anatomy]) -> None:
    for axes, which in zip(anatomy_bars(results).axes, (0, 1), strict=True):
        for row, sizes in enumerate(SIZES.values()):
            bars = segments(axes, row)
            fractions = [
                100 * sizes.get(m, (0, 0))[which] / sum(s[which] for s in sizes.values())
                for m in MIXES
            ]
            np.testing.assert_allclose([b.get_width() for b in bars], fractions)
            np.testing.assert_allclose([b.get_x() for b in bars], np.cumsum([0, *fractions[:-1]]))
            assert [b.get_facecolor()[:3] for b in bars] == [to_rgb(LOOKS[m][0]) for m in MIXES]


def test_every_share_that_is_there_has_its_percentage(results: list[Anatomy]) -> None:
    axes = anatomy_bars(results).axes
    assert [t.get_text() for t in axes[0].get_yticklabels()][:1] == ["a"]
    assert {"3.0 %", "1.0 %", "96.0 %", "48.0 %", "49.0 %", "1.5 %", "1.3 %", "2.0 %"} <= {
        t.get_text() for t in axes[0].texts
    }
    assert {"11.0 %", "0.9 %", "88.1 %", "67.0 %", "33.0 %"} <= {
        t.get_text() for t in axes[1].texts
    }
    assert "0.0 %" not in {t.get_text() for a in axes for t in a.texts}


@pytest.mark.parametrize("count", [1, 3, 12])
def test_no_label_lies_on_another_or_leaves_the_canvas(results: list[Anatomy], count: int) -> None:
    figure = anatomy_bars((results * 4)[:count])
    texts = texts_of(figure)
    assert not overlapping(texts)
    assert not [text for text, box in texts if outside(box, figure.bbox)]


def test_colours_differ_in_lightness_where_segments_touch() -> None:
    """For readers who see no hues: CIE lightness of the segments that can stand side by side."""

    def lightness(colour: str) -> float:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
        ]
        return float(116 * np.dot([0.2126, 0.7152, 0.0722], linear) ** (1 / 3) - 16)

    lights = [lightness(LOOKS[m][0]) for m in MIXES]
    assert min(abs(a - b) for a, b in pairwise(lights)) > 15


def test_crowded_labels_keep_order_and_distance() -> None:
    places = label_places(np.array([1.0, 1.5, 2.0, 99.0, 99.9]))
    assert (np.diff(places) >= 12 - 1e-9).all()
    assert places.min() >= 6 - 1e-9
    assert places.max() <= 94 + 1e-9


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(MeasureError, match="one network"):
        anatomy_bars([])


def test_the_section_says_the_numbers(results: list[Anatomy]) -> None:
    (section,) = anatomy_section(results)
    assert section.anchor == "anatomy"
    assert (
        "3.0 % and 11.0 % mix across locations only, 96.0 % and 88.1 % within a location only"
        in section.paragraphs[0]
    )
    picture, summary, *modules = section.content
    assert isinstance(picture, Picture)
    assert isinstance(summary, Table)
    assert [cell for cell, _ in summary.rows[0]] == [
        "a",
        "across",
        "1",
        "300",
        "1,100",
        "3.00",
        "11.00",
    ]
    assert len(modules) == 3
    assert "with-a-very-long-name" in modules[1].caption or "…" in modules[1].caption
