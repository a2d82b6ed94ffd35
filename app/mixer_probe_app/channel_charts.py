"""Charts and strips of images of the page Channels."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from mixer_probe.capture import Representations, input_pictures
from mixer_probe.channels import ChannelPartners, top_means
from mixer_probe.channels.listing import TITLES
from mixer_probe.images import Images
from mixer_probe.images.classes import class_name
from mixer_probe.models import Model
from mixer_probe.plotting.style import COLOURS
from mixer_probe_app import charts
from mixer_probe_app.charts import GREY, colours, tips, zoom

PICK = "pick"
# Charts with more marks are slow in a browser, and altair does not save them.
MOST_POINTS = 4000
MOST_CLASSES = 20
_BLUE, _ORANGE = COLOURS[0], COLOURS[1]
# Pixels: of a picture in a strip, between pictures, of a line of text.
_SIZE, _GAP, _LINE = 96, 6, 26
_STRIP = 6
# Pixels: of a class, and of axis and legend.
_BAR, _LABELS = 26, 130

# -- strips of images ------------------------------------------------------------------------------

# Layer, channel, and whether the lowest images are wanted.
End = tuple[str, int, bool]


@dataclass(frozen=True)
class Strip:
    """The images at one end of a channel in a row, as PNG."""

    layer: str
    channel: int
    lowest: bool
    ids: tuple[str, ...]
    values: tuple[float, ...]
    png: bytes


def strips(
    network: Model, images: Images, run: Representations, wanted: Sequence[End]
) -> list[Strip]:
    """The 6 images of the highest mean of some (layer, channel, lowest) over positions, of the
    lowest mean where `lowest`.

    Small pictures are enlarged in whole steps, so that a pixel stays a square."""
    layers = dict.fromkeys(layer for layer, _channel, _lowest in wanted)
    channels = {
        name: [channel for layer, channel, _lowest in wanted if layer == name] for name in layers
    }
    ends = dict(zip(layers, top_means(network, images, run, channels, k=_STRIP), strict=True))
    rows = [(place, ends[place[0]][int(place[2])]) for place in wanted]
    index = sorted(
        {int(i) for (_layer, channel, _lowest), end in rows for i in end.index[end.place(channel)]}
    )
    pictures = {}
    for i, pixels in zip(index, input_pictures(network, images, index), strict=True):
        step = max(1, _SIZE // max(pixels.shape[:2]))
        pictures[i] = Image.fromarray(pixels.repeat(step, 0).repeat(step, 1))
        pictures[i].thumbnail((_SIZE, _SIZE), Image.Resampling.LANCZOS)
    found = []
    for place, end in rows:
        i = end.place(place[1])
        shown = [pictures[int(k)] for k in end.index[i]]
        wide, high = max(p.width for p in shown) + _GAP, max(p.height for p in shown)
        board = Image.new("RGBA", (wide * _STRIP - _GAP, high))
        for k, picture in enumerate(shown):
            board.paste(picture, (k * wide, 0))
        found.append(
            Strip(
                *place, tuple(map(str, end.ids[i])), tuple(map(float, end.values[i])), _png(board)
            )
        )
    return found


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "png")
    return stream.getvalue()


def gallery_png(found: Sequence[tuple[str, Strip]]) -> bytes:
    """All strips below each other with their labels, as one picture."""
    opened = [Image.open(io.BytesIO(strip.png)) for _label, strip in found]
    step = opened[0].height + _LINE + _GAP
    board = Image.new("RGB", (opened[0].width + 2 * _GAP, step * len(opened) + _GAP), "white")
    draw = ImageDraw.Draw(board)
    for i, ((label, _strip), picture) in enumerate(zip(found, opened, strict=True)):
        draw.text((_GAP, i * step + 4), label, fill="black", font=ImageFont.load_default(16))
        board.paste(picture, (_GAP, i * step + _LINE), picture)
    return _png(board)


def gallery_svg(found: Sequence[tuple[str, Strip]]) -> bytes:
    """The same as SVG, with text as text."""
    width, height = Image.open(io.BytesIO(found[0][1].png)).size
    step, parts = height + _LINE + _GAP, []
    for i, (label, strip) in enumerate(found):
        code = base64.b64encode(strip.png).decode()
        parts.append(
            f'<text x="{_GAP}" y="{i * step + 19}" font-family="sans-serif" '
            f'font-size="15">{escape(label)}</text>'
        )
        place = f'x="{_GAP}" y="{i * step + _LINE}" width="{width}" height="{height}"'
        parts.append(f'<image {place} href="data:image/png;base64,{code}"/>')
    size = f'width="{width + 2 * _GAP}" height="{step * len(found) + _GAP}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>'.encode()


# -- charts ----------------------------------------------------------------------------------------


def scatter(frame: pd.DataFrame, x: str, y: str, opened: tuple[str, int]) -> alt.Chart:
    """A point per channel, one statistic against another; the one opened is large. A click selects
    (layer, channel)."""
    shown = frame.head(MOST_POINTS)[[name for name in (*TITLES, "beyond") if name in frame]].copy()
    shown["opened"] = (shown["layer"] == opened[0]) & (shown["channel"] == opened[1])
    # The last is drawn on top.
    shown = shown.sort_values("opened", kind="stable")
    colour: Any = alt.value(_BLUE)
    if shown["layer"].nunique() > 1:
        colour = alt.Color(
            "depth:Q", title=TITLES["depth"], scale=alt.Scale(scheme="viridis", domain=[0, 1])
        )
    elif "beyond" in shown:
        shown["kind"] = shown["beyond"].map({True: "significant", False: "not significant"})
        scale, legend = (
            colours({"significant": _ORANGE, "not significant": GREY}),
            alt.Legend(orient="top", symbolStrokeWidth=0),
        )
        colour = alt.Color("kind:N", title="selective for the class", scale=scale, legend=legend)
    words = [name for name in ("layer", "channel", "class", "dead") if name in shown]
    fields = {f"{name}:N": TITLES[name] for name in words}
    fields |= {
        f"{name}:Q .3~g": title
        for name, title in TITLES.items()
        if name in shown and name not in words
    }
    axes = [
        axis(f"{name}:Q", title=TITLES[name], scale=alt.Scale(zero=False))
        for axis, name in ((alt.X, x), (alt.Y, y))
    ]
    size = alt.condition(alt.datum.opened, alt.value(260), alt.value(45))
    shape = alt.condition(alt.datum.opened, alt.value("diamond"), alt.value("circle"))
    chart: alt.Chart = (
        alt.Chart(shown)
        .mark_point(filled=True, opacity=0.85, stroke=GREY, strokeWidth=0.6)
        .encode(*axes, size=size, shape=shape, color=colour, tooltip=tips(fields))
        .add_params(alt.selection_point(name=PICK, fields=["layer", "channel"], on="click"), zoom())
        .properties(height=420)
    )
    return chart


def class_bars(frame: pd.DataFrame) -> alt.LayerChart:
    """AUROC by class: bars from 1/2, thin lines their intervals, the grey ground the null."""
    away = (frame["auroc"] - 0.5).abs()
    shown = frame.loc[away.sort_values(ascending=False, kind="stable").index[:MOST_CLASSES]].assign(
        middle=0.5
    )
    shown["direction"] = np.where(shown["auroc"] >= 0.5, "higher activation", "lower activation")
    order = shown.sort_values("auroc", ascending=False)["class"].tolist()
    fields = {
        "class:N": "class",
        "auroc:Q .3f": "AUROC",
        "low:Q .3f": "95 % interval, low",
        "high:Q .3f": "95 % interval, high",
        "null_low:Q .3f": "null, low",
        "null_high:Q .3f": "null, high",
        "dprime:Q .2f": "d′",
        "images:Q": "images of the class",
    }
    scale, axis = alt.Scale(domain=[0, 1]), alt.Axis(tickCount=10, format=".1f")
    y = alt.Y(
        "class:N", sort=order, title="class", axis=alt.Axis(labelLimit=170, labelOverlap=False)
    )
    base = alt.Chart(shown).encode(y=y, tooltip=tips(fields))
    x = alt.X("null_low:Q", scale=scale, title="AUROC (chance: 0.5)", axis=axis)
    null = base.mark_bar(color=GREY, opacity=0.3, height={"band": 1}).encode(x=x, x2="null_high:Q")
    directions = colours({"higher activation": _ORANGE, "lower activation": _BLUE})
    colour = alt.Color("direction:N", title=None, scale=directions, legend=alt.Legend(orient="top"))
    bar = base.mark_bar(height={"band": 0.5}).encode(
        x=alt.X("middle:Q", scale=scale), x2="auroc:Q", color=colour
    )
    interval = base.mark_rule(color=GREY, strokeWidth=2).encode(
        x=alt.X("low:Q", scale=scale), x2="high:Q"
    )
    return alt.layer(null, bar, interval).properties(height=_BAR * len(shown) + _LABELS)


def pair_frame(
    found: ChannelPartners, channel: int, a: Representations, b: Representations
) -> pd.DataFrame:
    """One row per image: the mean of the channel (`own`) and of its best match (`partner`)."""
    partner = int(found.partner[channel, 0])
    frame = pd.DataFrame(
        {
            "image": a.ids,
            "own": a[found.layer_a.name][:, channel],
            "partner": b[found.layer_b.name][:, partner],
        }
    )
    if a.labels is not None:
        frame["class"] = [class_name(int(k), a.class_names) for k in a.labels]
    return frame


def pair_chart(frame: pd.DataFrame, x: str, y: str, wanted: str) -> alt.Chart:
    """A point per image; those of the class `wanted` stand out."""
    shown = frame.assign(
        kind=np.where(frame["class"] == wanted, wanted, "other classes") if wanted else "images"
    )
    fields = {"image:N": "image"} | ({"class:N": "class"} if "class" in frame else {})
    fields |= {"own:Q .3g": "this channel", "partner:Q .3g": "best match"}
    colour: Any = alt.value(_BLUE)
    if wanted:
        scale = colours({wanted: _ORANGE, "other classes": GREY})
        colour = alt.Color("kind:N", title=None, scale=scale, legend=alt.Legend(orient="top"))
    chart: alt.Chart = (
        alt.Chart(shown.sort_values("kind", key=lambda kinds: kinds == wanted))
        .mark_circle(size=45, opacity=0.8)
        .encode(
            x=alt.X("own:Q", title=x, scale=alt.Scale(zero=False)),
            y=alt.Y("partner:Q", title=y, scale=alt.Scale(zero=False)),
            color=colour,
            tooltip=tips(fields),
        )
        .add_params(zoom())
        .properties(height=380)
    )
    return chart


# -- depth -----------------------------------------------------------------------------------------

DEPTH = {
    "best": "AUROC of the best channel",
    "auroc_median": "AUROC of the median channel",
    "fraction_selective": "selective channels (%)",
}


def depth_chart(frame: pd.DataFrame, column: str) -> alt.LayerChart:
    """Curves by relative depth: a colour per network, dotted for untrained baselines."""
    more = {
        "best:Q .3f": DEPTH["best"],
        "channel:Q": "channel",
        "auroc_median:Q .3f": DEPTH["auroc_median"],
        "null_auroc:Q .3f": "95th percentile of the null",
        "fraction_selective:Q .0%": "selective channels",
        "n_images:Q": "n images",
    }
    digits = ".0%" if column == "fraction_selective" else ".3f"
    shown = {field: title for field, title in more.items() if not field.startswith(f"{column}:")}
    return charts.curves(
        frame, column, DEPTH[column], digits=digits, zero=digits == ".0%", bounds=None, more=shown
    )
