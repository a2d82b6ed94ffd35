"""The page Probes: each view shows what the package gives, calculates nothing else, and says what
cannot be probed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixer_probe_app import charts, data, local_files
from mixer_probe_app import probes as pr
from streamlit.testing.v1 import AppTest

import mixer_probe as mp
from mixer_probe.capture import Representations
from mixer_probe.core.result import Result
from mixer_probe.probing.runs import split_in_half
from tests.app.conftest import Open, parameter
from tests.app.test_similarity import assert_made_again, equal_tables, png, texts

MIXER, CNN = "zoo:mixer-s0", "zoo:resnet-s0"
PAGE = "pages/Probes.py"
Runs = tuple[Representations, Representations]


@pytest.fixture(scope="module")
def runs() -> Runs:
    model = mp.load_model(MIXER)
    train, test = (
        mp.extract(model, mp.load_images("demo", split=split, limit=100))
        for split in ("train", "test")
    )
    return train, test


def opened(open_page: Open, models: list[str], **parameters: str) -> AppTest:
    page = open_page(PAGE, models, n="100", **parameters)
    assert not page.exception
    assert not page.error
    return page


def results_of(page: AppTest, kind: str) -> list[Any]:
    """What the page has shown of a kind, and can be made again by its code."""
    found = [seen for seen in page.session_state["history"].values() if seen.kind == kind]
    for seen in found:
        assert_made_again(seen)
    return [result for seen in found for result in seen.results()]


def test_accuracy_is_that_of_linear_probe_with_its_twin(open_page: Open, runs: Runs) -> None:
    page = opened(open_page, [MIXER])
    twin = mp.load_model(MIXER).untrained()
    images = [mp.load_images("demo", split=split, limit=100) for split in ("train", "test")]
    expected = mp.linear_probe(
        *runs, untrained=(mp.extract(twin, images[0]), mp.extract(twin, images[1]))
    )
    equal_tables(page.dataframe[0].value, expected.to_frame())
    assert len(results_of(page, "probes")) == 1
    assert "trained on 100 images, tested on 100 others (10 classes)" in texts(page)


def test_the_classifier_and_the_twins_are_chosen(open_page: Open, runs: Runs) -> None:
    page = opened(open_page, [MIXER], probes_twin="no")
    equal_tables(page.dataframe[0].value, mp.linear_probe(*runs).to_frame())
    page.segmented_control(key="widget probes-method").set_value("centroid").run()
    assert not page.exception
    assert parameter(page, "probes-method") == "centroid"
    equal_tables(page.dataframe[0].value, mp.linear_probe(*runs, method="centroid").to_frame())


def test_only_the_view_that_is_chosen_is_calculated(open_page: Open) -> None:
    page = opened(open_page, [MIXER], probes_twin="no")
    assert {seen.kind for seen in page.session_state["history"].values()} == {"probes"}
    page.segmented_control(key="widget probes-view").set_value("Controls").run()
    assert not page.exception
    assert {seen.kind for seen in page.session_state["history"].values()} == {
        "probes",
        "control tasks",
    }


CONTROLS = {
    "Selectivity": ("control tasks", lambda r: mp.probing.control_task(*r, seed=0)),
    "Random labels": ("random labels", lambda r: mp.probing.random_label_probe(*r, seed=0)),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_are_those_of_the_package(open_page: Open, runs: Runs, name: str) -> None:
    kind, make = CONTROLS[name]
    page = opened(open_page, [MIXER], probes_twin="no", probes_view="Controls", probes_control=name)
    (found,) = results_of(page, kind)
    equal_tables(found.to_frame(), make(runs).to_frame())


def test_description_lengths_are_those_of_a_few_layers(open_page: Open) -> None:
    page = opened(
        open_page,
        [MIXER],
        probes_twin="no",
        probes_view="Controls",
        probes_control="Description length",
    )
    (found,) = results_of(page, "description length")
    assert [layer.name for layer in found.layers] == [
        "blocks.0",
        "blocks.2",
        "blocks.5",
        "blocks.7",
    ]
    assert found.n == 100
    assert f"{found.compression[-1]:.2f}" in texts(page)


def test_classes_show_what_is_taken_for_what(open_page: Open, runs: Runs) -> None:
    link = {
        "probes_twin": "no",
        "probes_view": "Classes",
        "probes_layer": "blocks.5",
        "probes_class": "cat",
    }
    page = opened(open_page, [MIXER, CNN], **link)
    probe = mp.linear_probe(*runs)
    found = results_of(page, "confusion")[0]
    np.testing.assert_array_equal(found.counts, mp.probing.confusion_matrix(probe).counts)
    # The mistakes of the class, from predictions and labels alone.
    cat = list(probe.class_names).index("cat")
    answers = probe.predicted[5][probe.labels == cat]
    assert (
        f"{(answers != cat).sum()} of {len(answers)} test images of cat are misclassified after "
        "blocks.5" in texts(page)
    )
    page.selectbox(key="widget probes-class").set_value("ship").run()
    assert not page.exception
    assert "Accuracy on class ship by depth" in texts(page)


def test_places_are_probed_one_by_one(open_page: Open) -> None:
    page = opened(open_page, ["test_resnet?untrained"], probes_view="Places")
    (found,) = results_of(page, "positions")
    assert all(
        rows * columns <= pr.MOST_POSITIONS
        for rows, columns in (part.shape for part in found.accuracy)
    )
    assert f"Mean over positions: accuracy {100 * found.pooled[-1]:.0f} %" in texts(page)
    page.select_slider(key="widget probes-map").set_value(1).run()
    assert not page.exception
    assert f"Mean over positions: accuracy {100 * found.pooled[0]:.0f} %" in texts(page)


def test_the_position_of_a_patch_needs_no_classes(open_page: Open) -> None:
    source = data.save_upload([(f"{i}.png", png(i)) for i in range(12)])
    link = {"probes_twin": "no", "probes_view": "Places", "probes_place": "the position"}
    page = opened(open_page, [MIXER], images=source, **link)
    (found,) = page.session_state["history"].values()
    result = found.results()[0]
    assert result.n_train + result.n_test == 12
    assert f"trained on {result.n_train} images and tested on {result.n_test} others" in texts(page)


def test_neighbours_are_those_of_the_knn_probe(open_page: Open, runs: Runs) -> None:
    page = opened(open_page, [MIXER], probes_twin="no", probes_view="Neighbours")
    expected = mp.linear_probe(*runs, method="knn")
    equal_tables(page.dataframe[0].value, expected.to_frame())


def test_images_without_classes_are_told_before_anything_is_calculated(open_page: Open) -> None:
    page = open_page(
        PAGE, [MIXER], images=data.save_upload([(f"{i}.png", png(i)) for i in range(12)])
    )
    assert not page.exception
    assert "have no labels: a probe needs them" in texts(page)
    assert "history" not in page.session_state
    page = open_page(
        PAGE, [MIXER], images=data.save_upload([(f"one/{i}.png", png(i)) for i in range(12)])
    )
    assert not page.exception
    assert len(page.error) == 1


def test_photographs_have_one_image_a_class(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER], images="photos")
    assert not page.exception
    assert "Choose other images" in texts(page)


def test_a_network_that_fails_leaves_the_others(open_page: Open) -> None:
    page = open_page(PAGE, ["no_such_network", MIXER], n="100", probes_twin="no")
    assert not page.exception
    assert len(page.error) == 1
    assert set(page.dataframe[0].value["model"]) == {MIXER}


def test_a_stored_run_is_probed_by_halves(
    open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Runs
) -> None:
    images = mp.load_images("demo", split="test", limit=100)
    mp.extract(mp.load_model(MIXER), images, out=tmp_path / "probed" / "mixer.zarr")
    monkeypatch.setenv(local_files.PATHS, str(tmp_path / "probed"))
    local_files.local_files.clear()
    page = opened(open_page, ["run:probed/mixer.zarr"])
    fit, hold = split_in_half(runs[1])
    assert len(fit) == len(hold) == 50
    expected = mp.linear_probe(runs[1].take(fit, "fit"), runs[1].take(hold, "test"))
    equal_tables(page.dataframe[0].value, expected.to_frame())
    assert len(results_of(page, "probes")) == 1
    page = open_page(PAGE, ["run:probed/mixer.zarr"], n="100", probes_view="Places")
    assert not page.exception
    assert "is a stored run" in texts(page)


# -- charts ----------------------------------------------------------------------------------------


def test_curves_tell_networks_and_dashes_apart(study: list[Result]) -> None:
    results = [r for r in study if isinstance(r, mp.probing.ProbeResult)]
    chart = charts.probe_curves(results).to_dict()
    for layer in chart["layer"][:3]:
        assert {part["field"] for part in layer["encoding"]["detail"]} == {"model", "weights"}
    dashes = chart["layer"][1]["encoding"]["strokeDash"]["scale"]["domain"]
    assert dashes == (
        ["trained", "untrained"] if any(r.untrained for r in results) else ["untrained"]
    )


def test_a_map_lies_as_the_image_does() -> None:
    cells = np.arange(6.0).reshape(2, 3) / 6
    frame = charts.cells_frame(cells)
    assert frame.loc[(frame["row"] == 1) & (frame["column"] == 0), "value"].item() == pytest.approx(
        0.5
    )
    chart = charts.position_map(frame, "a map", (0.0, 1.0), "fraction").to_dict()
    assert chart["encoding"]["y"]["field"] == "row"
    assert chart["encoding"]["x"]["title"] == "column of the grid (3 wide)"


def test_confusion_cells_frame_the_class_and_take_clicks(runs: Runs) -> None:
    found = mp.probing.confusion_matrix(mp.linear_probe(*runs))
    frame = found.to_frame()
    frame = frame[frame["layer"] == "blocks.7"]
    chart = charts.confusion_cells(frame, list(found.class_names), "cat", "row").to_dict()
    rows = next(iter(chart["datasets"].values()))
    assert {row["true"] for row in rows if row["chosen"]} == {"cat"}
    assert chart["params"][0]["name"] == "row"
