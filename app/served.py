"""The app behind a check of who asks, which `mixer-probe app` runs: `streamlit run
app/served.py`."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from mixer_probe_app.own_host import OwnHost
from starlette.middleware import Middleware

app = st.App(Path(__file__).parent / "Home.py", middleware=[Middleware(OwnHost)])
