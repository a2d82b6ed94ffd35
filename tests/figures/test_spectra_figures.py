"""Figures of spectra show the numbers they are given, and their texts and panels stay apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from mixer_probe.core.errors import LayerError
from mixer_probe.core.section import Picture, Table
from mixer_probe.weights import WeightSpectra, weight_spectra
from mixer_probe.weights.figures import singular_values, spectra_depth
from mixer_probe.weights.views.spectra import spectra_section
from tests.figures.test_stem_figures import check_layout
from tests.networks import CASES


@pytest.fixture(scope="module")
def spectra() -> dict[str, WeightSpectra]:
    """Of three small networks that pass as trained."""
    found = {
        name: weight_spectra(CASES[name].model()) for name in ("mixer", "vit", "resnet-bottleneck")
    }
    return {
        name: replace(r, model=replace(r.model, name=name, trained=True))
        for name, r in found.items()
    }


def twin_of(result: WeightSpectra) -> WeightSpectra:
    return replace(
        result, model=replace(result.model, name=result.model.name + "?untrained", trained=False)
    )


def test_lines_are_means_over_blocks_in_a_column_for_each_kind(
    spectra: dict[str, WeightSpectra],
) -> None:
    results = list(spectra.values())
    figure = spectra_depth(results)
    panels = np.array(figure.axes).reshape(4, 3)
    assert [axes.get_title(loc="left") for axes in panels[0]] == [
        "spatial mixing",
        "channel mixing",
        "both (k×k convolutions)",
    ]
    table = spectra["vit"].by_depth()
    spatial = table[table["kind"] == "spatial"]
    lines = panels[0, 0].lines
    # Mixer and its null, ViT and its null, no ResNet.
    drawn = [line for line in lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(drawn[2].get_ydata(), spatial["stable_rank_fraction"])
    np.testing.assert_allclose(drawn[3].get_ydata(), spatial["null_stable_rank_fraction"])
    assert drawn[3].get_linestyle() == "--"
    assert panels[2, 0].get_yscale() == "log"
    assert panels[0, 0].get_ylim()[0] == 0
    assert panels[0, 0].get_ylim() == panels[0, 2].get_ylim()


def test_twins_share_a_colour(spectra: dict[str, WeightSpectra]) -> None:
    mixer = spectra["mixer"]
    lines = spectra_depth([mixer, twin_of(mixer)]).axes[0].lines
    own = [line for line in lines if line.get_linestyle() in ("-", ":")]
    assert [line.get_linestyle() for line in own] == ["-", ":"]
    assert own[0].get_color() == own[1].get_color()


def test_singular_values_stand_beside_those_of_iid_weights(
    spectra: dict[str, WeightSpectra],
) -> None:
    result = spectra["vit"]
    figure: Figure = singular_values(result, ["blocks.1"])
    query = result.select(role="query", block="blocks.1")[0]
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    np.testing.assert_allclose(drawn[0].get_ydata(), query.values / query.rms)
    np.testing.assert_allclose(drawn[0].get_xdata(), (np.arange(24) + 0.5) / 24)
    np.testing.assert_allclose(drawn[1].get_ydata(), result.null_values(query) / query.rms)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["query", "key"]
    with pytest.raises(LayerError, match=r"no block 'blocks\.9'"):
        singular_values(result, ["blocks.9"])


def test_long_curves_keep_their_ends() -> None:
    result = weight_spectra(CASES["resnet-bottleneck"].model(), largest_grid=16)
    kernel = result.select(role="conv2", block="layer1.0")[0]
    assert kernel.full_rank == 16 * 16 * 8
    axes = singular_values(result, ["layer1.0"]).axes[-1]
    line = next(line for line in axes.lines if len(line.get_xdata()))
    assert len(line.get_xdata()) < 500
    values = np.asarray(line.get_ydata())
    assert (values[0], values[-1]) == pytest.approx(
        (kernel.values[0] / kernel.rms, kernel.values[-1] / kernel.rms)
    )


def test_layout(spectra: dict[str, WeightSpectra]) -> None:
    mobile = weight_spectra(CASES["mobilenetv3"].model())
    named = [
        replace(r, model=replace(r.model, name=f"hf-hub:somebody/{name}_with_a_very_long_name_224"))
        for name, r in spectra.items()
    ]
    for section in spectra_section([*named, *map(twin_of, named)]):
        for item in section.content:
            if isinstance(item, Picture):
                check_layout(item.figure)
    for figure in (spectra_depth(named[:1]), spectra_depth(named[-1:]), singular_values(mobile)):
        check_layout(figure)


def test_the_section_says_the_numbers(spectra: dict[str, WeightSpectra]) -> None:
    results = [spectra["mixer"], twin_of(spectra["mixer"]), spectra["resnet-bottleneck"]]
    (section,) = spectra_section(results)
    table = spectra["mixer"].by_depth()
    spatial = table[table["kind"] == "spatial"]
    assert (
        f"the stable rank of spatial mixing is {100 * spatial['stable_rank_fraction'].mean():.1f} %"
        in section.paragraphs[0]
    )
    assert (
        f"(iid weights: {100 * spatial['null_stable_rank_fraction'].mean():.1f} %)"
        in section.paragraphs[0]
    )
    assert "k×k convolutions" in section.paragraphs[1]
    assert not section.warnings
    pictures = [item for item in section.content if isinstance(item, Picture)]
    # One for all, one for each trained network; the twin has no curves of its own.
    assert len(pictures) == 3
    full = [item for item in section.content if isinstance(item, Table)][-1]
    assert len(full.frame) == 8 + 8 + len(spectra["resnet-bottleneck"].entries)


def test_what_is_left_out_is_said() -> None:
    result = weight_spectra(CASES["swinv2"].model())
    (section,) = spectra_section([result])
    assert "because each makes position biases from coordinates and mixes no features" in " ".join(
        section.paragraphs
    )
