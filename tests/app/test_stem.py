"""The page Stem and kernels: each part shows the numbers of mixer_probe, and measures nothing but
what is chosen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

import mixer_probe as mp
from tests.app.conftest import Open, parameter, texts

PAGE = "pages/Stem.py"
MIXER, VIT, CNN = "zoo:mixer-s0", "test_vit?untrained", "test_resnet?untrained"


def load(name: str) -> mp.Model:
    return mp.load_model(
        name.removesuffix("?untrained"), pretrained=not name.endswith("?untrained"), device="cpu"
    )


def fine(page: AppTest) -> None:
    assert not page.exception
    assert not page.error


def pictures(page: AppTest) -> list[str]:
    return [image.proto.imgs[0].url for image in page.get("image")]


def labels(page: AppTest) -> list[str]:
    return [
        seen.label
        for seen in page.session_state["history"].values()
        if seen.page == "Stem and kernels"
    ]


def test_filters_of_every_network(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER, VIT, CNN])
    fine(page)
    assert [title.value for title in page.title] == ["Stem and kernels"]
    written = texts(page)
    for name in (MIXER, VIT, CNN):
        stem = mp.stem_filters(load(name))
        assert (
            f"{len(stem)} filters, stride {stem.stride[0]} px, in the layer {stem.layer}."
            in written
        )
        assert f"Mean frequency is {np.nanmean(stem.frequency):.3f} cycles/pixel" in written
    assert "test_vit (untrained)" in written
    assert len(pictures(page)) == 3
    assert labels(page) == [f"stem filters of {name}" for name in (MIXER, VIT, CNN)]


def test_orders_and_looks_change_the_pictures(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER])
    seen = pictures(page)
    seen += pictures(page.selectbox(key="widget stem-order").set_value("luminance").run())
    assert parameter(page, "stem-order") == "luminance"
    seen += pictures(page.segmented_control(key="widget stem-look").set_value("components").run())
    fine(page)
    assert len(set(seen)) == 3
    page.segmented_control(key="widget stem-look").set_value("colour").run()
    fine(page)
    assert not pictures(page)
    assert len(page.get("vega_lite_chart")) == 1


def test_many_filters_are_cut_until_asked_for(open_page: Open) -> None:
    page = open_page(PAGE, ["mixer_s32_224?untrained"])
    first = pictures(page)
    page.toggle(key="widget stem-all").set_value(True).run()
    fine(page)
    assert pictures(page) != first


def test_only_what_is_chosen_is_measured(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER, VIT], stem_part="anatomy")
    fine(page)
    assert labels(page) == [f"anatomy of {MIXER}", f"anatomy of {VIT}"]
    found = mp.anatomy(load(VIT))
    assert f"of its {found.parameters:,} parameters" in texts(page)
    page.segmented_control(key="widget stem-part").set_value("positions").run()
    fine(page)
    assert labels(page)[2:] == [f"position embeddings of {VIT}"]
    assert parameter(page, "stem-part") == "positions"


def test_kernels_by_depth_and_block(open_page: Open) -> None:
    from mixer_probe_app.charts import table

    page = open_page(PAGE, [MIXER, CNN], stem_part="kernels", stem_block="3")
    fine(page)
    model = load(MIXER)
    found, twin = mp.spatial_kernels(model), mp.spatial_kernels(model.untrained())
    assert f"mean mixing distance is {found.kernels[0].distance_px:.1f} px" in texts(page)
    frame = table([found, twin])
    for kind, result in (("trained", found), ("untrained", twin)):
        np.testing.assert_array_equal(
            frame.loc[frame["weights"] == kind, "distance_px"], result.to_frame()["distance_px"]
        )
    assert set(frame["network"]) == {"mixer-s0"}
    first = pictures(page)
    assert len(first) == 2
    page.select_slider(key="widget stem-block").set_value(8).run()
    fine(page)
    again = pictures(page)
    assert again[0] == first[0]
    assert again[1] != first[1]


def test_convolutions_have_no_map_of_each_position(open_page: Open) -> None:
    page = open_page(PAGE, [CNN], stem_part="kernels")
    fine(page)
    assert len(pictures(page)) == 1
    assert "Spatial mixing weights by position" not in texts(page)


def test_tying_counts_and_says_who_has_no_kernels_of_channels(open_page: Open) -> None:
    page = open_page(PAGE, [MIXER, CNN], stem_part="tying", n="100")
    fine(page)
    assert [
        "has no spatial kernel of its own for each channel" in info.value for info in page.info
    ] == [True]
    found = mp.kernel_tying(load(MIXER), mp.load_images("demo", split="test", limit=100))
    counts = found.counts(0.9)
    assert f"is explained by {counts.min():.0f} to {counts.max():.0f} shared kernels" in texts(page)
    assert "measured on 100 images" in texts(page)
    page.segmented_control(key="widget stem-tying").set_value("null").run()
    fine(page)


def test_weights_alone_tie_kernels_of_depthwise_convolutions(open_page: Open) -> None:
    page = open_page(
        PAGE,
        ["test_convnext?untrained", "resmlp_12_224?untrained"],
        stem_part="tying",
        stem_tying="null",
    )
    fine(page)
    seen = [s for s in page.session_state["history"].values() if s.page == "Stem and kernels"]
    assert [(s.code, s.setup) for s in seen] == [
        ("mp.kernel_tying(models['test_convnext?untrained'])", ""),
        ("mp.kernel_tying(models['resmlp_12_224?untrained'])", ""),
    ]


def test_position_embeddings_of_a_vit_and_of_nobody(open_page: Open) -> None:
    page = open_page(PAGE, [VIT, CNN], stem_part="positions")
    fine(page)
    near = mp.position_embeddings(load(VIT)).alike()["neighbours"]
    assert f"the mean cosine similarity is {near:.2f} between neighbouring patches" in texts(page)
    assert "has no absolute position embedding" in texts(page)
    page = open_page(PAGE, [CNN], stem_part="positions")
    fine(page)
    assert "select one in the sidebar" in texts(page)


@pytest.mark.parametrize("part", ["filters", "kernels", "tying", "anatomy", "positions"])
def test_names_that_are_no_networks_are_messages(open_page: Open, part: str) -> None:
    page = open_page(PAGE, ["no_such_network", "run:nothing.zarr", VIT], stem_part=part, n="100")
    assert not page.exception
    written = [error.value.replace("\\", "") for error in page.error]
    assert [
        "no model 'no_such_network'" in text or "is a stored run" in text for text in written
    ] == [True, True]
    assert labels(page)


def test_no_network_and_an_unknown_part(open_page: Open) -> None:
    page = open_page(PAGE, [VIT], stem_part="soul")
    fine(page)
    assert labels(page) == [f"stem filters of {VIT}"]
    for slot in range(3):
        page.selectbox(key=f"network {slot}").set_value(None)
    page.run()
    fine(page)
    assert "No network is chosen" in page.info[0].value


def test_images_are_asked_for_where_they_are_looked_at(open_page: Open) -> None:
    page = open_page(PAGE, [CNN])
    assert "Images" not in [box.label for box in page.selectbox]
    page = open_page(PAGE, [CNN], stem_part="tying")
    assert "Images" in [box.label for box in page.selectbox]


@pytest.mark.parametrize("part", ["filters", "kernels", "tying", "anatomy", "positions"])
def test_what_was_seen_can_be_made_again(open_page: Open, part: str) -> None:
    page = open_page(PAGE, [VIT], stem_part=part, n="100")
    (seen,) = [s for s in page.session_state["history"].values() if s.page == "Stem and kernels"]
    (kept,) = seen.results()
    names = {"mp": mp, "models": {VIT: load(VIT)}}
    exec(seen.setup, names)
    again = eval(seen.code, names)
    assert again.title == kept.title
    numbers = [result.to_frame().select_dtypes("number") for result in (again, kept)]
    pd.testing.assert_frame_equal(
        *numbers, check_exact=False, rtol=1e-3, atol=1e-5, check_dtype=False
    )
