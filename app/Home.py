"""The app: what a Mixer, a ViT and a CNN learned.

Run by `streamlit run app/Home.py`, with `-- FOLDER…` behind it for one's own files."""

from __future__ import annotations

import streamlit as st
from mixer_probe_app.page import configure, menu

configure("")
st.navigation(menu()).run()
