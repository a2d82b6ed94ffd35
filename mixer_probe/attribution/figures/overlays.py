"""Attribution maps over the images: a figure of several, and single images at their own
resolution."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw

from mixer_probe.attribution import Attribution, AttributionPanel, attribution_panel
from mixer_probe.attribution.maps import pool
from mixer_probe.attribution.methods import method_label
from mixer_probe.attribution.panel import limit_of
from mixer_probe.images import Images
from mixer_probe.plotting.style import DIVERGING, SEQUENTIAL, model_label, plain, styled

_CELL = 1.25
_GAP = 0.12
# Pixels of a map along a side of a cell.
_PRINTED = 128
Box = tuple[float, float, float, float]


def attribution_overlays(
    results: Sequence[Attribution], images: Images, *, indices: Sequence[int] | None = None
) -> Figure:
    """`attribution_maps` of the panel of some attributions and their images. At most four images
    (`indices` picks them).

    Raises MeasureError for results of other images."""
    return attribution_maps(attribution_panel(results, images, indices=indices))


@styled
def attribution_maps(panel: AttributionPanel) -> Figure:
    """Maps over the original images: one row per image and network, one column per method; the
    image itself first.

    Colour gives the sign, opacity the magnitude, scaled to each map's 99th percentile of
    magnitudes. What the network's crop left out is outside the frame. A method that a network does
    not allow leaves its place blank."""
    networks, pairs = (
        list(dict.fromkeys(panel.models)),
        list(zip(panel.models, panel.methods, strict=True)),
    )
    headings = []
    for c, pair in enumerate(pairs):
        # What distinguishes a method that a network has twice.
        layer = panel.layers[c]
        more = f"\n{layer.name if layer else panel.baselines[c]}" if pairs.count(pair) > 1 else ""
        headings.append(plain(textwrap.fill(method_label(pair[1]), 14) + more))
    columns = list(dict.fromkeys(headings))
    wide = {1: 1.0, 2: 1.5}.get(len(networks), 1.8)
    aspect = np.clip(np.mean([p.shape[0] / p.shape[1] for p in panel.pictures]), 0.5, 1.7)
    # A narrow row after every image keeps its networks together.
    block, rows = len(networks) + 1, len(panel.ids) * len(networks)
    height = (
        0.55
        + 0.65 * len(set(panel.signed))
        + (_CELL * aspect + 0.12) * rows
        + 0.25 * len(panel.ids)
    )
    figure = Figure(figsize=(0.75 + (_CELL + 0.06) * (wide + len(columns)), height))
    heights = ([1.0] * len(networks) + [_GAP]) * len(panel.ids)
    widths = [wide] + [1.0] * len(columns)
    grid = figure.add_gridspec(
        len(heights), len(widths), width_ratios=widths, height_ratios=heights
    )
    for i, picture in enumerate(panel.pictures):
        axes = figure.add_subplot(grid[i * block : i * block + len(networks), 0])
        axes.imshow(picture, interpolation="antialiased")
        # The target class where all maps of the image have one, else the true class where it is
        # known.
        targets = {names[i] for names in panel.target_names}
        true = f"true: {panel.true_names[i]}" if panel.true_names else str(panel.ids[i])
        axes.set_xlabel(
            plain(_cut(f"target: {targets.pop()}" if len(targets) == 1 else true, 30)), fontsize=8
        )
        _bare(axes)
    for c, (model, heading) in enumerate(zip(panel.models, headings, strict=True)):
        for i in range(len(panel.ids)):
            axes = figure.add_subplot(
                grid[i * block + networks.index(model), 1 + columns.index(heading)]
            )
            _overlay(axes, panel, c, i)
            if c == panel.models.index(model):
                name = f"{_cut(model_label(model))}\n" if len(networks) > 1 else ""
                axes.set_ylabel(
                    name + plain(_cut(f"predicts {panel.predicted_names[c][i]}")), fontsize=7
                )
            if c == headings.index(heading) and i == 0:
                axes.set_title(heading, fontsize=8, loc="center")
    if len(networks) == 1:
        figure.suptitle(model_label(networks[0]), x=0.01, ha="left", fontsize=10, fontweight="bold")
    panels: list[Any] = list(figure.axes)
    for signed, colours, scale, label in (
        (
            True,
            DIVERGING,
            Normalize(-1, 1),
            "signed methods: evidence against (−) or for (+) the class",
        ),
        (False, SEQUENTIAL, Normalize(0, 1), "unsigned methods: attribution magnitude"),
    ):
        if signed in panel.signed:
            place: dict[str, Any] = {
                "location": "bottom",
                "fraction": 0.03,
                "shrink": 0.6,
                "aspect": 45,
                "pad": 0.01,
            }
            bar = figure.colorbar(ScalarMappable(scale, colours), ax=panels, **place)
            bar.set_label(f"{label}; 1: 99th percentile of the map", fontsize=8)
            bar.ax.tick_params(labelsize=7)
    return figure


def _cut(text: str, most: int = 22) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _overlay(axes: Axes, panel: AttributionPanel, c: int, i: int) -> None:
    """The map over a pale copy of the image, with a frame around what entered the network where it
    is not the whole image."""
    picture, values = panel.pictures[i], panel.scaled_map(c, i)
    height, width = picture.shape[:2]
    size = (int(panel.sizes[i][0]), int(panel.sizes[i][1]))
    crop = crop_box(size, values.shape, panel.crop_pct[c], panel.crop_mode[c])
    # The box on the picture, which may be a reduced copy of the image.
    x, y = width / size[0], height / size[1]
    left, right, bottom, top = (
        (edge + 0.5) * scale - 0.5 for edge, scale in zip(crop, (x, x, y, y), strict=True)
    )
    # No more pixels than print shows, by means of blocks: red and blue dots mixed as colours would
    # be grey.
    factor = -(-max(values.shape) // _PRINTED)
    if factor > 1:
        values = (
            pool(values, (-(-values.shape[0] // factor), -(-values.shape[1] // factor))) / factor**2
        )
    axes.imshow(grey(picture), cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    extent = (left, right, bottom, top)
    axes.imshow(coloured(values, panel.signed[c]), extent=extent, interpolation="nearest", zorder=2)
    # The overlay must not move the limits of the image.
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    if not _whole(size, crop):
        axes.add_patch(
            Rectangle(
                (left, top),
                right - left,
                bottom - top,
                fill=False,
                edgecolor="black",
                linewidth=0.6,
                zorder=3,
            )
        )
    _bare(axes)


def _whole(size: tuple[int, int], box: Box) -> bool:
    return all(
        abs(a - b) < 1e-6
        for a, b in zip(box, (-0.5, size[0] - 0.5, size[1] - 0.5, -0.5), strict=True)
    )


def grey(picture: np.ndarray) -> np.ndarray:
    """A pale grey copy [h, w] of a picture uint8 [h, w, 3], on which colours are legible."""
    luma = picture @ np.array([0.299, 0.587, 0.114])
    pale: np.ndarray = 98 + luma * (157 / 255)
    return pale


def crop_box(
    size: tuple[int, int], entered: Sequence[int], crop_pct: float, crop_mode: str = "center"
) -> Box:
    """(left, right, bottom, top) in pixels of an image of `size` (width, height) of what entered
    the network as [H, W] pixels, outside the image where it was padded: the centre, after timm
    resized to [H, W] / crop_pct as `crop_mode` says."""
    across, down = (
        math.floor(n / crop_pct) / own for n, own in zip(entered[::-1], size, strict=True)
    )
    if crop_mode != "squash":
        across = down = min(across, down) if crop_mode == "border" else max(across, down)
    x, y = size[0] / 2 - 0.5, size[1] / 2 - 0.5
    half = entered[1] / across / 2, entered[0] / down / 2
    return x - half[0], x + half[0], y + half[1], y - half[1]


def coloured(values: np.ndarray, signed: bool) -> np.ndarray:
    """A map [H, W] as colours with opacity [H, W, 4]: diverging around zero where signed, else from
    zero to the largest."""
    values = np.clip(values / limit_of(values), -1, 1)
    colours: np.ndarray = mpl.colormaps[DIVERGING if signed else SEQUENTIAL](
        (values + 1) / 2 if signed else values
    )
    # Small values are faint, so that the image shows through.
    colours[..., 3] = 0.95 * np.sqrt(np.abs(values)) if signed else 0.25 + 0.65 * np.abs(values)
    return colours


def overlay_image(picture: Image.Image, result: Attribution, i: int) -> Image.Image:
    """The map of image i over the image itself, pixel by pixel at the image's own resolution, RGB.

    Colours as in `attribution_maps`; a thin black frame bounds what entered the network where it is
    not the whole image."""
    entered = result.maps.shape[1:]
    seen = left, right, bottom, top = crop_box(
        picture.size, entered, result.crop_pct, result.crop_mode
    )
    box = (round(left + 0.5), round(top + 0.5), round(right + 0.5), round(bottom + 0.5))
    colours = Image.fromarray(
        np.rint(255 * coloured(result.maps[i], result.signed)).astype(np.uint8), "RGBA"
    )
    layer = Image.new("RGBA", picture.size)
    layer.paste(
        colours.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.NEAREST), box[:2]
    )
    base = Image.fromarray(
        np.rint(grey(np.asarray(picture.convert("RGB")))).astype(np.uint8)
    ).convert("RGBA")
    shown = Image.alpha_composite(base, layer).convert("RGB")
    if not _whole(picture.size, seen):
        ImageDraw.Draw(shown).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline="black")
    return shown
