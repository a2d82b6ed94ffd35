"""The page Token mixing: its numbers are those of mixer_probe, a unit is found by sorting, by its
number and by a link."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

import mixer_probe as mp
from mixer_probe.weights import units as units_module
from tests.app.conftest import Open, parameter, texts

PAGE = "pages/Token_mixing.py"
ZOO = "zoo:mixer-s0"


@pytest.fixture(scope="module")
def zoo() -> mp.Model:
    return mp.load_model(ZOO, device="cpu")


@pytest.fixture(scope="module")
def units(zoo: mp.Model) -> mp.weights.TokenMixing:
    return mp.token_mixing(zoo)


def fine(page: AppTest) -> None:
    assert not page.exception
    assert not page.error


def metrics(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


def test_a_visit_begins_with_the_smoothest_unit_and_its_opposite(
    open_page: Open, units: mp.weights.TokenMixing
) -> None:
    page = open_page(PAGE, [ZOO])
    fine(page)
    one = units.measures(0)
    unit = int(np.argmin(one.frequency))
    assert f"Unit {unit} of blocks.0 of mixer-s0" in texts(page)
    assert [button.label for button in page.button if "opposite" in button.label] == [
        f"Go to opposite-phase unit {one.partner[unit]}"
    ]
    assert metrics(page) == {
        "Frequency (cycles/token)": f"{one.frequency.min():.3f}",
        "Spread (px)": f"{one.spread[unit]:.1f}",
        "Orientation (°)": f"{one.orientation[unit]:.0f}",
        "Cosine with opposite-phase unit": f"{one.partner_cosine[unit]:.3f}",
    }


def test_going_to_the_opposite_and_back(open_page: Open, units: mp.weights.TokenMixing) -> None:
    page = open_page(PAGE, [ZOO], tm_block="8", tm_unit="3")
    partner = int(units.partner(7)[3])
    page = next(button for button in page.button if "opposite" in button.label).click().run()
    fine(page)
    assert parameter(page, "tm-unit") == str(partner)
    assert metrics(page)["Frequency (cycles/token)"] == f"{units.frequency(7)[partner]:.3f}"
    assert f"Unit {partner} of blocks.7" in texts(page)


def test_another_block_begins_with_its_own_smoothest_unit(
    open_page: Open, units: mp.weights.TokenMixing
) -> None:
    page = open_page(PAGE, [ZOO], tm_unit="5")
    assert "Unit 5 of blocks.0" in texts(page)
    page = page.select_slider(key="widget tm-block").set_value(3).run()
    fine(page)
    assert parameter(page, "tm-block") == "3"
    assert "tm-unit" not in page.query_params
    assert f"Unit {np.argmin(units.frequency(2))} of blocks.2" in texts(page)
    page = page.number_input(key="widget tm-unit").set_value(17).run()
    assert parameter(page, "tm-unit") == "17"
    assert metrics(page)["Spread (px)"] == f"{units.measures(2).spread[17]:.1f}"


@pytest.mark.parametrize("unit", ["128", "-1", "frog", ""])
def test_a_link_to_a_unit_that_is_not_there(
    open_page: Open, units: mp.weights.TokenMixing, unit: str
) -> None:
    page = open_page(
        PAGE, [ZOO], tm_unit=unit, tm_block="99", tm_sort="beauty", tm_by="luck", tm_measure="charm"
    )
    fine(page)
    assert f"Unit {np.argmin(units.frequency(0))} of blocks.0" in texts(page)


def picture(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_small_maps_show_signs_scale_and_frame() -> None:
    from mixer_probe_app.mixing_charts import urls

    maps = np.array([[[1.0, 0.0], [0.0, -1.0]], [[0.1, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    own, faint, empty = (picture(url) for url in urls(maps))
    red, white, blue = [103, 0, 31], [247, 247, 247], [5, 48, 97]
    assert own[5, 5, :3].tolist() == red
    assert own[5, -6, :3] == pytest.approx(white, abs=1)
    assert own[-6, -6, :3].tolist() == blue
    assert faint[5, 5, :3].tolist() == red
    assert empty[5:-5, 5:-5, :3] == pytest.approx(
        np.broadcast_to(white, empty[5:-5, 5:-5, :3].shape), abs=1
    )
    assert own[0, 0, 3] == 0
    shared = picture(urls(maps, scale=1.0)[1])
    assert shared[5, 5, :3].tolist() not in (red, white)
    assert picture(urls(maps, frame="#E69F00")[0])[0, 0].tolist() == [230, 159, 0, 255]


def test_images_are_those_that_drive_the_hidden_unit(open_page: Open, zoo: mp.Model) -> None:
    page = open_page(PAGE, [ZOO], n="100", tm_block="3", tm_unit="9")
    fine(page)
    images = mp.load_images("demo", split="test", limit=100)
    given = mp.extract(zoo, images, ["blocks.2.mlp_tokens.act"], reduce="none")[
        "blocks.2.mlp_tokens.act"
    ][:, 9].astype(float)
    rms = np.sqrt((given**2).mean(1))
    best = np.argsort(-rms, kind="stable")[:10]
    table = strongest_table(page)
    assert table["image"].tolist() == [images.ids[i] for i in best]
    assert table["class"].tolist() == [images.class_names[images.labels[i]] for i in best]
    np.testing.assert_allclose(table["value"], rms[best], rtol=1e-5)
    assert table["channel"].tolist() == given[best].argmax(1).tolist()
    np.testing.assert_allclose(table["value in that channel"], given[best].max(1), rtol=1e-5)
    page = page.segmented_control(key="widget tm-by").set_value("peak").run()
    fine(page)
    np.testing.assert_allclose(
        strongest_table(page)["value"], np.sort(given.max(1))[::-1][:10], rtol=1e-5
    )


def strongest_table(page: AppTest):
    return next(table.value for table in page.dataframe if "value in that channel" in table.value)


def test_depth_curves_have_trained_random_and_null(
    units: mp.weights.TokenMixing, zoo: mp.Model
) -> None:
    from mixer_probe_app.mixing_charts import DEPTHS, depth_curves, depth_frame

    twin = mp.token_mixing(zoo.untrained())
    for measure, (_title, _label, own, null) in DEPTHS.items():
        frame = depth_frame([units, twin], measure).set_index("weights")
        np.testing.assert_array_equal(frame.loc["trained", "value"], units.summary()[own])
        np.testing.assert_array_equal(frame.loc["untrained", "value"], twin.summary()[own])
        expected = units.chance if null == "chance" else units.summary()[null]
        np.testing.assert_array_equal(frame.loc["null", "value"], np.broadcast_to(expected, 8))
        assert set(frame["network"]) == {"mixer-s0"}
        assert depth_curves(frame.reset_index(), measure).to_dict()["layer"][0]["encoding"]["y"][
            "title"
        ]


def test_findings_are_those_of_the_report(open_page: Open, units: mp.weights.TokenMixing) -> None:
    expected = f"Mean frequency in cycles/token is {units.frequency(0).mean():.3f} in blocks.0"
    assert expected in texts(open_page(PAGE, [ZOO]))


@pytest.fixture
def few_surrogates(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of large networks here has no null."""
    draw = units_module.partner_surrogates
    monkeypatch.setattr(
        units_module, "partner_surrogates", lambda maps, count, seed: draw(maps, 9, seed)
    )


