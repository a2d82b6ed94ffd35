"""A picture's file: the same figure gives the same bytes, and what is clipped is clipped by the
region that is there."""

from __future__ import annotations

import re
import sys
import threading

import numpy as np
from matplotlib.figure import Figure

from mixer_probe.core.section import Picture, Section, _numbered_clips
from mixer_probe.report.drawing import draw_in_parallel


def figure() -> Figure:
    drawn = Figure(figsize=(4, 2))
    for i in range(2):
        axes = drawn.add_axes((0.1 + 0.5 * i, 0.1, 0.35, 0.8))
        axes.imshow(np.arange(6.0).reshape(2, 3), aspect="auto")
        axes.plot([0, 2], [0, 1])
    return drawn


def svg() -> bytes:
    return Picture(figure, "shows", "reading", "alt").encoded


def test_the_same_figure_gives_the_same_bytes() -> None:
    assert svg() == svg()


def test_every_clip_is_there() -> None:
    text = svg().decode()
    used, there = (
        set(re.findall(pattern, text))
        for pattern in (r"url\(#(clip\d+)\)", r'<clipPath id="([^"]+)"')
    )
    assert used == there == {"clip0", "clip1"}


def test_only_clips_are_renamed() -> None:
    text = (
        b'<g id="pab"/><g clip-path="url(#%s)">pa</g><use href="#pa2"/>'
        b'<clipPath id="%s"></clipPath>'
    )
    assert _numbered_clips(text % (b"pa", b"pa")) == text % (b"clip0", b"clip0")
    assert _numbered_clips(b"<svg/>") == b"<svg/>"


def test_pictures_are_drawn_the_same_in_parallel() -> None:
    pictures = tuple(Picture(figure, str(i), "", "", vector=i % 2 == 0) for i in range(5))
    draw_in_parallel([Section("a", "A", content=pictures)], 2)
    if sys.platform == "linux" and threading.active_count() == 1:
        assert all("encoded" in vars(p) for p in pictures)
    for picture in pictures:
        assert picture.encoded == Picture(figure, "", "", "", vector=picture.vector).encoded


def test_a_process_with_threads_draws_alone() -> None:
    stop, picture = threading.Event(), Picture(figure, "", "", "")
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        draw_in_parallel([Section("a", "A", content=(picture, picture))], 2)
    finally:
        stop.set()
        other.join()
    assert "encoded" not in vars(picture)
