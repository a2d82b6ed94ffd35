"""How every page begins."""

from __future__ import annotations

import numpy as np
import streamlit as st
from PIL import Image

from mixer_probe_app import choice, data, menu, store
from mixer_probe_app.choice import MOST, RUN, UNTRAINED, chosen
from mixer_probe_app.messages import guarded, join, plain


def begin(title: str, question: str, *, choose: bool = True, images: bool = True) -> tuple[str, ...]:
    """Title, the question that the page answers, the choice of networks and images at the side; returns the networks chosen.

    Without `choose` there is nothing at the side; without `images` the page looks at weights alone."""
    configure(title)
    menu.come_home(title)
    st.title(title)
    st.markdown(question)
    if choose:
        _choose_at_the_side(images)
    names = chosen()
    data.source()
    store.look_at(names)
    if choose:
        _say_what_was_not_learned(names)
    if choose and not names:
        st.info("No network is chosen. Pick one to three at the side.", icon=":material/arrow_back:")
    return names


def configure(title: str) -> None:
    """The browser's tab and the width of the page."""
    st.set_page_config(page_title=f"{title} · mixer_probe" if title else "mixer_probe", page_icon=_icon(), layout="wide")


def _icon() -> Image.Image:
    """A token-mixing unit and its opposite, 32 px wide. Streamlit's own icons would be fetched from the internet."""
    wave = np.sin(np.linspace(0, 4 * np.pi, 16, endpoint=False))[None, :].repeat(32, 0)
    both = np.concatenate([wave, -wave], axis=1)[..., None]
    red, blue = np.array([178, 24, 43]), np.array([33, 102, 172])
    colours = np.where(both >= 0, 255 - both * (255 - red), 255 + both * (255 - blue))
    return Image.fromarray(colours.astype(np.uint8))


def _choose_at_the_side(images: bool) -> None:
    with st.sidebar:
        st.subheader("Networks")
        choice.chooser([st.container() for _ in range(MOST)])
        if images:
            st.subheader("Images")
            with guarded():
                data.chooser(st.container())
        choice.device_chooser(st.container())


def _say_what_was_not_learned(names: tuple[str, ...]) -> None:
    random = [plain(name.removesuffix(UNTRAINED)) for name in names if name.endswith(UNTRAINED) and not name.startswith(RUN)]
    if random:
        verb, them = ("has", "it") if len(random) == 1 else ("have", "them")
        st.warning(f"{join(random)} {verb} untrained weights: nothing shown about {them} was learned.", icon=":material/casino:")
