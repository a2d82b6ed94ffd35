"""Pictures of attributions: overlays on the images themselves, and how far they can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from mixer_probe.attribution import Agreement, Attribution, PerturbationCurves, RandomisationCheck
from mixer_probe.attribution.maps import mean_interval
from mixer_probe.errors import MeasureError
from mixer_probe.figures.style import COLOURS, DIVERGING, GREY, MARKERS, SEQUENTIAL, model_label, plain, styled
from mixer_probe.images import Images

_METHOD_LABELS = {
    "saliency": "saliency",
    "input_x_gradient": "input × gradient",
    "integrated_gradients": "integrated gradients",
    "smoothgrad": "SmoothGrad",
    "deeplift": "DeepLIFT",
    "occlusion": "occlusion",
    "gradcam": "Grad-CAM",
    "attention_rollout": "attention rollout",
    "gradient_attention": "gradient × attention",
}
# A few extreme pixels would leave the rest of a map invisible.
_QUANTILE = 0.99


@styled
def attribution_overlays(results: Sequence[Attribution], images: Images, *, indices: Sequence[int] | None = None) -> Figure:
    """Maps over the original images at their own resolution: a row an image, a column a result, the image itself first.

    Colour says for or against, opacity how much, scaled to each map's 99 % quantile of magnitudes. What the network's crop left
    out is outside the frame. At most four images (`indices` picks them). Raises MeasureError for results of other images."""
    rows = list(indices if indices is not None else range(min(4, len(images))))
    _check(results, images, rows)
    figure = Figure(figsize=(0.9 + 1.55 * (len(results) + 1), 1.0 + 1.62 * len(rows)))
    panels = figure.subplots(len(rows), len(results) + 1, squeeze=False)
    for i, row in zip(rows, panels, strict=True):
        picture = images[i]
        row[0].imshow(np.asarray(picture))
        row[0].set_ylabel(_image_label(results[0], i), fontsize=8)
        for result, axes in zip(results, row[1:], strict=True):
            _overlay(axes, picture, result, i)
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    panels[0][0].set_title("image", fontsize=8)
    for result, axes in zip(results, panels[0][1:], strict=True):
        axes.set_title(f"{model_label(result.model)}\n{_label(result.method)}", fontsize=8)
    _legends(figure, panels, results)
    return figure


def _check(results: Sequence[Attribution], images: Images, rows: Sequence[int]) -> None:
    if not results:
        raise MeasureError("give at least one attribution to draw")
    if any(r.ids != tuple(images.ids) for r in results):
        raise MeasureError("the attributions are of other images than those that were given")
    if any(not 0 <= i < len(images) for i in rows):
        raise MeasureError(f"indices are 0 to {len(images) - 1}, not {list(rows)}")


def _image_label(result: Attribution, i: int) -> str:
    name = result.target_names[i] if result.target_names else f"class {result.targets[i]}"
    return plain(name if len(name) <= 18 else name[:17] + "…")


def _label(method: str) -> str:
    return _METHOD_LABELS.get(method, method)


def _overlay(axes: Axes, picture: Image.Image, result: Attribution, i: int) -> None:
    grey = np.asarray(picture.convert("L"))
    axes.imshow(grey, cmap="gray", vmin=-160, vmax=255)
    box = crop_box(picture.size, result.maps.shape[1:], result.crop_pct)
    axes.imshow(coloured(result.maps[i], result.signed), extent=box, interpolation="nearest", zorder=2)
    # The overlay must not move the limits of the image.
    axes.set(xlim=(-0.5, picture.width - 0.5), ylim=(picture.height - 0.5, -0.5))
    if result.crop_pct < 1 or picture.width * result.maps.shape[1] != picture.height * result.maps.shape[2]:
        left, right, bottom, top = box
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="black", linewidth=0.6, zorder=3))


def crop_box(size: tuple[int, int], entered: tuple[int, ...], crop_pct: float) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) in pixels of an image of `size` (width, height) of what entered the network as [H, W] pixels:
    timm's centre crop after the shorter side was resized to H / crop_pct."""
    scale = int(min(entered) / crop_pct) / min(size)
    half = [n / scale / 2 for n in entered]
    x, y = size[0] / 2 - 0.5, size[1] / 2 - 0.5
    return x - half[1], x + half[1], y + half[0], y - half[0]


def coloured(values: np.ndarray, signed: bool) -> np.ndarray:
    """A map [H, W] as colours with opacity [H, W, 4]: diverging around zero where signed, else from zero to the largest."""
    limit = np.quantile(np.abs(values), _QUANTILE) or np.abs(values).max() or 1.0
    share = np.clip(values / limit, -1, 1)
    colours: np.ndarray = mpl.colormaps[DIVERGING if signed else SEQUENTIAL]((share + 1) / 2 if signed else share)
    # Small values are faint, so that the image shows through where a map says nothing.
    colours[..., 3] = 0.95 * np.sqrt(np.abs(share)) if signed else 0.25 + 0.65 * np.abs(share)
    return colours


def _legends(figure: Figure, panels: np.ndarray, results: Sequence[Attribution]) -> None:
    kinds = {r.signed for r in results}
    if True in kinds:
        _bar(figure, panels, DIVERGING, Normalize(-1, 1), "signed methods: against (−) or for (+) the class")
    if False in kinds:
        _bar(figure, panels, SEQUENTIAL, Normalize(0, 1), "methods without sign: how much a pixel counts")


