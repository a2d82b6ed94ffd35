"""The page Image, parts Predictions, Attributions and Layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

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
from mixer_probe.core.words import join
from mixer_probe.images import Images
from mixer_probe.invariance import ImageResponse, NearestImages
from mixer_probe_app import charts, show, url_state
from mixer_probe_app.calls import key_of, network
from mixer_probe_app.choice import RUN, shown
from mixer_probe_app.history import Given, result_of
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.one_image import ZERO_HEAD, Classes, bars, classes_of, look, neighbours, top
from mixer_probe_app.pictures import Picture, enlarged, gallery, thumbnails
from mixer_probe_app.store import cached, model

# A few passes of the network; the others take a hundred or more.
QUICK = (
    "gradcam",
    "saliency",
    "input_x_gradient",
    "deeplift",
    "attention_rollout",
    "gradient_attention",
)
PREDICTED, TRUE = "predicted", "true"
_ONE, _ALL = "one method", "all quick methods"
_NEAREST = 10


# -- predictions -----------------------------------------------------------------------------------


def show_predictions(names: Sequence[str], picture: Picture, images: Images | None) -> None:
    """The five classes of highest probability of every network, side by side."""
    known = []
    for place, name in zip(st.columns(len(names)), names, strict=True):
        with place, guarded():
            st.subheader(plain(shown(name)))
            found, classes = look(name, picture), classes_of(model(name), picture.image)
            if found.logits is None:
                none = (
                    "This network has no classifier, so it has no predictions. See Attributions "
                    "and Layers."
                )
                st.info(none, icon=":material/info:")
                continue
            frame = top(name, found, classes)
            show.chart(
                bars(frame), f"predictions {name} {picture.title}", frame, key=f"img top {name}"
            )
            if found.has_zero_head:
                st.caption(ZERO_HEAD)
            st.markdown(verdict(found, classes, picture))
            known.append(classes.true is not None)
    if not known:
        return
    true = f"Green: true class, {plain(picture.class_name)}. " if any(known) else ""
    others = ""
    if not all(known) and picture.label is not None:
        others = "Blue bars: the label of the image is not among the classes of that network. "
    st.caption(
        f"{true}{others}Softmax over all classes of a network; the remaining probability is on "
        "classes not shown."
    )


def verdict(found: ImageResponse, classes: Classes, picture: Picture) -> str:
    """The prediction and whether it is correct."""
    best = found.prediction
    said = f"Prediction: **{plain(classes.name(best))}** ({100 * found.probabilities[best]:.1f} %)"
    if classes.true is not None:
        wrong = f"wrong (true class: {plain(picture.class_name)})"
        return f"{said}, {'correct' if best == classes.true else wrong}."
    if picture.label is None:
        return f"{said}; the true class is unknown."
    return (
        f"{said}; the true class ({plain(picture.class_name or picture.label)}) is not among its "
        "classes."
    )


# -- attributions ----------------------------------------------------------------------------------


def show_attributions(names: Sequence[str], picture: Picture, images: Images | None) -> None:
    """Which pixels contribute to a class: one method for all networks, or all quick methods."""
    allowed: dict[str, tuple[str, ...]] = {}
    for name in names:
        with guarded():
            inspect = partial(mp.attribution.allowed_methods, model(name))
            allowed[name] = cached(
                "allowed", key_of(model(name)), "Inspecting the network", inspect
            )
    if not allowed:
        return
    first, second, third = st.columns([5, 4, 5], vertical_alignment="bottom")
    view = url_state.choose(
        first.segmented_control, "Show", "img-view", (_ONE, _ALL), label_visibility="collapsed"
    )
    union = [method for method in METHODS if any(method in each for each in allowed.values())]
    classes = {name: classes_of(model(name), picture.image) for name in allowed}
    target = choose_target(third, list(classes.values()), picture)
    if view == _ALL:
        second.caption(f"{join(method_label(m) for m in QUICK if m in union)}.")
        show_all_methods(allowed, classes, picture, target)
        return
    label = lambda m: method_label(m) + ("" if m in QUICK else " (slower)")  # noqa: E731
    usual = "gradcam" if "gradcam" in union else union[0]
    method = url_state.choose(
        second.selectbox, "Method", "img-method", union, usual, format_func=label
    )
    show_method(names, allowed, classes, picture, method, target)


def choose_target(
    place: st.delta_generator.DeltaGenerator, classes: Sequence[Classes], picture: Picture
) -> str:
    """The target class: that which each network predicts, the true one, or one that all of them
    have."""
    words = {PREDICTED: "each network's predicted class"}
    if all(each.true is not None for each in classes):
        words[TRUE] = f"the true class, {picture.class_name or picture.label}"
    if len({each.names for each in classes}) == 1:
        words |= {str(i): name for i, name in enumerate(classes[0].names)}
    return url_state.choose(place.selectbox, "Explained", "img-target", words, PREDICTED)


def attribution(
    name: str, classes: Classes, picture: Picture, method: str, target: str
) -> Attribution:
    """The attribution of the image to the target class."""
    wanted = None if target == PREDICTED else classes.true if target == TRUE else int(target)
    label = f"{shown(name)}: {method_label(method)} of {picture.title}, {target}"
    one = Given(lambda: picture.image, picture.key, picture.code, setup=picture.setup)
    found: Attribution = result_of(
        "Image", label, "attribution", "attribute", network(name), one, method, target=wanted
    )
    return found


def show_method(
    names: Sequence[str],
    allowed: dict[str, tuple[str, ...]],
    classes: dict[str, Classes],
    picture: Picture,
    method: str,
    target: str,
) -> None:
    """The maps of one method for all networks beside the image, with the scale of their colours."""
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
                st.info(
                    f"{method_label(method)} is not available for this network; available: "
                    f"{works}.",
                    icon=":material/info:",
                )
                continue
            result = attribution(name, classes[name], picture, method, target)
            results.append(result)
            st.image(overlay_image(shown_image, result, 0), width="stretch", output_format="PNG")
            text = (
                f"Target: {plain(classes[name].name(int(result.targets[0])))}, logit "
                f"{result.logit[0]:.2f}."
            )
            if result.targets[0] != result.predicted[0]:
                text += f" Predicted: {plain(classes[name].name(int(result.predicted[0])))}."
            if np.isfinite(result.convergence_delta[0]):
                text += (
                    " Relative deviation from the logit difference: "
                    f"{100 * result.relative_delta[0]:.2g} %."
                )
            st.caption(text + (f" Layer {plain(result.layer.name)}." if result.layer else ""))
    if not results:
        return
    signed = results[0].signed
    scale = mpl.colormaps["RdBu_r" if signed else "viridis"](np.linspace(0, 1, 256))
    strip = np.uint8(255 * scale[None, :, :3]).repeat(10, axis=0)
    low, high = (
        ("against the target class", "for the target class")
        if signed
        else ("low attribution", "high attribution")
    )
    left, middle, right = st.columns([2, 3, 2], vertical_alignment="center")
    left.markdown(f":small[{low}]", text_alignment="right")
    middle.image(Image.fromarray(strip), width="stretch", output_format="PNG")
    right.markdown(f":small[{high}]")
    st.caption(
        f"{method_label(method)[0].upper()}{plain(method_label(method)[1:])}: "
        f"{plain(METHODS[method].text)} ({plain(METHODS[method].source)}). Full colour: 99th "
        "percentile of each map. Frame: the region that the network receives. Check a map with "
        "deletion curves and the model-randomisation sanity check before interpreting it."
    )
    show.downloads(
        f"{method} {picture.title} {target}",
        pd.concat([r.to_frame() for r in results], ignore_index=True),
    )


def show_all_methods(
    allowed: dict[str, tuple[str, ...]], classes: dict[str, Classes], picture: Picture, target: str
) -> None:
    """The maps of all quick methods as one figure."""
    results: list[Attribution] = []
    for name, methods in allowed.items():
        for method in QUICK:
            with guarded():
                if method in methods:
                    results.append(attribution(name, classes[name], picture, method, target))
    if not results:
        return
    one = picture.image

    def draw() -> Figure:
        """With room above for headings of two lines, which the layout does not see over pictures of
        a fixed shape."""
        drawn = attribution_overlays(results, one)
        engine = drawn.get_layout_engine()
        if engine is not None:
            engine.set(rect=(0, 0, 1, 1 - 0.25 / drawn.get_figheight()))
        return drawn

    show.figure(
        draw,
        ("overlays", picture.key, target, tuple((r.model.fingerprint, r.method) for r in results)),
        f"attributions {picture.title} {target}",
        "Signed methods: evidence for (red) or against (blue) the target class; unsigned methods: "
        "yellow marks the highest attribution. Each map is scaled to its own 99th percentile. "
        "Blank panels: the method is not available for that network.",
        pd.concat([r.to_frame() for r in results], ignore_index=True),
    )


# -- layers ----------------------------------------------------------------------------------------


def show_layers(names: Sequence[str], picture: Picture, images: Images | None) -> None:
    """Norms of activations by depth, and the nearest images at a depth."""
    st.header("Activation norms")
    looks = {}
    for name in names:
        if name.startswith(RUN):
            none = "contains means over positions only, so activation norms are not available."
            st.info(f"{plain(shown(name))} {none}", icon=":material/info:")
            continue
        with guarded():
            looks[name] = look(name, picture)
    if looks:
        frame = _by_network({name: found.norm_frame() for name, found in looks.items()})
        more = {
            "largest:Q .4~g": "maximum over positions",
            "positions:Q": "positions",
            "channels:Q": "channels",
        }
        drawn = charts.curves(
            frame, "norm", "mean 2-norm over positions (log scale)", log=True, more=more
        )
        show.chart(drawn, f"norms {picture.title}", frame, key="img norms")
        st.caption(
            "2-norm over channels of the activations after every block, averaged over positions. "
            "Skip connections accumulate, so it grows with depth; a normalisation layer after a "
            "stage resets it."
        )
    st.header("Nearest neighbours by depth")
    if images is None:
        st.info("No images to compare with. Choose images in the sidebar.", icon=":material/info:")
        return
    with guarded():
        show_neighbours(names, looks, picture, images)


def _by_network(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The tables of all networks, one below the other."""
    parts = [
        frame.assign(network=shown(name))[["network", *frame.columns]]
        for name, frame in frames.items()
    ]
    return pd.concat(parts, ignore_index=True)


