"""The menu, in the order in which a person reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

_APP = Path(__file__).parents[1]
_TAKEN = "menu taken over"


@dataclass(frozen=True)
class Entry:
    """A page, and the question that it answers."""

    file: str
    title: str
    symbol: str
    question: str

    @property
    def icon(self) -> str:
        """As Streamlit names it."""
        return f":material/{self.symbol}:"


ENTRIES = (
    Entry(
        "Token_mixing",
        "Token mixing",
        "grid_on",
        "Token-mixing units of a Mixer: spatial frequency and opposite-phase units.",
    ),
    Entry(
        "Stem",
        "Stem and kernels",
        "filter_vintage",
        "First-layer filters, effective spatial kernels, and kernel sharing across channels.",
    ),
    Entry("Similarity", "Similarity", "compare", "Similarity of layers, and the depth at which two networks differ most."),
    Entry("Probes", "Probes", "trending_up", "Probe accuracy by layer and by position in the image."),
    Entry("Channels", "Channels", "view_week", "Class-selective channels, with the images of highest activation."),
    Entry("Image", "Image", "image", "One image in all networks: predictions, attributions, and the effect of shuffling."),
    Entry("Analyses", "Analyses", "list", "Every analysis with its question; results as in a report."),
    Entry("Report", "Report", "description", "Your results as one HTML file, with the numbers and a Python script."),
)


def pages() -> list[st.Page]:
    """Home, and a page for each entry."""
    from mixer_probe_app import home

    first = st.Page(home.show, title="Home", icon=":material/home:", url_path="Home", default=True)
    return [first, *(st.Page(_APP / "pages" / f"{e.file}.py", title=e.title, icon=e.icon) for e in ENTRIES)]


def take_over() -> None:
    """Home says that this session has its menu."""
    st.session_state[_TAKEN] = True


def come_home(title: str) -> None:
    """On a server just started, a link to a page runs that page under a menu that Streamlit makes of file names. Ours takes its
    place, and the page is opened again below it. A page that was started by itself stays alone."""
    context = get_script_run_ctx()
    if context is None or _TAKEN in st.session_state or Path(context.main_script_path) != _APP / "Home.py":
        return
    st.session_state[_TAKEN] = True
    found = pages()
    st.navigation(found)
    st.switch_page(
        next(page for page in found if page.title == title), query_params={n: st.query_params.get_all(n) for n in st.query_params}
    )
