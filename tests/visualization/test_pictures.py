"""Figures and the section of a report: what is drawn where, and that no text lies on another."""

from __future__ import annotations

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.core.errors import MeasureError, UndefinedVisualizationWarning
from mixer_probe.core.section import Picture, Table
from mixer_probe.report import make_sections
from mixer_probe.visualization import FeatureVisualization
from mixer_probe.visualization.figures import feature_ascent, feature_pictures
from tests.networks import CASES
from tests.report.test_figure_layout import outside, overlapping, texts_of


@pytest.fixture(scope="module")
def results() -> list[FeatureVisualization]:
    images = mp.load_images("demo", limit=20)
    options = {"images": images, "steps": 3, "seeds": (0, 1)}
    mixer, resnet = CASES["mixer"].model(), CASES["resnet-bottleneck"].model()
    resnet.module.fc.weight.data[2] = 0
    with pytest.warns(UndefinedVisualizationWarning):
        dead = mp.visualize(resnet, "head", [1, 2], k=2, **options)
    hidden = mp.visualize(
        mixer, "blocks.1.mlp_tokens.fc1", [1, 3], method=("fourier", "maco"), **options
    )
    return [hidden, dead]


def test_every_picture_is_drawn_beside_the_real_ones(results: list[FeatureVisualization]) -> None:
    figure = feature_pictures(results, faded=False)
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    hidden, dead = results
    expected = []
    for u in range(2):
        expected += [*hidden.pictures[u, 0], *hidden.pictures[u, 1], *hidden.real_pictures[u]]
    for u in range(2):
        expected += [*dead.pictures[u, 0], *dead.real_pictures[u]]
    assert len(drawn) == len(expected)
    for a, b in zip(drawn, expected, strict=True):
        np.testing.assert_allclose(a, b / 255.0)
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels[4] == f"{hidden.real_values[0, 0]:.3g} (1×)"
    assert labels.count("NaN") == 2


def test_pixels_that_did_not_matter_are_paler(results: list[FeatureVisualization]) -> None:
    hidden = results[0]
    plain, faded = (
        np.asarray(feature_pictures([hidden], faded=f).axes[2].images[0].get_array())
        for f in (False, True)
    )
    opacity = 0.3 + 0.7 * hidden.opacity[0, 1, 0][..., None] / 255
    np.testing.assert_allclose(faded, opacity * plain + 1 - opacity)


@pytest.mark.parametrize("draw", [feature_pictures, feature_ascent])
def test_texts_are_apart_and_inside(results: list[FeatureVisualization], draw: object) -> None:
    for chosen in (results, results[:1], results[1:]):
        figure = draw(chosen)
        texts = texts_of(figure)
        assert not overlapping(texts)
        assert not [text for text, box in texts if outside(box, figure.bbox)]
    with pytest.raises(MeasureError):
        draw([])


def test_the_section_counts_what_it_says(results: list[FeatureVisualization]) -> None:
    (section,) = make_sections(results)
    assert "root mean square over channels" in section.paragraphs[0]
    stronger = int(results[0].stronger[:, 0].sum())
    assert (
        f"Fourier activates {stronger} of 2 units more strongly than every real image"
        in section.paragraphs[0]
    )
    assert any("class 2 of fc" in warning for warning in section.warnings)
    assert sum(isinstance(item, Picture) for item in section.content) == 2
    (table,) = [item for item in section.content if isinstance(item, Table)]
    assert len(table.rows) == 2 * 2 * 2 + 2 * 2