@pytest.mark.usefixtures("few_surrogates")
@pytest.mark.parametrize("name", ["gmixer_12_224", "resmlp_12_224", "gmlp_ti16_224"])
def test_every_form_has_units_and_says_what_they_are(open_page: Open, name: str) -> None:
    page = open_page(PAGE, [f"{name}?untrained"], n="100")
    fine(page)
    written = texts(page)
    tokens = name.startswith(("resmlp", "gmlp"))
    assert ("is the output token in row" in written) == tokens
    assert ("Gate weights" in written) == (name == "gmixer_12_224")
    assert "196 units" in written or "192 units" in written


@pytest.mark.usefixtures("few_surrogates")
def test_more_units_than_are_drawn_at_first(open_page: Open) -> None:
    page = open_page(PAGE, ["mixer_s32_224?untrained"], n="100")
    fine(page)
    assert "The first 128 of 256 units" in texts(page)
    page = page.toggle(key="widget tm-all").set_value(True).run()
    assert "All 256 units" in texts(page)
    assert parameter(page, "tm-all") == "yes"


def test_other_families_and_stored_runs_are_told_what_to_choose(open_page: Open) -> None:
    page = open_page(PAGE, ["test_vit?untrained", "run:nothing.zarr", ZOO], n="100")
    assert not page.exception
    assert "test_vit (untrained baseline) has no token-mixing weights" in texts(page)
    assert "select a Mixer, gMixer, ResMLP or gMLP" in texts(page)
    assert ["is a stored run" in error.value for error in page.error] == [True]
    assert "Units of blocks.0" in texts(page)


def test_unlabelled_images_are_shown_without_classes(
    open_page: Open, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixer_probe_app import local_files

    (tmp_path / "flat").mkdir()
    for i in range(3):
        Image.fromarray(np.full((20, 30, 3), 80 * i, np.uint8)).save(tmp_path / "flat" / f"{i}.png")
    monkeypatch.setenv(local_files.PATHS, str(tmp_path / "flat"))
    local_files.local_files.clear()
    page = open_page(PAGE, [ZOO], images="folder:flat")
    local_files.local_files.clear()
    fine(page)
    table = strongest_table(page)
    assert len(table) == 3
    assert set(table["class"]) == {""}


def test_what_was_seen_can_be_made_again(open_page: Open, units: mp.weights.TokenMixing) -> None:
    page = open_page(PAGE, [ZOO])
    seen = [s for s in page.session_state["history"].values() if s.page == "Token mixing"]
    assert [s.label for s in seen] == [
        f"token-mixing units of {ZOO}",
        f"token-mixing units of {ZOO}, untrained baseline",
    ]
    models = {ZOO: mp.load_model(ZOO, device="cpu")}
    for one in seen:
        (kept,) = one.results()
        again = eval(one.code, {"mp": mp, "models": models})
        assert again.model == kept.model
        np.testing.assert_array_equal(again.frequency(0), kept.frequency(0))