def _bar(figure: Figure, panels: np.ndarray, colours: str, scale: Normalize, label: str) -> None:
    bar = figure.colorbar(
        ScalarMappable(scale, colours), ax=list(panels.ravel()), location="bottom", shrink=0.6, aspect=45, pad=0.02
    )
    bar.set_label(f"{label}; 1: 99 % quantile of the map", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _method_style(i: int) -> dict[str, Any]:
    # Grey is the null's.
    colours = [c for c in COLOURS if c != GREY]
    return {"color": colours[i % len(colours)], "marker": MARKERS[i % len(MARKERS)], "markevery": 2}


@styled
def perturbation_figure(results: Sequence[PerturbationCurves]) -> Figure:
    """Deletion and insertion: probability of the class against the share of patches, a row a network, mean over images with its
    95 % interval, and random orders in grey."""
    methods = list(dict.fromkeys(name for r in results for name in r.methods))
    figure = Figure(figsize=(9.5, 0.9 + 2.9 * len(results)))
    panels = figure.subplots(len(results), 2, squeeze=False, sharex=True)
    for result, row in zip(results, panels, strict=True):
        for axes, game in zip(row, ("deletion", "insertion"), strict=True):
            _draw_game(axes, result, game, methods)
            good = "lower is better" if game == "deletion" else "higher is better"
            axes.set_title(f"{model_label(result.model)} · {game} ({good})")
        row[0].set_ylabel("probability of the class")
    patches = " or ".join(dict.fromkeys(f"{r.grid[0]}×{r.grid[1]}" for r in results))
    for axes, word in zip(panels[-1], ("replaced by the baseline", "put back"), strict=True):
        axes.set_xlabel(f"share of the {patches} patches {word}")
    handles = {text: handle for axes in panels.ravel() for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    return figure


def _draw_game(axes: Axes, result: PerturbationCurves, game: str, methods: Sequence[str]) -> None:
    random = getattr(result, f"random_{game}").mean(0)
    _draw_curve(axes, result.fractions, random, "random order", {"color": GREY, "linestyle": "--"})
    for name, curves in zip(result.methods, getattr(result, game), strict=True):
        _draw_curve(axes, result.fractions, curves, _label(name), _method_style(methods.index(name)))
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.03))


def _draw_curve(axes: Axes, x: np.ndarray, curves: np.ndarray, label: str, style: dict[str, Any]) -> None:
    """Mean over images of curves [image, step] with a band of its interval."""
    mean, low, high = mean_interval(curves.T)
    axes.plot(x, mean, label=label, **style)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.1, linewidth=0)


@styled
def randomisation_figure(results: Sequence[RandomisationCheck]) -> Figure:
    """Likeness of maps to those of the trained network while its weights are drawn anew from the head towards the stem, a panel a
    network; dotted: maps of different images by the trained network."""
    models = list(dict.fromkeys(r.model.name for r in results))
    methods = list(dict.fromkeys(r.method for r in results))
    figure = Figure(figsize=(max(6.5, 3.9 * len(models)), 4.0))
    panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    for result in results:
        axes = panels[models.index(result.model.name)]
        style = {**_method_style(methods.index(result.method)), "markevery": 1}
        _draw_curve(axes, np.arange(len(result.stages)), result.spearman.T, _label(result.method), style)
        axes.axhline(np.nanmean(result.null_spearman), color=style["color"], linestyle=":", linewidth=1.1)
        axes.set_title(model_label(result.model))
        axes.set_xticks(np.arange(len(result.stages)), [_stage(s) for s in result.stages], rotation=90, fontsize=7)
        axes.set_xlabel("drawn anew last")
    panels[0].set_ylabel("rank correlation with the trained\nnetwork's map (patch sums)")
    handles = {text: h for axes in panels for h, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    handles["other images, same network"] = Line2D([], [], color=GREY, linestyle=":", linewidth=1.1)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    return figure


def _stage(path: str) -> str:
    return "stem, rest" if path == "stem and the rest" else plain(path)


@styled
def agreement_figure(result: Agreement) -> Figure:
    """Mean rank correlation of patch sums between every two attributions of the same images; grey numbers are no higher than 95 %
    of random pairings of images."""
    labels = _agreement_labels(result)
    n = len(labels)
    figure = Figure(figsize=(2.9 + 0.62 * n, 2.3 + 0.62 * n))
    axes = figure.subplots()
    mean = result.mean
    shown = axes.imshow(mean, cmap=DIVERGING, vmin=-1, vmax=1)
    for i in range(n):
        for j in range(n):
            if i != j and np.isfinite(mean[i, j]):
                _write(axes, j, i, mean[i, j], bool(mean[i, j] > max(result.null95[i, j], 0)))
    axes.set_xticks(range(n), labels, rotation=90)
    axes.set_yticks(range(n), labels)
    kind = "magnitudes" if result.magnitudes else "values"
    bar = figure.colorbar(shown, ax=axes, shrink=0.8)
    bar.set_label(f"rank correlation of {kind} over {result.grid[0]}×{result.grid[1]} patches")
    axes.set_title(f"Agreement, mean of {len(result.ids)} images")
    axes.set_xlabel("grey numbers: within the null of other images' maps", fontsize=8)
    return figure


def _write(axes: Axes, x: int, y: int, value: float, above: bool) -> None:
    dark = abs(value) > 0.6
    colour = "white" if dark else ("black" if above else "#8A8A8A")
    axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour, fontweight="bold" if above else "normal")


def _agreement_labels(result: Agreement) -> list[str]:
    one_model = len({m.name for m in result.models}) == 1
    one_method = len(set(result.methods)) == 1
    if one_method and not one_model:
        return [model_label(m) for m in result.models]
    if one_model:
        return [_label(name) for name in result.methods]
    return [f"{model_label(m)} · {_label(name)}" for m, name in zip(result.models, result.methods, strict=True)]
