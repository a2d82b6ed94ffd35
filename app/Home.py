"""The app: what a Mixer, a ViT and a CNN learned. Run by `streamlit run app/Home.py`."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from mixer_probe_app import begin, bullets, card, chooser, chosen, folded_table, guarded, plain
from mixer_probe_app.choice import MOST, UNTRAINED
from mixer_probe_app.page import configure
from mixer_probe_app.store import forget_failures

import mixer_probe as mp
from mixer_probe.models import ModelCard

PAGES = Path(__file__).parent / "pages"
QUESTION = (
    "What did an MLP-Mixer learn, and how does that differ from a ViT and a CNN? "
    "Choose one to three networks: every page looks at them, and the address of this page reopens the choice."
)


def home() -> None:
    begin("What did it learn?", QUESTION, choose=False)
    columns = st.columns(MOST, border=True)
    chooser(columns)
    names = chosen()
    for column, name in zip(columns, names):
        with column, guarded():
            _show_card(name, card(name))
    for column in columns[len(names) :]:
        column.caption("Nothing chosen here. Pick a network to compare it with the others.")
    if st.session_state.get("failed models"):
        st.button("Try again to load what failed", on_click=forget_failures, icon=":material/refresh:")
    if not names:
        st.info("No network is chosen. Pick one to three above.", icon=":material/arrow_upward:")


def _show_card(name: str, found: ModelCard) -> None:
    record = found.model
    if record.trained:
        st.badge("trained", color="green", icon=":material/check:")
    else:
        st.badge("random weights, nothing learned", color="orange", icon=":material/casino:")
    st.markdown(f"**{plain(record.name)}**")
    bullets([f"{label}: {text}" for label, text in _facts(name, found).items()])
    if record.note:
        st.caption(plain(record.note))
    folded_table("Layers in execution order", found.to_frame())


def _facts(name: str, found: ModelCard) -> dict[str, str]:
    blocks = [layer for layer in found.layers if layer.kind == "block"]
    grids = list(dict.fromkeys("×".join(map(str, layer.grid)) for layer in blocks if layer.grid))
    facts = {
        "Family": f"{found.model.family} ({found.architecture})",
        "Parameters": f"{found.model.parameters:,}",
        "Multiply-accumulates": f"{found.macs / 1e9:.3f} G an image",
        "Input": "×".join(map(str, found.input_size)) + " (channels, height, width in px)",
        "Blocks": str(len(blocks)),
        "Grid of positions": " → ".join(grids) or "none",
        "Weights": found.model.weights,
    }
    return facts | _accuracy(name, found)


def _accuracy(name: str, found: ModelCard) -> dict[str, str]:
    """What the card of a bundled network promises."""
    if not name.startswith("zoo:") or name.endswith(UNTRAINED) or not found.model.trained:
        return {}
    known = mp.zoo.card(name.removeprefix("zoo:"))
    return {"Test accuracy": f"{100 * known.test_accuracy:.1f} % of {known.test_images:,} images"}


def pages() -> list[st.Page]:
    """The menu, in the order in which a person reads."""
    return [
        st.Page(home, title="Home", icon=":material/home:", default=True),
        st.Page(PAGES / "Token_mixing.py", title="Token mixing", icon=":material/grid_on:"),
        st.Page(PAGES / "Stem.py", title="Stem", icon=":material/filter_vintage:"),
        st.Page(PAGES / "Similarity.py", title="Similarity", icon=":material/compare:"),
        st.Page(PAGES / "Probes.py", title="Probes", icon=":material/trending_up:"),
        st.Page(PAGES / "Report.py", title="Report", icon=":material/description:"),
    ]


configure("")
st.navigation(pages()).run()
