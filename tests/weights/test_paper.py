"""The paper's figures: planted pairs and gratings, pages of the right size, and whose weights they
are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mixer_probe.core.errors import MeasureError, ModelError, StoreError
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.models import load_model
from mixer_probe.models.load import GOOGLE_NOTE
from mixer_probe.models.model import Model, Weights
from mixer_probe.report import save_pages
from mixer_probe.weights import PaperFigures, paper_figures
from mixer_probe.weights.figures import paper_figure_5, paper_figure_6, paper_figure_7
from mixer_probe.weights.figures.paper import A4
from mixer_probe.weights.paper import structured_blocks
from mixer_probe.weights.views.paper import TAGS, paper_section, paper_sentences
from tests.networks import CASES, as_model, randomised


def planted() -> Model:
    """Four blocks on a 4x4 grid: the first has smooth units in exact pairs of opposites, the others
    iid ones; smooth filters."""
    from timm.models.mlp_mixer import MlpMixer

    network: Any = randomised(
        MlpMixer(
            img_size=32,
            patch_size=8,
            embed_dim=24,
            num_blocks=4,
            mlp_ratio=(1.0, 2.0),
            num_classes=5,
        )
    )
    y, x = np.mgrid[:4, :4] / 4
    waves = [
        np.cos(2 * np.pi * (a * y + b * x) + phase)
        for a, b in ((0, 1), (1, 0), (1, 1))
        for phase in (0, 0.7, 1.4, 2.1)
    ]
    units = np.concatenate([waves, np.negative(waves)]).reshape(24, 16)
    filters = np.cos(2 * np.pi * np.arange(8) / 8)[None, None, None, :] * np.ones((24, 3, 8, 1))
    with torch.no_grad():
        network.blocks[0].mlp_tokens.fc1.weight.copy_(torch.from_numpy(units))
        network.stem.proj.weight.copy_(torch.from_numpy(filters))
    return as_model(network, name="planted")


@pytest.fixture(scope="module")
def found() -> PaperFigures:
    return paper_figures(planted())


def text_of(figure: Figure) -> str:
    return " ".join(t.get_text().replace("\n", " ") for t in figure.texts)


def test_planted_pairs_and_filters(found: PaperFigures) -> None:
    table = found.to_frame()
    assert table["mean_partner_cosine"].iloc[0] == pytest.approx(-1, abs=1e-6)
    assert table["fraction_paired"].iloc[0] == 1
    assert structured_blocks(found)[0][0]
    # One cycle in four tokens, along one axis or both: 2 gratings of 1/4 to each of sqrt(2)/4.
    assert table["mean_frequency"].iloc[0] == pytest.approx(
        (0.25 + 0.25 + 2**0.5 / 4) / 3, abs=1e-6
    )
    # One cycle in eight pixels.
    assert found.stem_frequency == pytest.approx(1 / 8, abs=1e-6)
    assert found.stem_shuffled.min() > 0.25
    assert (found.units.gate, found.units.write) == ((), ())
    assert from_dict(to_dict(found)).to_frame().equals(table)


def test_iid_units_are_not_called_structured() -> None:
    network: Any = randomised(CASES["mixer"].build(), seed=3)
    table = paper_figures(as_model(network), shuffles=40)
    ratio = table.to_frame()["mean_frequency"] / table.to_frame()["shuffled_mean_frequency"]
    np.testing.assert_allclose(ratio, 1, atol=0.1)


def test_sentences(found: PaperFigures) -> None:
    pairs, depth, stem = paper_sentences(found)
    assert "n = 24 units per block" in pairs
    assert "-1.00 in blocks.0" in pairs
    assert "100.0 % of units are paired" in pairs
    assert "all 5 position shuffles" in depth
    # The planted block alone is smoother than all five shuffles, as one of several is by chance.
    assert "in 1 of" in depth or "more than expected by chance" in depth
    assert "n = 24 units is 0.125 cycles/px" in stem
    few = paper_figures(planted(), surrogates=3)
    assert "too few surrogates" in paper_sentences(few)[0]


def test_pages(found: PaperFigures) -> None:
    pages = [
        paper_figure_5(found),
        paper_figure_5(found, [1, 2, 3]),
        paper_figure_6([found] * 3),
        paper_figure_7([found] * 2),
    ]
    assert {tuple(page.get_size_inches()) for page in pages} == {A4}
    assert [len(page.axes) for page in pages] == [3, 3, 6, 2]
    # Each of the 24 units is drawn, with all its 16 weights, which are enlarged twice.
    drawn = np.ma.filled(pages[0].axes[0].images[0].get_array(), np.nan)
    assert np.isfinite(drawn).sum() == 24 * 16 * 4
    assert np.nanmax(np.abs(drawn)) == 1
    assert "first blocks" in text_of(pages[0])
    assert "JFT-300M; those weights were never released" in text_of(pages[0])
    assert "last blocks" in text_of(pages[1])
    assert "no clearly identifiable structure" in text_of(pages[1])
    for page in pages:
        renderer = FigureCanvasAgg(page).get_renderer()
        assert all(
            page.bbox.contains(*corner)
            for t in page.texts
            for corner in t.get_window_extent(renderer).corners()
        )


def test_opposites_stand_side_by_side(found: PaperFigures) -> None:
    order = found.units.order(0)
    maps = found.units.units(0)[order].reshape(12, 2, 16)
    np.testing.assert_allclose(maps[:, 0], -maps[:, 1], atol=1e-6)


def test_whose_weights_a_page_shows() -> None:
    model = planted()
    model.weights = Weights(
        "mixer_b16_224.goog_in21k_ft_in1k", True, GOOGLE_NOTE.format(top1=76.616, paper=76.44)
    )
    assert "trained on ImageNet-1k from scratch" in text_of(paper_figure_5(paper_figures(model)))
    model.weights = Weights(
        "random (seed 0)", False, "Untrained weights: nothing here was learned."
    )
    result = paper_figures(model)
    assert "nothing here was learned" in text_of(paper_figure_7([result]))
    section = paper_section([result])[0]
    assert section.warnings == (
        "planted is untrained: the weights are random, so no result shown here for it was learned.",
    )
    assert TAGS in section.paragraphs


def test_one_pdf_of_all_pages(tmp_path: Path) -> None:
    pages = [Figure(figsize=A4) for _ in range(3)]
    for number, page in enumerate(pages):
        page.text(0.1, 0.9, f"page {number}")
    content = save_pages(pages, tmp_path / "pages.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    # A4 is 210 x 297 mm, that is 595 x 842 points.
    assert content.count(b"/MediaBox [ 0 0 595.44 841.68 ]") == 3
    assert save_pages(pages, tmp_path / "again.pdf").read_bytes() == content
    with pytest.raises(StoreError, match="cannot write"):
        save_pages(pages, tmp_path / "pages.pdf" / "pages.pdf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.pdf", "pages.pdf"]


def test_what_cannot_be_drawn(found: PaperFigures) -> None:
    with pytest.raises(MeasureError, match="one to three networks, not 4"):
        paper_figure_6([found] * 4)
    with pytest.raises(MeasureError, match="one or two networks, not 0"):
        paper_figure_7([])
    with pytest.raises(ModelError, match="no token-mixing weights"):
        paper_figures(CASES["vit"].model())


def test_mixer_b16_untrained_at_its_real_size() -> None:
    """Random units: the golden values of iid 384x196 rows, mean minimum cosine -0.210 and centroid
    0.38598."""
    result = paper_figures(
        load_model("mixer_b16_224", pretrained=False, device="cpu"), surrogates=1, shuffles=1
    )
    table = result.to_frame()
    assert table["mean_frequency"].mean() == pytest.approx(0.38598, abs=1e-3)
    assert table["mean_partner_cosine"].mean() == pytest.approx(-0.210, abs=5e-3)
    page = paper_figure_5(result)
    assert [
        np.isfinite(np.ma.filled(a.images[0].get_array(), np.nan)).sum() for a in page.axes
    ] == [384 * 196] * 3
