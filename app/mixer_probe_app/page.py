"""The pages in the order of the menu, and how each begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import streamlit as st
from PIL import Image
from streamlit.runtime.scriptrunner import get_script_run_ctx

from mixer_probe.core.words import join
from mixer_probe_app import choice, data, store
from mixer_probe_app.choice import MOST, RUN, UNTRAINED, chosen
from mixer_probe_app.messages import guarded, plain

_APP = Path(__file__).parents[1]
_MENU = "menu shown"


@dataclass(frozen=True)
class Entry:
    """A page of the menu: its file below `pages`, its title, the symbol of its icon, and what it
    shows."""

    file: str
    title: str
    symbol: str
    about: str

    @property
    def icon(self) -> str:
        """As Streamlit names it."""
        return f":material/{self.symbol}:"


_UNITS = "Token-mixing units of a Mixer: spatial frequency and opposite-phase units."
_KERNELS = "First-layer filters, effective spatial kernels, and kernel sharing across channels."
_MIXING = "From where each position reads, attention heads, and principal components as colours."
_IMAGE = "One image in all networks: predictions, attributions, and the effect of shuffling."
ENTRIES = (
    Entry("Token_mixing", "Token mixing", "grid_on", _UNITS),
    Entry("Stem", "Stem and kernels", "filter_vintage", _KERNELS),
    Entry("Mixing", "Mixing", "hub", _MIXING),
    Entry(
        "Similarity",
        "Similarity",
        "compare",
        "Similarity of layers, and the depth at which two networks differ most.",
    ),
    Entry(
        "Probes", "Probes", "trending_up", "Probe accuracy by layer and by position in the image."
    ),
    Entry(
        "Channels",
        "Channels",
        "view_week",
        "Class-selective channels, with the images of highest activation.",
    ),
    Entry("Image", "Image", "image", _IMAGE),
    Entry(
        "Analyses", "Analyses", "list", "Every analysis with its question; results as in a report."
    ),
    Entry(
        "Report",
        "Report",
        "description",
        "Your results as one HTML file, with the numbers and a Python script.",
    ),
)


def menu() -> list[st.Page]:
    """Home, and a page for each entry; says that this session has its menu."""
    from mixer_probe_app import home

    st.session_state[_MENU] = True
    first = st.Page(home.show, title="Home", icon=":material/home:", url_path="Home", default=True)
    return [
        first,
        *(st.Page(_APP / "pages" / f"{e.file}.py", title=e.title, icon=e.icon) for e in ENTRIES),
    ]


def begin(
    title: str, question: str, *, choose: bool = True, images: bool = True
) -> tuple[str, ...]:
    """Title, question and the choice of networks and images in the sidebar of a page; returns the
    networks chosen.

    Without `choose` the sidebar is empty; without `images` the page looks at weights alone."""
    configure(title)
    _show_menu(title)
    st.title(title)
    st.markdown(question)
    if choose:
        with st.sidebar:
            st.subheader("Networks")
            choice.chooser([st.container() for _ in range(MOST)])
            if images:
                st.subheader("Images")
                with guarded():
                    data.chooser(st.container())
            choice.device_chooser(st.container())
    names = chosen()
    data.source()
    store.hold_networks(names)
    random = [
        plain(name.removesuffix(UNTRAINED))
        for name in names
        if name.endswith(UNTRAINED) and not name.startswith(RUN)
    ]
    if choose and random:
        verb, them = ("has", "it") if len(random) == 1 else ("have", "them")
        st.warning(
            f"{join(random)} {verb} untrained weights: nothing shown about {them} was learned.",
            icon=":material/casino:",
        )
    if choose and not names:
        st.info(
            "No network is chosen. Pick one to three at the side.", icon=":material/arrow_back:"
        )
    return names


def configure(title: str) -> None:
    """The browser's tab and the width of the page; the icon shows a token-mixing unit and its
    opposite, 32 px wide.

    Streamlit's own icons would be fetched from the internet."""
    wave = np.sin(np.linspace(0, 4 * np.pi, 16, endpoint=False))[None, :].repeat(32, 0)
    both = np.concatenate([wave, -wave], axis=1)[..., None]
    red, blue = np.array([178, 24, 43]), np.array([33, 102, 172])
    colours = np.where(both >= 0, 255 - both * (255 - red), 255 + both * (255 - blue))
    icon = Image.fromarray(colours.astype(np.uint8))
    st.set_page_config(
        page_title=f"{title} · mixer_probe" if title else "mixer_probe",
        page_icon=icon,
        layout="wide",
    )


def _show_menu(title: str) -> None:
    """On a server just started, a link to a page runs that page under a menu that Streamlit makes
    of file names. Ours replaces it, and the page is opened again below it. A page that was started
    by itself stays alone."""
    context = get_script_run_ctx()
    if (
        context is None
        or _MENU in st.session_state
        or Path(context.main_script_path) != _APP / "Home.py"
    ):
        return
    found = menu()
    st.navigation(found)
    parameters = {name: st.query_params.get_all(name) for name in st.query_params}
    st.switch_page(next(page for page in found if page.title == title), query_params=parameters)
