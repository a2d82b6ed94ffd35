"""Charts and strips of images of the page Channels."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from mixer_probe.capture import Representations, input_pictures
from mixer_probe.channels import ChannelPartners, ClassSelectivity, TopImages, top_means
from mixer_probe.core.words import base_name, short_name
from mixer_probe.images import Images
from mixer_probe.models import Model
from mixer_probe.plotting.style import COLOURS, colour_of
from mixer_probe.stats import auroc_interval
from mixer_probe_app.channel_table import TITLES, chance

PICK = "pick"
# Charts with more marks are slow in a browser, and altair does not save them.
MOST_POINTS = 4000
MOST_CLASSES = 20
_GREY = "#8A8A8A"
_BLUE, _ORANGE, _GREEN = COLOURS[0], COLOURS[1], COLOURS[2]
# Pixels: of a picture in a strip, between pictures, of a line of text.
_SIZE, _GAP, _LINE = 96, 6, 26
_STRIP = 6
# Pixels: of a class, and of axis and legend.
_BAR, _ROOM_FOR_AXIS = 26, 130


# -- strips of images --------------------------------------------------------------------------------------------------------


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


def strips(network: Model, images: Images, run: Representations, wanted: Sequence[End]) -> list[Strip]:
    """The 6 images of the highest mean of some (layer, channel, lowest) over positions, of the lowest mean where `lowest`."""
    layers = dict.fromkeys(layer for layer, _channel, _lowest in wanted)
    channels = {name: [channel for layer, channel, _lowest in wanted if layer == name] for name in layers}
    ends = dict(zip(layers, top_means(network, images, run, channels, k=_STRIP), strict=True))
    rows = [(place, ends[place[0]][int(place[2])]) for place in wanted]
    index = sorted({int(i) for (_layer, channel, _lowest), end in rows for i in end.index[end.place(channel)]})
    pictures = dict(zip(index, map(_thumbnail, input_pictures(network, images, index)), strict=True))
    return [_strip(place, end, pictures) for place, end in rows]


def _strip(place: End, end: TopImages, pictures: Mapping[int, Image.Image]) -> Strip:
    i = end.place(place[1])
    shown = [pictures[int(k)] for k in end.index[i]]
    return Strip(*place, tuple(map(str, end.ids[i])), tuple(map(float, end.values[i])), _png(_side_by_side(shown)))


def _thumbnail(pixels: np.ndarray) -> Image.Image:
    """Small pictures in whole steps, so that a pixel stays a square; large ones made smaller."""
    height, width = pixels.shape[:2]
    if max(height, width) <= _SIZE // 2:
        step = _SIZE // max(height, width)
        return Image.fromarray(pixels.repeat(step, 0).repeat(step, 1))
    picture = Image.fromarray(pixels)
    picture.thumbnail((_SIZE, _SIZE), Image.Resampling.LANCZOS)
    return picture


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    wide, high = max(p.width for p in pictures) + _GAP, max(p.height for p in pictures)
    strip = Image.new("RGBA", (wide * _STRIP - _GAP, high))
    for i, picture in enumerate(pictures):
        strip.paste(picture, (i * wide, 0))
    return strip


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
        parts.append(f'<text x="{_GAP}" y="{i * step + 19}" font-family="sans-serif" font-size="15">{escape(label)}</text>')
        place = f'x="{_GAP}" y="{i * step + _LINE}" width="{width}" height="{height}"'
        parts.append(f'<image {place} href="data:image/png;base64,{code}"/>')
    size = f'width="{width + 2 * _GAP}" height="{step * len(found) + _GAP}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>'.encode()


# -- all channels ------------------------------------------------------------------------------------------------------------


def scatter(frame: pd.DataFrame, x: str, y: str, opened: tuple[str, int]) -> alt.Chart:
    """A point a channel, one statistic against another; the one opened is large. A click selects (layer, channel)."""
    shown = frame.head(MOST_POINTS)[[name for name in (*TITLES, "beyond") if name in frame]].copy()
    shown["opened"] = (shown["layer"] == opened[0]) & (shown["channel"] == opened[1])
    # The last is drawn on top.
    shown = shown.sort_values("opened", kind="stable")
    pick = alt.selection_point(name=PICK, fields=["layer", "channel"], on="click")
    size = alt.condition(alt.datum.opened, alt.value(260), alt.value(45))
    shape = alt.condition(alt.datum.opened, alt.value("diamond"), alt.value("circle"))
    chart: alt.Chart = (
        alt.Chart(shown)
        .mark_point(filled=True, opacity=0.85, stroke=_GREY, strokeWidth=0.6)
        .encode(x=alt.X(**_axis(x)), y=alt.Y(**_axis(y)), size=size, shape=shape, color=_colour(shown), tooltip=_tooltip(shown))
        .add_params(pick, _zoom())
        .properties(height=420)
    )
    return chart


def _zoom() -> alt.Parameter:
    # The wheel alone scrolls the page.
    return alt.selection_interval(name="zoom", bind="scales", zoom="wheel![event.shiftKey]")


def _axis(name: str) -> dict[str, Any]:
    return {"shorthand": f"{name}:Q", "title": TITLES[name], "scale": alt.Scale(zero=False, nice=True)}


def _colour(shown: pd.DataFrame) -> object:
    if shown["layer"].nunique() > 1:
        return alt.Color("depth:Q", title=TITLES["depth"], scale=alt.Scale(scheme="viridis", domain=[0, 1]))
    if "beyond" not in shown:
        return alt.value(_BLUE)
    shown["kind"] = shown["beyond"].map({True: "significant", False: "not significant"})
    scale = alt.Scale(domain=["significant", "not significant"], range=[_ORANGE, _GREY])
    return alt.Color("kind:N", title="selective for the class", scale=scale, legend=alt.Legend(orient="top", symbolStrokeWidth=0))


def _tooltip(shown: pd.DataFrame) -> list[alt.Tooltip]:
    words = [name for name in ("layer", "channel", "class", "dead") if name in shown]
    numbers = [name for name in TITLES if name in shown and name not in words]
    return [
        *(alt.Tooltip(f"{name}:N", title=TITLES[name]) for name in words),
        *(alt.Tooltip(f"{name}:Q", title=TITLES[name], format=".3~g") for name in numbers),
    ]


# -- one channel -------------------------------------------------------------------------------------------------------------


def class_frame(found: ClassSelectivity, layer: str, channel: int) -> pd.DataFrame:
    """One row a class: AUROC of the channel with its interval and its null, d′ and images of the class."""
    i = found.index(layer)
    auroc, band = found.auroc[i][channel], chance(found, i)[channel]
    counts = found.counts.astype(int)
    bounds = [
        auroc_interval(float(a), int(m), int(found.n - m)) if np.isfinite(a) else (np.nan, np.nan)
        for a, m in zip(auroc, counts, strict=True)
    ]
    return pd.DataFrame(
        {
            "class": found.class_names,
            "auroc": auroc,
            "low": [low for low, _high in bounds],
            "high": [high for _low, high in bounds],
            "null_low": (0.5 - band).clip(0),
            "null_high": (0.5 + band).clip(max=1),
            "dprime": found.dprime[i][channel],
            "images": counts,
        }
    )


def class_bars(frame: pd.DataFrame) -> alt.LayerChart:
    """AUROC by class: bars from 1/2, thin lines their intervals, the grey ground the null."""
    away = (frame["auroc"] - 0.5).abs()
    shown = frame.loc[away.sort_values(ascending=False, kind="stable").index[:MOST_CLASSES]].assign(middle=0.5)
    shown["answer"] = np.where(shown["auroc"] >= 0.5, "higher activation", "lower activation")
    order = shown.sort_values("auroc", ascending=False)["class"].tolist()
    y = alt.Y("class:N", sort=order, title="class", axis=alt.Axis(labelLimit=170, labelOverlap=False))
    scale = alt.Scale(domain=[0, 1])
    base = alt.Chart(shown).encode(y=y, tooltip=_class_tooltip())
    null = base.mark_bar(color=_GREY, opacity=0.3, height={"band": 1}).encode(
        x=alt.X("null_low:Q", scale=scale, title=_AUROC, axis=alt.Axis(tickCount=10, format=".1f")), x2="null_high:Q"
    )
    colour = alt.Color(
        "answer:N",
        title=None,
        scale=alt.Scale(domain=["higher activation", "lower activation"], range=[_ORANGE, _BLUE]),
        legend=alt.Legend(orient="top"),
    )
    bar = base.mark_bar(height={"band": 0.5}).encode(x=alt.X("middle:Q", scale=scale), x2="auroc:Q", color=colour)
    interval = base.mark_rule(color=_GREY, strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
    return alt.layer(null, bar, interval).properties(height=_BAR * len(shown) + _ROOM_FOR_AXIS)


_AUROC = "AUROC (chance: 0.5)"


def _class_tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("class:N", title="class"),
        alt.Tooltip("auroc:Q", title="AUROC", format=".3f"),
        alt.Tooltip("low:Q", title="95 % interval, low", format=".3f"),
        alt.Tooltip("high:Q", title="95 % interval, high", format=".3f"),
        alt.Tooltip("null_low:Q", title="null, low", format=".3f"),
        alt.Tooltip("null_high:Q", title="null, high", format=".3f"),
        alt.Tooltip("dprime:Q", title="d′", format=".2f"),
        alt.Tooltip("images:Q", title="images of the class"),
    ]


# -- partners ----------------------------------------------------------------------------------------------------------------


def answers(found: ChannelPartners, channel: int, a: Representations, b: Representations) -> pd.DataFrame:
    """One row an image: the mean of the channel and of its partner."""
    partner = int(found.partner[channel, 0])
    frame = pd.DataFrame({"image": a.ids, "own": a[found.layer_a.name][:, channel], "partner": b[found.layer_b.name][:, partner]})
    if a.labels is not None:
        names = a.class_names
        frame["class"] = [names[k] if names is not None and 0 <= k < len(names) else str(k) for k in a.labels]
    return frame


def answers_chart(frame: pd.DataFrame, x: str, y: str, wanted: str) -> alt.Chart:
    """A point an image; those of the class `wanted` stand out."""
    shown = frame.assign(kind=np.where(frame["class"] == wanted, wanted, "other classes") if wanted else "images")
    told = [alt.Tooltip("image:N", title="image"), *([alt.Tooltip("class:N", title="class")] if "class" in frame else [])]
    numbers = [alt.Tooltip("own:Q", title="this channel", format=".3g"), alt.Tooltip("partner:Q", title="partner", format=".3g")]
    colour: object = alt.value(_BLUE)
    if wanted:
        scale = alt.Scale(domain=[wanted, "other classes"], range=[_ORANGE, _GREY])
        colour = alt.Color("kind:N", title=None, scale=scale, legend=alt.Legend(orient="top"))
    chart: alt.Chart = (
        alt.Chart(shown.sort_values("kind", key=lambda kinds: kinds == wanted))
        .mark_circle(size=45, opacity=0.8)
        .encode(
            x=alt.X("own:Q", title=x, scale=alt.Scale(zero=False)),
            y=alt.Y("partner:Q", title=y, scale=alt.Scale(zero=False)),
            color=colour,
            tooltip=[*told, *numbers],
        )
        .add_params(_zoom())
        .properties(height=380)
    )
    return chart


# -- depth -------------------------------------------------------------------------------------------------------------------

DEPTH = {
    "best": "AUROC of the best channel",
    "auroc_median": "AUROC of the median channel",
    "share_selective": "selective channels (%)",
}


def depth_frame(found: Sequence[tuple[str, ClassSelectivity]], wanted: str) -> pd.DataFrame:
    """One row a layer of each result: its summary and `best`, the best channel's AUROC (of `wanted` where given; below 1/2 counts
    as above)."""
    parts = []
    for name, result in found:
        best = [_best(result, i, wanted) for i in range(len(result.layers))]
        weights = "trained" if result.model.trained else "random"
        table = result.summary().assign(network=name, weights=weights, best=[a for a, _c in best], channel=[c for _a, c in best])
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def _best(found: ClassSelectivity, i: int, wanted: str) -> tuple[float, int]:
    values = found.auroc[i]
    if wanted:
        values = values[:, [found.class_names.index(wanted)]]
    away = np.nan_to_num(np.abs(values - 0.5).max(1), nan=-1.0)
    best = int(away.argmax())
    return (0.5 + float(away[best]), best) if away[best] >= 0 else (float("nan"), -1)


def depth_chart(frame: pd.DataFrame, column: str) -> alt.LayerChart:
    """Curves by relative depth: a colour a network, dashed for random weights."""
    colours = colour_of(frame["network"])
    share = column == "share_selective"
    y = alt.Y(
        f"{column}:Q",
        title=DEPTH[column],
        scale=alt.Scale(domain=[0, 1] if share else alt.Undefined, zero=False),
        axis=alt.Axis(format=".0%" if share else ".2f"),
    )
    base = alt.Chart(frame).encode(
        x=alt.X("depth:Q", title="relative depth", scale=alt.Scale(domain=[0, 1], nice=False), axis=alt.Axis(tickCount=5)),
        y=y,
        color=alt.Color(
            "network:N",
            title="network",
            scale=alt.Scale(domain=[*colours], range=[*colours.values()]),
            legend=alt.Legend(symbolType="circle", symbolOpacity=1, labelLimit=240),
        ),
        detail="model:N",
    )
    dash = alt.StrokeDash(
        "weights:N",
        title="weights",
        scale=alt.Scale(domain=["trained", "random"], range=[[1, 0], [5, 4]]),
        legend=alt.Legend(symbolType="stroke", symbolSize=700, symbolStrokeWidth=2),
    )
    points = base.mark_point(filled=True, size=55, opacity=1).encode(tooltip=_depth_tooltip())
    return alt.layer(base.mark_line().encode(strokeDash=dash), points).properties(height=360)


def _depth_tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("network:N", title="network"),
        alt.Tooltip("weights:N", title="weights"),
        alt.Tooltip("layer:N", title="layer"),
        alt.Tooltip("depth:Q", title="relative depth", format=".2f"),
        alt.Tooltip("best:Q", title=DEPTH["best"], format=".3f"),
        alt.Tooltip("channel:Q", title="channel"),
        alt.Tooltip("auroc_median:Q", title=DEPTH["auroc_median"], format=".3f"),
        alt.Tooltip("null_auroc:Q", title="95th percentile of the null", format=".3f"),
        alt.Tooltip("share_selective:Q", title="selective channels", format=".0%"),
        alt.Tooltip("n_images:Q", title="n images"),
    ]


def network_name(name: str) -> str:
    """How a curve calls a network."""
    return short_name(base_name(name))
