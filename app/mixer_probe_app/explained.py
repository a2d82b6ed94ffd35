"""The page Image, parts Predictions, Attributions and Layers."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import matplotlib as mpl
import numpy as np
import pandas as pd
import streamlit as st
from matplotlib.figure import Figure
from PIL import Image

import mixer_probe as mp
from mixer_probe.attribution import METHODS, Attribution
from mixer_probe.attribution.figures import attribution_overlays, overlay_image
from mixer_probe.attribution.methods import method_label
from mixer_probe.images import Images
from mixer_probe_app import held, seen, show
from mixer_probe_app.analyses import key_of
from mixer_probe_app.choice import RUN, shown
from mixer_probe_app.messages import guarded, join, plain
from mixer_probe_app.one_image import (
    Classes,
    Look,
    Neighbours,
    at_depth,
    bars,
    classes_of,
    colours,
    curves,
    look,
    neighbours,
    says_nothing,
    sizes,
    top,
)
from mixer_probe_app.pictures import Picture, enlarged, gallery, thumbnails
from mixer_probe_app.store import made, model

# A few passes of the network; the others take a hundred or more.
QUICK = ("gradcam", "saliency", "input_x_gradient", "deeplift", "attention_rollout", "gradient_attention")
PREDICTED, TRUE = "predicted", "true"
_ONE, _ALL = "one method", "all quick methods"
_NEAREST = 10
_ZERO_HEAD = "All logits are equal: the head is zero, as in timm's untrained Mixers."


# -- predictions -------------------------------------------------------------------------------------------------------------


def show_predictions(names: Sequence[str], picture: Picture) -> None:
    """The five likeliest classes of every network, side by side."""
    fits = []
    for place, name in zip(st.columns(len(names)), names, strict=True):
        with place, guarded():
            fits.append(_predictions(name, picture))
    known = [fit for fit in fits if fit is not None]
    if not known:
        return
    true = f"Green: true class, {plain(picture.class_name)}. " if any(known) else ""
    others = (
        ""
        if all(known) or picture.label is None
        else "Blue bars: the label of the image is not among the classes of that network. "
    )
    st.caption(f"{true}{others}Softmax over all classes of a network; the remaining probability is on classes not shown.")


def _predictions(name: str, picture: Picture) -> bool | None:
    """Draws them; whether the label of the image is among the classes, None where nothing is predicted."""
    st.subheader(plain(shown(name)))
    found = look(name, picture)
    if found.logits is None:
        st.info("This network has no classifier, so it has no predictions. See Attributions and Layers.", icon=":material/info:")
        return None
    classes = _classes(name, picture)
    frame = top(name, found, classes)
    show.chart(bars(frame), f"predictions {name} {picture.title}", frame, key=f"img top {name}")
    if says_nothing(found):
        st.caption(_ZERO_HEAD)
    st.markdown(_verdict(found, classes, picture))
    return classes.true is not None


def _classes(name: str, picture: Picture) -> Classes:
    return classes_of(model(name), picture.image)


def _verdict(found: Look, classes: Classes, picture: Picture) -> str:
    best = int(np.argmax(found.probabilities))
    said = f"Prediction: **{plain(classes.name(best))}** ({100 * found.probabilities[best]:.1f} %)"
    if classes.true is None:
        which = (
            "is unknown" if picture.label is None else f"({plain(picture.class_name or picture.label)}) is not among its classes"
        )
        return f"{said}; the true class {which}."
    return f"{said}, {'correct' if best == classes.true else f'wrong (true class: {plain(picture.class_name)})'}."


# -- attributions ------------------------------------------------------------------------------------------------------------


def show_attributions(names: Sequence[str], picture: Picture) -> None:
    """Which pixels contribute to a class: one method for all networks, or all quick methods."""
    allowed = {}
    for name in names:
        with guarded():
            allowed[name] = _allowed(name)
    if not allowed:
        return
    first, second, third = st.columns([5, 4, 5], vertical_alignment="bottom")
    view = held.segments(first, "Show", "img-view", (_ONE, _ALL), label_visibility="collapsed")
    union = [method for method in METHODS if any(method in each for each in allowed.values())]
    target = _target(third, list(allowed), picture)
    if view == _ALL:
        second.caption(f"{join(method_label(m) for m in QUICK if m in union)}.")
        _all_methods(allowed, picture, target)
        return
    method = held.select(
        second, "Method", "img-method", union, "gradcam" if "gradcam" in union else union[0], format_func=_offered
    )
    _one_method(names, allowed, picture, method, target)


def _allowed(name: str) -> tuple[str, ...]:
    network = model(name)
    return made("allowed", key_of(network), "Inspecting the network", lambda: mp.attribution.allowed_methods(network))


def _offered(method: str) -> str:
    return method_label(method) if method in QUICK else f"{method_label(method)} (slower)"


def _target(place: st.delta_generator.DeltaGenerator, names: Sequence[str], picture: Picture) -> str:
    """What is explained: the class that each network predicts, the true one, or one that all of them have."""
    classes = [_classes(name, picture) for name in names]
    same = len({each.names for each in classes}) == 1 and bool(classes[0].names)
    options = [PREDICTED]
    if all(each.true is not None for each in classes):
        options.append(TRUE)
    if same:
        options += [str(i) for i in range(len(classes[0].names))]
    words = {PREDICTED: "each network's predicted class", TRUE: f"the true class, {picture.class_name or picture.label}"}
    text = lambda option: words.get(option) or classes[0].name(int(option))  # noqa: E731
    return held.select(place, "Explained", "img-target", options, PREDICTED, format_func=text)


def _index(name: str, target: str, picture: Picture) -> int | None:
    return None if target == PREDICTED else _classes(name, picture).true if target == TRUE else int(target)


def _attribution(name: str, picture: Picture, method: str, target: str) -> Attribution:
    network, one, wanted = model(name), picture.image, _index(name, target, picture)
    key = (key_of(network), picture.key, method, wanted)
    title = f"{shown(name)}: {method_label(method)}"
    found = made("attribution", key, title, lambda: mp.attribute(network, one, method, target=wanted))
    code = f"mp.attribute(models[{name!r}], {picture.code}, {method!r}, target={wanted})"
    label = f"{shown(name)}: {method_label(method)} of {picture.title}, {target}"
    seen.saw("Image", label, "attribution", key, code, [name], picture.setup)
    return found


def _one_method(names: Sequence[str], allowed: dict[str, tuple[str, ...]], picture: Picture, method: str, target: str) -> None:
    shown_image = enlarged(picture.pixels)
    places = st.columns(1 + len(names))
    with places[0]:
        st.markdown("**Image**")
        st.image(shown_image, width="stretch", output_format="PNG")
    results = []
    for place, name in zip(places[1:], names, strict=True):
        with place, guarded():
            st.markdown(f"**{plain(shown(name))}**")
            if name not in allowed:
                continue
            if method not in allowed[name]:
                works = join(method_label(m) for m in allowed[name])
                st.info(f"{method_label(method)} is not available for this network; available: {works}.", icon=":material/info:")
                continue
            result = _attribution(name, picture, method, target)
            results.append(result)
            st.image(overlay_image(shown_image, result, 0), width="stretch", output_format="PNG")
            st.caption(_about(name, result, picture))
    if results:
        _how_to_read(results[0], method)
        show.downloads(f"{method} {picture.title} {target}", pd.concat([r.to_frame() for r in results], ignore_index=True))


def _about(name: str, result: Attribution, picture: Picture) -> str:
    classes = _classes(name, picture)
    text = f"Target: {plain(classes.name(int(result.targets[0])))}, logit {result.logit[0]:.2f}."
    if result.targets[0] != result.predicted[0]:
        text += f" Predicted: {plain(classes.name(int(result.predicted[0])))}."
    if np.isfinite(result.convergence_delta[0]):
        text += f" Relative deviation from the logit difference: {100 * result.relative_delta[0]:.2g} %."
    return text + (f" Layer {plain(result.layer.name)}." if result.layer else "")


def _how_to_read(result: Attribution, method: str) -> None:
    if result.signed:
        _colour_bar(mpl.colormaps["RdBu_r"], "against the target class", "for the target class")
    else:
        _colour_bar(mpl.colormaps["viridis"], "low attribution", "high attribution")
    st.caption(
        f"{method_label(method)[0].upper()}{plain(method_label(method)[1:])}: {plain(METHODS[method].text)} "
        f"({plain(METHODS[method].source)}). Full colour: 99th percentile of each map. Frame: the region that the network "
        "receives. "
        "Check a map with deletion curves and the model-randomisation sanity check before interpreting it."
    )


def _colour_bar(colours_of: mpl.colors.Colormap, low: str, high: str) -> None:
    strip = np.uint8(255 * colours_of(np.linspace(0, 1, 256))[None, :, :3]).repeat(10, axis=0)
    left, middle, right = st.columns([2, 3, 2], vertical_alignment="center")
    left.markdown(f":small[{low}]", text_alignment="right")
    middle.image(Image.fromarray(strip), width="stretch", output_format="PNG")
    right.markdown(f":small[{high}]")


def _all_methods(allowed: dict[str, tuple[str, ...]], picture: Picture, target: str) -> None:
    results = []
    for name, methods in allowed.items():
        for method in QUICK:
            with guarded():
                if method in methods:
                    results.append(_attribution(name, picture, method, target))
    if not results:
        return
    one = picture.image
    key = ("overlays", picture.key, target, tuple((r.model.fingerprint, r.method) for r in results))
    show.figure(
        lambda: _overlays(results, one),
        key,
        f"attributions {picture.title} {target}",
        "Signed methods: evidence for (red) or against (blue) the target class; unsigned methods: yellow marks the highest "
        "attribution. "
        "Each map is scaled to its own 99th percentile. Blank panels: the method is not available for that network.",
        pd.concat([r.to_frame() for r in results], ignore_index=True),
    )


def _overlays(results: Sequence[Attribution], one: Images) -> Figure:
    """With room above for headings of two lines, which the layout does not see over pictures of a fixed shape."""
    figure = attribution_overlays(results, one)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, 0, 1, 1 - 0.25 / figure.get_figheight()))
    return figure


# -- layers ------------------------------------------------------------------------------------------------------------------


def show_layers(names: Sequence[str], picture: Picture, images: Images | None) -> None:
    """Sizes of activations by depth, and the nearest images at a depth."""
    st.header("Activation norms")
    _sizes(names, picture)
    st.header("Nearest neighbours by depth")
    if images is None:
        st.info("No images to compare with. Choose images in the sidebar.", icon=":material/info:")
        return
    with guarded():
        _nearest(names, picture, images)


def _sizes(names: Sequence[str], picture: Picture) -> None:
    looks = {}
    for name in names:
        if name.startswith(RUN):
            st.info(
                f"{plain(shown(name))} contains means over positions only, so activation norms are not available.",
                icon=":material/info:",
            )
            continue
        with guarded():
            looks[name] = look(name, picture)
    if not looks:
        return
    frame = pd.concat([sizes(name, found) for name, found in looks.items()], ignore_index=True)
    tips = {"largest": "maximum over positions", "positions": "positions", "channels": "channels"}
    drawn = curves(frame, "norm", "mean 2-norm over positions (log scale)", colours(names), tips, log=True)
    show.chart(drawn, f"norms {picture.title}", frame, key="img norms")
    st.caption(
        "2-norm over channels of the activations after every block, averaged over positions. Skip connections accumulate, so it "
        "grows with depth; a normalisation layer after a stage resets it."
    )


def _nearest(names: Sequence[str], picture: Picture, images: Images) -> None:
    found: dict[str, Neighbours] = {}
    for name in names:
        with guarded():
            found[name] = neighbours(name, picture, images, _NEAREST)
    if not found:
        return
    depths = sorted({round(100 * layer.depth) for each in found.values() for layer in each.layers})
    text = lambda depth: f"{depth} %"  # noqa: E731
    depth = held.steps(st, "Relative depth (100 %: after the last block)", "img-depth", depths, depths[-1], format_func=text)
    for name, each in found.items():
        with guarded():
            _row_of(name, each, at_depth(each.layers, depth / 100), picture, images)
    st.caption(
        "Nearest first, by cosine similarity of representations averaged over positions and centred over the chosen images. "
        "Hover for "
        "the cosine, click to select an image. Bright regions of the map on the left have large activations."
    )
    if picture.label is not None and images.n_classes > 1:
        _same_class(names, found, picture, images)


def _row_of(name: str, each: Neighbours, at: int, picture: Picture, images: Images) -> None:
    layer = each.layers[at]
    places = [int(p) for p in each.places[at]]
    frame = thumbnails(images, places, (images.name, images.record.fingerprint)).assign(cosine=each.cosines[at])
    frame["cosine"] = frame["cosine"].map("{:.3f}".format)
    same = _share(each, at, picture, images)
    text = f"**{plain(shown(name))}**, {plain(layer.name)} (depth {100 * layer.depth:.0f} %)"
    st.markdown(
        text + (f": {same} of {len(places)} share its class" if picture.label is not None and images.n_classes > 1 else "")
    )
    left, right = st.columns([1, 8], vertical_alignment="center")
    with left:
        _norm_map(name, picture, at)
    with right:
        tips = (
            {"name": "image", "class": "class", "cosine": "cosine"}
            if images.class_names
            else {"name": "image", "cosine": "cosine"}
        )
        gallery(frame, tips, f"near {name} {layer.name} {held.recall('img')}")


def _norm_map(name: str, picture: Picture, at: int) -> None:
    if name.startswith(RUN):
        return
    norm = look(name, picture).norms[at]
    span = float(np.ptp(norm)) or 1.0
    colour = np.uint8(255 * mpl.colormaps["viridis"]((norm - norm.min()) / span)[..., :3])
    st.image(enlarged(Image.fromarray(colour), 128), width="stretch", output_format="PNG")


def _share(each: Neighbours, at: int, picture: Picture, images: Images) -> int:
    labels = images.labels
    return 0 if labels is None else int((labels[each.places[at]] == picture.label).sum())


def _same_class(names: Sequence[str], found: dict[str, Neighbours], picture: Picture, images: Images) -> None:
    rows = [
        (shown(name), layer.name, layer.depth, _share(each, at, picture, images) / len(each.places[at]), len(each.places[at]))
        for name, each in found.items()
        for at, layer in enumerate(each.layers)
    ]
    frame = pd.DataFrame(rows, columns=["network", "layer", "depth", "share", "k"])
    drawn: alt.LayerChart = curves(
        frame, "share", "fraction of neighbours of the same class", colours(names), {"k": "of the k nearest"}
    )
    show.chart(drawn, f"neighbours of its class {picture.title}", frame, key="img same class")
    st.caption(
        f"Fraction of the {_NEAREST} nearest neighbours among the {len(images)} chosen images with the same class, by depth."
    )
