"""The page Analyses: results are those of the package, and what lacks is said in a sentence."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from mixer_probe import catalog
from mixer_probe.core.analysis import Room
from tests.app.conftest import Open
from tests.app.test_pages import texts
from tests.app.test_similarity import assert_made_again

PAGE = "pages/Analyses.py"
MIXER, VIT, CNN = "mixer_s32_224?untrained", "test_vit?untrained", "test_resnet?untrained"


def run(page: AppTest) -> AppTest:
    return next(button for button in page.button if button.label == "Run").click().run()


@pytest.mark.parametrize(
    "room", [room for room in catalog.ROOMS if room.analyses], ids=lambda room: room.name
)
def test_every_analysis_is_listed_with_its_question(open_page: Open, room: Room) -> None:
    page = open_page(PAGE, [VIT], n="100", analysis_room=room.name)
    assert not page.exception
    assert [option.lower() for option in page.radio[0].options] == [
        analysis.title.lower() for analysis in room.analyses
    ]
    assert [caption.partition("?")[0] + "?" for caption in page.radio[0].proto.captions] == [
        a.question for a in room.analyses
    ]


def test_results_are_shown_as_in_a_report_and_made_again_by_the_script(open_page: Open) -> None:
    page = run(
        open_page(
            PAGE, ["zoo:resnet-s0", CNN], n="100", analysis_room="probing", analysis_baselines="no"
        )
    )
    assert not page.exception
    assert not page.error
    assert [header.value for header in page.header] == ["Probe accuracy by layer"]
    assert "resnet-s0: " in texts(page)
    assert all(image.captions[0] and image.proto.imgs[0].alt for image in page.get("image"))
    (seen,) = page.session_state["history"].values()
    assert_made_again(seen)
    # What is kept is shown at once.
    again = open_page(
        PAGE, ["zoo:resnet-s0", CNN], n="100", analysis_room="probing", analysis_baselines="no"
    )
    assert [header.value for header in again.header] == ["Probe accuracy by layer"]
    assert "Run" not in [button.label for button in again.button]


@pytest.mark.parametrize(
    ("models", "room", "name", "said"),
    [
        ([CNN], "weights", "units", "It is defined for Mixer networks; choose one at the side."),
        ([VIT], "channels", "partners", "It compares networks; choose a second one at the side."),
        (
            [VIT],
            "channels",
            "dissection",
            "It needs annotated images: use mixer-probe channels with --masks FOLDER",
        ),
    ],
)
def test_what_lacks_is_said(
    open_page: Open, models: list[str], room: str, name: str, said: str
) -> None:
    page = open_page(PAGE, models, n="100", analysis_room=room, analysis=name)
    assert not page.exception
    assert said in texts(page)
    assert "Run" not in [button.label for button in page.button]


def test_images_that_are_not_there_are_a_message(open_page: Open) -> None:
    page = open_page(PAGE, [VIT], images="folder:gone", analysis_room="similarity")
    assert not page.exception
    assert "there is no image folder 'gone'" in texts(page)
