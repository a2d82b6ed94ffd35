"""The page Similarity: its numbers are those of the package, a link reopens a cell, and what cannot
be compared is said."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mixer_probe_app import charts, data, local_files
from mixer_probe_app import similarities as sim
from PIL import Image

import mixer_probe as mp
from mixer_probe.capture import Representations
from mixer_probe.similarity import LayerMatches, best_matches
from tests.app.conftest import Open, parameter, texts
from tests.similarity.features import undefined_matrix

MIXER, VIT, CNN = "zoo:mixer-s0", "zoo:vit-s0", "zoo:resnet-s0"
PAGE = "pages/Similarity.py"


@pytest.fixture(scope="module")
def reps() -> dict[str, Representations]:
    images = mp.load_images("demo", split="test", limit=100)
    return {name: mp.extract(mp.load_model(name), images) for name in (MIXER, VIT, CNN)}


def equal_tables(shown: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(
        shown.reset_index(drop=True), expected, check_dtype=False, rtol=1e-4, atol=1e-6
    )


def test_it_opens_on_the_mixer_and_the_cnn(
    open_page: Open, reps: dict[str, Representations]
) -> None:
    page = open_page(PAGE, [MIXER, VIT, CNN], n="100")
    assert not page.exception
    assert not page.error
    assert [page.selectbox(key=f"widget {name}").value for name in ("sim-rows", "sim-columns")] == [
        MIXER,
        CNN,
    ]
    expected = mp.compare(reps[MIXER], reps[CNN])
    equal_tables(page.dataframe[0].value, expected.to_frame())
    # The depth where the two differ most, from the plain definition.
    best = expected.values.max(axis=1)
    i = int(best.argmin())
    j = int(expected.values[i].argmax())
    written = texts(page)
    assert (
        f"differ most at depth {expected.layers_a[i].depth:.2f} of mixer-s0 "
        f"({expected.layers_a[i].name})" in written
    )
    assert f"{expected.layers_b[j].name} at depth {expected.layers_b[j].depth:.2f}" in written
    assert expected.interval is not None
    bounds = (
        f"{best[i]:.2f} [{expected.interval.low[i, j]:.2f}, {expected.interval.high[i, j]:.2f}]"
    )
    assert f"has CKA (linear, unbiased) {bounds}" in written
    # The two layers to begin with are these.
    assert [page.selectbox(key=f"widget {name}").value for name in ("sim-a", "sim-b")] == [
        expected.layers_a[i].name,
        expected.layers_b[j].name,
    ]


def test_measure_and_estimator_change_the_numbers_and_the_address(
    open_page: Open, reps: dict[str, Representations]
) -> None:
    page = open_page(PAGE, [MIXER, CNN], n="100")
    page.segmented_control(key="widget sim-estimator").set_value("biased").run()
    assert not page.exception
    assert parameter(page, "sim-estimator") == "biased"
    equal_tables(
        page.dataframe[0].value, mp.compare(reps[MIXER], reps[CNN], estimator="biased").to_frame()
    )
    page.selectbox(key="widget sim-measure").set_value("rsa").run()
    assert not page.exception
    assert parameter(page, "sim-measure") == "rsa"
    equal_tables(page.dataframe[0].value, mp.compare(reps[MIXER], reps[CNN], "rsa").to_frame())


def test_a_link_reopens_measure_rows_and_cell(
    open_page: Open, reps: dict[str, Representations]
) -> None:
    cell = {"sim_a": "blocks.1", "sim_b": "layer2.1"}
    page = open_page(
        PAGE, [MIXER, VIT, CNN], n="100", sim_rows=VIT, sim_measure="distance_correlation", **cell
    )
    assert not page.exception
    assert not page.error
    expected = mp.compare(reps[VIT], reps[CNN], "distance_correlation")
    equal_tables(page.dataframe[0].value, expected.to_frame())
    names = [[layer.name for layer in layers] for layers in (expected.layers_a, expected.layers_b)]
    value = expected.values[names[0].index("blocks.1"), names[1].index("layer2.1")]
    assert f"distance correlation of the two layers: {value:.2f} [" in texts(page)
    mutual = mp.similarity.mutual_knn(reps[VIT]["blocks.1"], reps[CNN]["layer2.1"])
    assert f"mutual k-NN (k = 10): {mutual:.2f}, null" in texts(page)


def test_everything_shown_can_be_made_again(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER, CNN], n="100")
    found = list(page.session_state["history"].values())
    assert len(found) == 1
    assert_made_again(found[0])


def assert_made_again(found: Any) -> None:
    """The code of something seen gives the same numbers."""
    space: dict[str, Any] = {
        "mp": mp,
        "models": {name: eval(code, {"mp": mp}) for name, code in found.models},
    }
    exec(found.setup, space)
    made = eval(found.code, space)
    made = made if isinstance(made, (list, tuple)) else [made]
    kept = found.results()
    assert kept is not None
    for again, first in zip(made, kept, strict=True):
        pd.testing.assert_frame_equal(
            again.to_frame(), first.to_frame(), check_dtype=False, rtol=1e-4, atol=1e-5
        )


# -- two layers ------------------------------------------------------------------------------------


def test_classes_with_enough_images_are_compared_alone(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER, CNN], n="100", sim_measure="jaccard")
    assert "No class has 24 images" in texts(page)


# -- sentences and charts --------------------------------------------------------------------------


def test_an_undefined_matrix_is_drawn() -> None:
    assert charts.heatmap(undefined_matrix(), path=True).to_dict()["layer"]


def test_the_heatmap_marks_the_cell_and_takes_clicks(reps: dict[str, Representations]) -> None:
    matrix = mp.compare(reps[MIXER], reps[CNN], permutations=19, resamples=20)
    chart = charts.heatmap(matrix, ("blocks.2", "layer1.1"), name="cell").to_dict()
    rows = next(iter(chart["datasets"].values()))
    assert [(row["layer_a"], row["layer_b"]) for row in rows if row["chosen"]] == [
        ("blocks.2", "layer1.1")
    ]
    assert [param["name"] for param in chart["params"]] == ["cell"]
    told = {tip["field"] for tip in chart["encoding"]["tooltip"]}
    assert {"value", "interval", "null_mean", "null_q95", "n", "estimator"} <= told
    matches: LayerMatches = best_matches(matrix)
    curve = charts.match_curve(matches).to_dict()
    assert [row["value"] for row in next(iter(curve["datasets"].values()))] == pytest.approx(
        matches.value.tolist()
    )


# -- what cannot be shown --------------------------------------------------------------------------


def test_one_network_is_told_to_choose_another(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER], n="100")
    assert not page.exception
    assert not page.error
    assert "select a second one" in texts(page)


def test_partners_are_cnns_first() -> None:
    assert sim.other_network(MIXER, [MIXER, VIT, CNN]) == CNN
    assert sim.other_network(CNN, [MIXER, VIT, CNN]) == MIXER
    assert sim.other_network("zoo:mixer-s1", ["zoo:mixer-s1", MIXER, VIT]) == VIT
    assert sim.other_network(MIXER, [MIXER]) == MIXER
    assert sim.family("resnet18.a1_in1k?untrained") == "cnn"


def test_unlabelled_images_and_few_of_them(open_page: Open) -> None:
    pictures = [(f"{i}.png", png(i)) for i in range(14)]
    page = open_page(PAGE, [MIXER, CNN], images=data.save_upload(pictures))
    assert not page.exception
    assert not page.error
    assert "These images have no class labels" in texts(page)
    page = open_page(PAGE, [MIXER, CNN], images=data.save_upload(pictures[:5]))
    assert not page.exception
    assert "require at least 12 images" in texts(page)


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
        stream, "PNG"
    )
    return stream.getvalue()


def test_a_stored_run_is_compared_and_must_be_of_these_images(
    open_page: Open,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reps: dict[str, Representations],
) -> None:
    mp.extract(
        mp.load_model(MIXER),
        mp.load_images("demo", split="test", limit=100),
        out=tmp_path / "runs" / "mixer.zarr",
    )
    monkeypatch.setenv(local_files.PATHS, str(tmp_path / "runs"))
    local_files.local_files.clear()
    run = "run:runs/mixer.zarr"
    page = open_page(PAGE, [run, CNN], n="100")
    assert not page.exception
    assert not page.error
    equal_tables(page.dataframe[0].value, mp.compare(reps[MIXER], reps[CNN]).to_frame())
    assert_made_again(next(iter(page.session_state["history"].values())))
    page = open_page(PAGE, [run, CNN], n="200")
    assert not page.exception
    assert "is of 100 images" in page.error[0].value.replace("\\", "")
