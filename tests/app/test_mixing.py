"""The page Mixing: its numbers are those of mixer_probe, its maps of all networks have one cell to
choose, and what a network does not have is one sentence."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

import mixer_probe as mp
from tests.app.conftest import Open, parameter, texts

PAGE = "pages/Mixing.py"
ZOO, VIT, CNN = "zoo:mixer-s0", "test_vit?untrained", "test_resnet?untrained"


def load(name: str) -> mp.Model:
    return mp.load_model(
        name.removesuffix("?untrained"), pretrained=not name.endswith("?untrained"), device="cpu"
    )


def few(count: int) -> mp.Images:
    return mp.load_images("demo", split="test").sample(100).sample(count)


@pytest.fixture(scope="module")
def mixer() -> mp.mixing.SpatialMixing:
    """What the page measures of the bundled Mixer by default, of four images."""
    return mp.mixing.spatial_mixing(load(ZOO), few(4), views=("branch", "block"), cells=(4, 4))


def fine(page: AppTest) -> None:
    assert not page.exception
    assert not page.error


def charts(page: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in page.get("vega_lite_chart")]


def labels(page: AppTest) -> list[str]:
    return [s.label for s in page.session_state["history"].values() if s.page == "Mixing"]


def numbers(page: AppTest) -> pd.DataFrame:
    table: pd.DataFrame = page.table[0].value.map(lambda text: text.replace("\\", ""))
    table.columns = [name.replace("\\", "") for name in table.columns]
    return table.set_index(table.columns[0])


# -- spatial mixing --------------------------------------------------------------------------------


def test_numbers_of_a_layer_and_the_code_that_gives_them(
    open_page: Open, mixer: mp.mixing.SpatialMixing
) -> None:
    page = open_page(PAGE, [ZOO], n="100", mix_images="4", mix_depth="0.38")
    fine(page)
    assert labels(page) == [f"spatial mixing of {ZOO}"]
    (seen,) = (s for s in page.session_state["history"].values() if s.page == "Mixing")
    (kept,) = seen.results()
    np.testing.assert_array_equal(kept.value, mixer.value)
    variables: dict[str, Any] = {"mp": mp, "models": {ZOO: load(ZOO)}}
    exec(seen.setup, variables)
    again = eval(seen.code, variables)
    np.testing.assert_array_equal(again.matrix, mixer.matrix)
    value, low, high = mixer.curve("branch", "distance_px")[:, 2]
    column = numbers(page)["mixer-s0, blocks.2"]
    assert column["Mixing distance (px)"] == f"{value:.2f} [{low:.2f}, {high:.2f}]"
    assert column["P from prefix tokens"] == "–"


def test_views_and_depth_are_chosen(open_page: Open, mixer: mp.mixing.SpatialMixing) -> None:
    page = open_page(PAGE, [ZOO], n="100", mix_images="4")
    page = page.segmented_control(key="widget mix-view").set_value("block").run()
    page = page.select_slider(key="widget mix-depth").set_value("1.00").run()
    fine(page)
    assert parameter(page, "mix-view") == "block"
    value = mixer.curve("block", "relative_distance")[0, -1]
    assert numbers(page).iloc[0, 0].startswith(f"{value:.3f} [")
    assert "the block with its skip connection" in texts(page)
    # Nothing new was measured for the view, and the cumulative one is measured by itself.
    assert labels(page) == [f"spatial mixing of {ZOO}"]
    page = page.segmented_control(key="widget mix-view").set_value("cumulative").run()
    fine(page)
    assert labels(page)[-1] == f"cumulative spatial mixing of {ZOO}"


@pytest.mark.parametrize("scale", ["own", "root", "shared"])
def test_maps_have_one_cell_to_choose(mixer: mp.mixing.SpatialMixing, scale: str) -> None:
    from mixer_probe_app.spatial_charts import reading_maps

    drawn = reading_maps([mixer, mixer], "branch", [0, 5], ["a\nb", "c\nd"], 6, scale).to_dict()
    hover, held = drawn["params"]
    assert hover["value"] == [{"cell": 6}]
    names = [part["vconcat"][0]["layer"][0]["name"] for part in drawn["hconcat"]]
    assert len(set(names)) == 2
    assert hover["views"] == held["views"] == names
    tops = []
    for part in drawn["hconcat"]:
        colour = part["vconcat"][1]["layer"][0]["encoding"]["color"]["scale"]
        assert colour["type"] == ("sqrt" if scale == "root" else "linear")
        tops.append(colour.get("domain"))
    assert (tops[0] is None) == (scale != "shared")
    if scale == "shared":
        assert tops == [[0, pytest.approx(mixer.matrix[0, [0, 5]].max())]] * 2


def test_places_and_numbers_of_cells(mixer: mp.mixing.SpatialMixing) -> None:
    from mixer_probe_app.spatial_charts import cell_frame, source_frame

    sources = source_frame(mixer, "block", 3)
    assert len(sources) == 16 * 64
    np.testing.assert_allclose(sources.groupby("cell")["P"].sum(), 1, atol=1e-5)
    # Output cell 6 is in row 1 and column 2 of 4 over 32 px; sources have half the side.
    cells = cell_frame(mixer, "block", 3)
    own = cells.loc[6]
    assert own[["row", "column", "left", "right", "top", "bottom"]].tolist() == [
        2,
        3,
        16,
        24,
        8,
        16,
    ]
    inside = sources[
        (sources["cell"] == 6) & sources["left"].between(16, 23) & sources["top"].between(8, 15)
    ]
    assert len(inside) == 4
    assert own["own"] == pytest.approx(inside["P"].sum())
    assert ((sources["right"] - sources["left"]) == 4).all()


def test_a_small_map_shows_its_sources() -> None:
    from mixer_probe_app.spatial_charts import pictures

    one, dark = pictures(np.array([[[0.0, 1.0], [0.0, 0.0]], np.zeros((2, 2))]), np.array([1, 0.0]))
    yellow, violet = [253, 231, 36], [68, 1, 84]
    pixels = decoded(one)
    assert pixels[5, -5].tolist() == pytest.approx(yellow, abs=1)
    assert pixels[-5, 5].tolist() == pytest.approx(violet, abs=1)
    assert decoded(dark).reshape(-1, 3) == pytest.approx(np.tile(violet, (64 * 64, 1)), abs=1)


def decoded(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_networks_of_different_sizes_meet_on_one_grid(open_page: Open) -> None:
    page = open_page(PAGE, [ZOO, VIT], n="100", mix_images="4")
    fine(page)
    grids = {
        result.cells
        for seen in page.session_state["history"].values()
        if seen.page == "Mixing"
        for result in seen.results()
    }
    assert len(grids) == 1
    assert len(charts(page)[0]["hconcat"]) == 2


def test_untrained_baselines_are_measured_when_asked_for(open_page: Open) -> None:
    page = open_page(PAGE, [ZOO], n="100", mix_images="4", mix_baselines="yes")
    fine(page)
    assert labels(page) == [
        f"spatial mixing of {ZOO}",
        f"spatial mixing of {ZOO}, untrained baseline",
    ]
    assert "Dotted lines are untrained baselines" in texts(page)
    assert len(charts(page)[0]["hconcat"]) == 1


def test_a_jacobian_of_zero_is_one_sentence(open_page: Open) -> None:
    # The last norm of every branch of an untrained ResNet is zero.
    page = open_page(PAGE, [CNN], n="100", mix_images="4")
    fine(page)
    assert "of test_resnet is exactly zero" in texts(page)


def test_a_link_with_nonsense_shows_the_defaults(open_page: Open) -> None:
    nonsense = dict.fromkeys(("mix_part", "mix_view", "mix_depth", "mix_row", "mix_scale"), "frog")
    page = open_page(PAGE, [ZOO], n="100", mix_images="4", **nonsense)
    fine(page)
    assert "the residual branch that mixes positions" in texts(page)
    assert charts(page)[0]["params"][0]["value"] == [{"cell": 5}]
    assert "mix-view" not in page.query_params


# -- attention -------------------------------------------------------------------------------------


def test_heads_of_a_block(open_page: Open) -> None:
    settings = {"mix_part": "attention", "mix_reading": "16", "mix_block": "2"}
    page = open_page(PAGE, [ZOO, VIT], n="100", **settings)
    fine(page)
    assert "mixer-s0 has no attention maps: only ViTs mix by attention" in texts(page)
    assert labels(page) == [f"attention distance of {VIT}"]
    page = page.number_input(key="widget mix-query-row").set_value(1).run()
    page = page.number_input(key="widget mix-query-col").set_value(3).run()
    fine(page)
    assert charts(page)[0]["params"][0]["value"] == [{"cell": 2}]


def test_query_positions_of_heads(open_page: Open) -> None:
    from mixer_probe_app.spatial_charts import head_maps, query_frame

    maps = mp.mixing.attention_maps(load(VIT), few(4), "blocks.0")
    frame, grid = query_frame(maps, shared=False)
    assert grid == maps.grid
    assert len(frame) == maps.maps.shape[0] * maps.maps.shape[1]
    one = frame[(frame["head"] == 1) & (frame["cell"] == 11)].iloc[0]
    row, column = divmod(11, maps.grid[1])
    assert (one["row"], one["column"]) == (row + 1, column + 1)
    assert one["largest"] == pytest.approx(maps.maps[1, 11].max())
    assert one["self"] == pytest.approx(maps.maps[1, 11, 11])
    # Green grows with attention.
    green = decoded(one["picture"])[..., 1]
    zoom = green.shape[0] // maps.grid[0]
    assert green[::zoom, ::zoom].argmax() == maps.maps[1, 11].argmax()
    titles = [f"head {h}: 1.0 px" for h in range(len(maps.maps))]
    drawn = head_maps(frame, grid, titles, 3).to_dict()
    assert drawn["params"][0]["value"] == [{"cell": 3}]
    assert drawn["params"][0]["views"] == [drawn["hconcat"][0]["name"]]
    rows = [row for some in drawn["datasets"].values() for row in some if "title" in row]
    assert {row["title"] for row in rows} == set(titles)


@pytest.mark.parametrize("names", [[CNN], [ZOO, CNN]])
def test_networks_without_attention_are_told_what_to_choose(
    open_page: Open, names: list[str]
) -> None:
    page = open_page(PAGE, names, n="100", mix_part="attention")
    fine(page)
    assert "Select a ViT in the sidebar" in texts(page)


# -- principal components --------------------------------------------------------------------------


def test_components_of_networks_beside_each_other(open_page: Open) -> None:
    page = open_page(PAGE, [ZOO, CNN], n="100", mix_part="components", mix_pca_images="16")
    fine(page)
    found = mp.mixing.token_components(load(ZOO), few(16), "blocks", shown=6)
    page = page.select_slider(key="widget mix-pca-depth").set_value("0.50").run()
    fine(page)
    k = next(k for k, layer in enumerate(found.layers) if layer.depth == 0.5)
    low, high = found.together_low[k], found.together_high[k]
    expected = f"Three components explain {found.together[k]:.1%} [{low:.1%}, {high:.1%}]"
    assert f"{found.layers[k].name}, depth 0.50. {expected}" in texts(page)
    # The images and two networks.
    assert len(page.get("image")) == 3
