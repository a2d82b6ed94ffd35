"""Channels: the channel that a class needs is on top, with the numbers that mixer_probe gives, and
opens with its partner."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mixer_probe_app import channel_charts as charts
from mixer_probe_app import history
from mixer_probe_app.channels import missing_labels
from PIL import Image

import mixer_probe as mp
from mixer_probe.capture import Representations
from mixer_probe.channels import ClassSelectivity, auroc_of
from mixer_probe.images import Images
from tests.app.conftest import Open, parameter, texts

MIXER, VIT, CNN = "zoo:mixer-s0", "zoo:vit-s0", "test_resnet?untrained"
PAGE, N = "pages/Channels.py", "100"


@cache
def images() -> Images:
    return mp.load_images("demo", split="test", limit=int(N))


@cache
def run_of(name: str) -> Representations:
    return mp.extract(mp.load_model(name), images())


@cache
def told(name: str = MIXER) -> ClassSelectivity:
    return mp.class_selectivity(run_of(name))


def best_for(name: str, layer: str) -> tuple[int, float]:
    """The channel that tells a class best, from the ranks alone."""
    run = run_of(MIXER)
    assert run.labels is not None
    assert run.class_names is not None
    auroc = auroc_of(np.asarray(run[layer], dtype=np.float64), run.labels)[
        :, run.class_names.index(name)
    ]
    channel = int(np.abs(auroc - 0.5).argmax())
    return channel, float(auroc[channel])


# -- the list --------------------------------------------------------------------------------------


def test_the_channel_most_selective_for_frog_is_on_top(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER], n=N)
    page.selectbox(key="widget ch-class").set_value("frog").run()
    assert not page.exception
    assert not page.error
    channel, auroc = best_for("frog", "blocks.6")
    said = page.success[0].value.replace("\\", "")
    assert f"Channel {channel} of blocks.6 is the most selective for frog" in said
    assert f"AUROC {auroc:.2f} [" in said
    assert "n = 100 images, 10 of them frog" in said
    assert parameter(page, "ch-class") == "frog"
    assert page.number_input(key="widget ch-channel").value == channel
    first = page.dataframe[0].value.iloc[0]
    assert (first["layer"], first["channel"]) == ("blocks.6", channel)
    assert first["AUROC"] == pytest.approx(auroc, abs=1e-6)


def test_all_blocks_are_looked_through_at_once(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER], n=N, ch_class="ship", ch_scope="blocks")
    assert not page.exception
    best = {layer.name: best_for("ship", layer.name) for layer in told().layers}
    layer = max(best, key=lambda name: abs(best[name][1] - 0.5))
    assert f"Channel {best[layer][0]} of {layer} is the most selective for ship" in texts(page)
    assert len(page.dataframe[0].value) == sum(layer.channels for layer in told().layers)
    assert page.selectbox(key="widget ch-at").value == layer
    assert page.selectbox(key="widget ch-layer").disabled


def test_another_class_opens_its_own_channel(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER], n=N, ch_class="frog", ch_channel="5")
    assert page.number_input(key="widget ch-channel").value == 5
    page.selectbox(key="widget ch-class").set_value("truck").run()
    assert page.number_input(key="widget ch-channel").value == best_for("truck", "blocks.6")[0]
    assert "ch-channel" not in page.query_params


def test_channels_are_sorted_and_searched(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER], n=N, ch_sort="kurtosis")
    statistics = mp.channel_statistics(mp.load_model(MIXER), images(), ["blocks.6"])
    order = np.argsort(-statistics.kurtosis[0], kind="stable")
    assert page.dataframe[0].value["channel"].tolist() == order.tolist()
    page.text_input(key="widget ch-search").set_value("excess kurtosis > 2").run()
    assert page.dataframe[0].value["channel"].tolist() == [
        c for c in order if statistics.kurtosis[0][c] > 2
    ]
    assert parameter(page, "ch-search") == "excess kurtosis > 2"
    page.toggle(key="widget ch-turned").set_value(True).run()
    assert (
        page.dataframe[0].value["channel"].iloc[0]
        == [c for c in order if statistics.kurtosis[0][c] > 2][-1]
    )
    assert not page.exception


def test_a_search_that_finds_nothing_or_cannot_be_read_says_so(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER], n=N, ch_search="kurtosis > 1e9")
    assert "No channel of 128 fits the search" in texts(page)
    page.text_input(key="widget ch-search").set_value("*x* [a] > 3").run()
    assert not page.exception
    assert "there is no '*x* [a]' to search by" in texts(page)
    assert len(page.dataframe[0].value) == 128


def test_bars_are_drawn_per_class() -> None:
    drawn = json.loads(charts.class_bars(told().class_frame("blocks.6", 4)).to_json())
    assert len(drawn["layer"]) == 3


# -- one channel and its partner -------------------------------------------------------------------


def test_a_link_opens_a_channel_with_its_partner(open_page: Open) -> None:
    page = open_page(
        PAGE, [MIXER, VIT], n=N, ch_layer="blocks.3", ch_channel="17", ch_partner_layer="blocks.5"
    )
    assert not page.exception
    assert not page.error
    assert page.number_input(key="widget ch-channel").value == 17
    found = mp.channel_partners(run_of(MIXER), run_of(VIT), "blocks.3", "blocks.5")
    number, r = found.partner[17, 0], found.correlation[17, 0]
    written = texts(page)
    assert "Channel 17 of blocks.3" in written
    assert (
        f"Channel {number} of blocks.5 of vit-s0 is the best match: **r = {r:.2f}** over 100 images"
        in written
    )
    assert f"is below {found.threshold[17]:.2f}" in written
    page.button(key="open the partner").click().run()
    assert not page.exception
    assert f"Channel {number} of blocks.5" in texts(page)
    assert page.selectbox(key="widget ch-network").value == VIT
    assert page.selectbox(key="widget ch-layer").value == "blocks.5"
    assert page.number_input(key="widget ch-channel").value == number
    assert (
        page.selectbox(key="widget ch-partner").value,
        page.selectbox(key="widget ch-partner-layer").value,
    ) == (
        MIXER,
        "blocks.3",
    )


def test_a_name_in_the_gallery_opens_its_channel(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER], n=N, ch_sort="std")
    names = [
        button for button in page.button if button.key and button.key.startswith("open blocks.6")
    ]
    assert len(names) == 12
    channel = int(str(names[3].key).rpartition(" ")[2])
    names[3].click().run()
    assert page.number_input(key="widget ch-channel").value == channel
    assert parameter(page, "ch-channel") == str(channel)
    assert page.dataframe[0].value["channel"].iloc[3] == channel
    page.segmented_control(key="widget ch-many").set_value(24).run()
    assert not page.exception
    assert (
        len([button for button in page.button if str(button.key).startswith("open blocks.6")]) == 24
    )


def test_images_are_ranked_by_the_peak_too(open_page: Open) -> None:
    page = open_page(PAGE, [CNN], n=N, ch_by="peak", ch_layer="stem", ch_channel="3")
    assert not page.exception
    assert not page.error


def test_a_strip_holds_the_top_images() -> None:
    model = mp.load_model(MIXER)
    wanted = [("blocks.4", 9, False), ("blocks.4", 9, True), ("blocks.1", 3, False)]
    found = charts.strips(model, images(), run_of(MIXER), wanted)
    for (layer, channel, lowest), strip in zip(wanted, found, strict=True):
        top = mp.top_images(model, images(), layer, channel, k=6, lowest=lowest, by="mean")
        assert strip.ids == tuple(top.ids[0])
        np.testing.assert_allclose(strip.values, top.values[0], rtol=1e-4, atol=1e-5)
    picture = Image.open(io.BytesIO(found[0].png)).convert("RGB")
    first = images().ids.index(found[0].ids[0])
    np.testing.assert_array_equal(np.asarray(picture)[:96:3, :96:3], np.asarray(images()[first]))
    assert charts.gallery_svg([("a & <b>", found[0])]).startswith(b"<svg")
    assert b"a &amp; &lt;b&gt;" in charts.gallery_svg([("a & <b>", found[0])])
    assert (
        Image.open(io.BytesIO(charts.gallery_png([("a", found[0]), ("b", found[1])]))).height > 200
    )


# -- depth -----------------------------------------------------------------------------------------


def test_selectivity_by_depth(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER], n=N, ch_class="bird", ch_depth="yes", ch_depth_random="yes")
    assert not page.exception
    assert not page.error
    assert "AUROC of the best channel for bird by block, n = 100 images" in texts(page)


# -- what the Report takes -------------------------------------------------------------------------


def test_the_script_makes_the_same_numbers(
    open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page(PAGE, [MIXER, VIT], n=N)
    items = page.session_state["history"]
    kinds = {item.kind for item in items.values()}
    assert kinds == {
        "channel statistics",
        "channel selectivity",
        "channel pages",
        "channel partners",
    }
    with in_folder(tmp_path, monkeypatch):
        exec(compile(history.script(list(items.values())), "made.py", "exec"), {})
    again = mp.load_results(tmp_path / "results.json")
    shown = [result for item in items.values() for result in item.results() or ()]
    assert len(again) == len(shown)
    for one, other in zip(shown, again, strict=True):
        assert type(one) is type(other)
        pd.testing.assert_frame_equal(
            one.to_frame(), other.to_frame(), check_dtype=False, rtol=1e-3, atol=1e-4
        )


@contextmanager
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(folder)
    yield


# -- what is missing -------------------------------------------------------------------------------


def test_photographs_say_what_selectivity_needs(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER], images="photos", n=N)
    assert not page.exception
    assert not page.error
    assert "Selectivity needs two classes with at least 2 images each" in texts(page)
    assert page.selectbox(key="widget ch-class").disabled
    assert page.selectbox(key="widget ch-sort").value == "kurtosis"
    assert len(page.dataframe[0].value) == 128


def test_images_without_classes_or_of_one_class(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    assert "have no labels" in missing_labels(mp.load_images(tmp_path))
    one = images().subset([i for i, label in enumerate(images().labels) if label == 6])
    assert "belong to one class" in missing_labels(one)
    assert missing_labels(images()) == ""


def test_bad_names_leave_the_others(open_page: Open) -> None:
    page = open_page(
        PAGE,
        ["no_such_network", MIXER],
        n=N,
        ch_layer="nothing",
        ch_channel="9999",
        ch_class="dragon",
    )
    assert not page.exception
    assert [
        "no model 'no_such_network'" in error.value.replace("\\", "") for error in page.error
    ] == [True]
    assert page.selectbox(key="widget ch-network").options == ["mixer-s0"]
    assert page.selectbox(key="widget ch-layer").value == "blocks.6"
    assert {"ch-layer", "ch-channel", "ch-class"}.isdisjoint(page.query_params)
    assert "Select a second network in the sidebar" in texts(page)


def test_nothing_chosen_says_what_to_do(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER], n=N)
    page.selectbox(key="network 0").set_value(None).run()
    assert not page.exception
    assert "No network is chosen" in page.info[0].value


def test_a_stored_run_is_a_partner_and_no_network(
    open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mp.extract(mp.load_model(VIT), images(), out=tmp_path / "vit.zarr")
    monkeypatch.setenv("MIXER_PROBE_APP_PATHS", str(tmp_path))
    run = f"run:{tmp_path.name}/vit.zarr"
    alone = open_page(PAGE, [run], n=N)
    assert not alone.exception
    assert not alone.error
    assert "Select its network in the sidebar as well" in texts(alone)
    page = open_page(PAGE, [MIXER, run], n=N, ch_layer="blocks.3", ch_channel="17", ch_depth="yes")
    assert not page.exception
    assert not page.error
    found = mp.channel_partners(run_of(MIXER), run_of(VIT), "blocks.3", "blocks.3")
    assert (
        f"Channel {found.partner[17, 0]} of blocks.3 of stored run vit.zarr is the best match"
        in texts(page)
    )
    assert "A stored run has no network, so its input images" in texts(page)