def show_neighbours(
    names: Sequence[str], looks: dict[str, ImageResponse], picture: Picture, images: Images
) -> None:
    """The nearest images at one depth in every network, and the fraction of the same class at all
    depths."""
    found: dict[str, NearestImages] = {}
    for name in names:
        with guarded():
            found[name] = neighbours(name, picture, images, _NEAREST)
    if not found:
        return
    label, labels = picture.label, images.labels if images.n_classes > 1 else None
    labelled = label is not None and labels is not None
    same_class = (
        {name: each.class_frame(label, labels) for name, each in found.items()} if labelled else {}
    )
    depths = sorted({round(100 * layer.depth) for each in found.values() for layer in each.layers})
    title = "Relative depth (100 %: after the last block)"
    depth = url_state.choose(
        st.select_slider,
        title,
        "img-depth",
        depths,
        depths[-1],
        format_func=lambda depth: f"{depth} %",
    )
    for name, each in found.items():
        with guarded():
            at = each.at(depth / 100)
            layer, places = each.layers[at], each.places[at].tolist()
            frame = thumbnails(images, places, (images.name, images.record.fingerprint)).assign(
                cosine=each.cosines[at]
            )
            frame["cosine"] = frame["cosine"].map("{:.3f}".format)
            same = (
                f": {same_class[name]['same'][at]} of {len(places)} share its class"
                if labelled
                else ""
            )
            st.markdown(
                f"**{plain(shown(name))}**, {plain(layer.name)} (depth {100 * layer.depth:.0f} "
                f"%){same}"
            )
            left, right = st.columns([1, 8], vertical_alignment="center")
            if name in looks:
                norm = looks[name].norms[at]
                scaled = (norm - norm.min()) / (float(np.ptp(norm)) or 1.0)
                colour = np.uint8(255 * mpl.colormaps["viridis"](scaled)[..., :3])
                left.image(
                    enlarged(Image.fromarray(colour), 128), width="stretch", output_format="PNG"
                )
            tips = (
                {"name": "image"}
                | ({"class": "class"} if images.class_names else {})
                | {"cosine": "cosine"}
            )
            with right:
                gallery(frame, tips, f"near {name} {layer.name} {url_state.get('img')}")
    st.caption(
        "Nearest first, by cosine similarity of representations averaged over positions and "
        "centred over the chosen images. Hover for the cosine, click to select an image. Bright "
        "regions of the map on the left have large activations."
    )
    if not labelled:
        return
    frame = _by_network(same_class)
    drawn = charts.curves(
        frame,
        "fraction",
        "fraction of neighbours of the same class",
        more={"k:Q": "of the k nearest"},
    )
    show.chart(drawn, f"neighbours of its class {picture.title}", frame, key="img same class")
    st.caption(
        f"Fraction of the {_NEAREST} nearest neighbours among the {len(images)} chosen images with "
        "the same class, by depth."
    )
