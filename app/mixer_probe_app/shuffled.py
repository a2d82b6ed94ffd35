"""The page Image, part Shuffle: a distorted image, the predictions of every network, how far layers
move, and disagreements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from PIL import Image

from mixer_probe.core.words import join
from mixer_probe.images import (
    Distortion,
    HighPass,
    Images,
    LowPass,
    PatchDrop,
    PatchShuffle,
    PixelShuffle,
    Shift,
    paper_shuffle,
)
from mixer_probe.images.distortions import dividing_grids
from mixer_probe.invariance import (
    DistortionAccuracy,
    ImageResponse,
    RepresentationShift,
    disagreements,
    distortion_examples,
    predictions,
)
from mixer_probe.models import Model
from mixer_probe_app import calls, charts, data, show, url_state
from mixer_probe_app.calls import BATCH, key_of, key_of_images, loaded
from mixer_probe_app.choice import shown
from mixer_probe_app.history import Given, result_of
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.one_image import (
    AFTER,
    BEFORE,
    TOP,
    ZERO_HEAD,
    Classes,
    bars,
    classes_of,
    look,
    moves,
    top,
)
from mixer_probe_app.pictures import Picture, as_uri, enlarged, gallery, thumb
from mixer_probe_app.store import cached

KINDS = {
    "patches": "Patches shuffled",
    "pixels": "Pixels shuffled inside cells",
    "both": "Patches and pixels, fixed permutation",
    "drop": "Patches dropped",
    "shift": "Cyclic shift",
    "low": "Low-pass",
    "high": "High-pass",
}
_ABOUT = {
    "patches": (
        "The cells of the grid are permuted. Structure within cells is kept, structure across "
        "cells is lost."
    ),
    "pixels": (
        "Pixels within each cell are permuted. The layout is kept, texture within cells is lost; "
        "grid 1×1 shuffles all."
    ),
    "both": (
        "Cells, and the pixels within all cells, are permuted in one order for all images, as in "
        "Fig. 4 of the paper."
    ),
    "drop": "A fraction of the cells is set to the mean colour that each network subtracts.",
    "shift": "The image is shifted down and to the right, with wrap-around.",
    "low": "Only frequencies below the cutoff are kept (Gaussian filter).",
    "high": (
        "Only frequencies above the cutoff are kept, added to the mean colour that each network "
        "subtracts (Gaussian filter)."
    ),
}
_RANDOM = ("patches", "pixels", "both", "drop")
_PERCENTAGES = (10, 25, 50, 75, 90)
_MOST_SEEDS = 9999
ANY = "nobody"
# Permutations and bootstrap samples of the shift; twice as many take twice as long.
SAMPLES = 40
# Thumbnails of disagreements, in rows of ten.
_MOST_FOUND = 60
_BADGES = {
    (True, True): ("still correct", "green", ":material/check:"),
    (True, False): ("now incorrect", "red", ":material/close:"),
    (False, True): ("correct only when distorted", "blue", ":material/check:"),
    (False, False): ("incorrect before and after", "orange", ":material/close:"),
}


@dataclass(frozen=True)
class Setting:
    """A kind of distortion and its strength, before it meets a network."""

    kind: str
    strength: int
    grid: int
    seed: int

    def __str__(self) -> str:
        """For names of files."""
        return f"{self.kind} {self.strength} grid {self.grid} order {self.seed}"

    def of(self, network: Model) -> Distortion:
        """The distortion of images for this network, whose mean colour is the baseline."""
        makers = {
            "patches": lambda: PatchShuffle(self.grid, self.seed),
            "pixels": lambda: PixelShuffle(self.grid, self.seed),
            "both": lambda: paper_shuffle(self.grid, self.seed),
            "drop": lambda: PatchDrop(
                self.strength / 100, self.grid, self.seed, fill=network.input.mean_colour
            ),
            "shift": lambda: Shift(self.strength, self.strength),
            "low": lambda: LowPass(float(self.strength)),
            "high": lambda: HighPass(float(self.strength), level=network.input.mean_colour),
        }
        return makers[self.kind]()


def choose_setting(networks: Sequence[Model]) -> Setting | None:
    """The boxes for the distortion; None, with a sentence, where no grid divides the inputs of all
    networks."""
    sizes = [network.input.size[1:] for network in networks]
    smallest = min(min(size) for size in sizes)
    first, second, third, fourth = st.columns([3, 4, 2, 2], vertical_alignment="bottom")
    kind = url_state.choose(first.selectbox, "Distortion", "img-kind", KINDS)
    common = sorted(set.intersection(*(set(dividing_grids(*size)) for size in sizes)))
    grids = [
        g
        for g in common
        if (g > 1 or kind not in ("patches", "drop")) and (g < smallest or kind == "patches")
    ]
    if kind in _RANDOM and not grids:
        inputs = join(dict.fromkeys(f"{height}×{width} px" for height, width in sizes))
        st.info(
            f"No grid divides the inputs of all networks, {inputs}. Choose a shift or a filter.",
            icon=":material/info:",
        )
        return None
    near = lambda options, wanted: min(options, key=lambda option: abs(option - wanted))  # noqa: E731
    cells: Any = {"format_func": lambda grid: f"{grid}×{grid}"}
    name, slider = f"img-{kind}", second.select_slider
    powers = [2**k for k in range((smallest // 2).bit_length())]
    if kind == "drop":
        percent = lambda value: f"{value} %"  # noqa: E731
        strength = url_state.choose(
            slider, "Fraction of patches", name, _PERCENTAGES, 50, format_func=percent
        )
        grid = url_state.choose(
            third.selectbox, "Grid", "img-drop-grid", grids, near(grids, 8), **cells
        )
    elif kind in _RANDOM:
        strength = grid = url_state.choose(
            slider, "Grid of cells", name, grids, near(grids, 4), **cells
        )
    else:
        label = "Pixels down and right" if kind == "shift" else "Cutoff (cycles per image)"
        strength = grid = url_state.choose(slider, label, name, powers, near(powers, 4))
    seed = 0
    if kind in _RANDOM:
        seed = url_state.number(
            fourth, "Order", "img-seed", 0, _MOST_SEEDS, help="Random seed of the permutation."
        )
    st.caption(_ABOUT[kind])
    return Setting(kind, strength, grid, seed)


def show_shuffle(names: Sequence[str], picture: Picture, images: Images | None) -> None:
    """The whole part."""
    networks = loaded(names)
    chosen = choose_setting(list(networks.values())) if networks else None
    if chosen is None:
        return
    with guarded():
        show_before_and_after(networks, picture, chosen)
    if images is None:
        return
    st.header("Find images where the networks disagree")
    with guarded():
        show_disagreements(networks, images, chosen)
    st.header("How far the layers move")
    with guarded():
        options = ("this image", "all images")
        widget = st.segmented_control
        what = url_state.choose(
            widget, "Measured on", "img-moves", options, label_visibility="collapsed"
        )
        if what == options[0]:
            show_moves(networks, picture, images, chosen)
        else:
            show_shifts(networks, images, chosen)


# -- the image before and after --------------------------------------------------------------------


def show_before_and_after(networks: dict[str, Model], picture: Picture, chosen: Setting) -> None:
    """The plain and the distorted pixels, once for all networks that receive the same, and the
    predictions of each network."""
    left, right = st.columns([1, 1])
    groups: dict[str, list[str]] = {}
    for name, network in networks.items():
        spec = network.input
        resized = spec.size, spec.interpolation, spec.crop_pct, spec.crop_mode
        groups.setdefault(repr((resized, chosen.of(network))), []).append(name)
    for key, names in groups.items():
        network = networks[names[0]]
        distortion = chosen.of(network)
        who = "" if len(names) == len(networks) else f" for {join(shown(name) for name in names)}"
        draw = partial(distorted, network, picture, distortion)
        pixels = cached(
            "pictures",
            ("distorted", picture.key, key),
            "Drawing",
            draw,
            queue="draw",
            on_disk=False,
        )
        titles = (f"As it enters the network{who}", f"{distortion.label}{who}")
        for place, pixel, title in zip(left.columns(2), pixels, titles, strict=True):
            place.image(pixel, caption=plain(title), width="stretch", output_format="PNG")
    places = dict(zip(networks, st.columns(len(networks)), strict=True))
    for name, network in networks.items():
        with guarded():
            before, after = look(name, picture), look(name, picture, chosen.of(network))
            with right.container(border=True):
                if before.logits is None or after.logits is None:
                    none = "has no classifier and makes no prediction; its layers are shown below."
                    st.markdown(f"**{plain(shown(name))}** {none}")
                    continue
                classes = classes_of(network, picture.image)
                show_verdict(name, before, after, classes)
            with places[name]:
                states = ((BEFORE, before), (AFTER, after))
                every = [top(name, each, classes, state, None) for state, each in states]
                both = pd.concat(every, ignore_index=True)
                likeliest = both.groupby("index")["probability"].max().nlargest(TOP).index
                frame = both[
                    both["index"].isin(
                        [*likeliest, likeliest[0] if classes.true is None else classes.true]
                    )
                ]
                st.markdown(f"**{plain(shown(name))}**")
                show.chart(
                    bars(frame),
                    f"before and after {name} {picture.title} {chosen}",
                    frame,
                    key=f"img answers {name}",
                )
    st.caption(
        "Blue bars: the plain image. Orange bars: the distorted one. Point at a bar for its "
        "numbers."
    )


def distorted(network: Model, picture: Picture, distortion: Distortion) -> tuple[Image.Image, ...]:
    """The plain and the distorted pixels as a network receives them, enlarged."""
    found = distortion_examples(network, picture.image, (distortion,), 1).pixels
    return tuple(enlarged(Image.fromarray(pixels[0])) for pixels in found)


def show_verdict(name: str, before: ImageResponse, after: ImageResponse, classes: Classes) -> None:
    """The predictions for the plain and the distorted image, and whether they are correct or the
    same."""
    badge: tuple[str, Any, str | None]
    first, then, true = before.prediction, after.prediction, classes.true
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{plain(shown(name))}**", width="content")
        if true is None:
            same = first == then
            badge = (
                "same prediction" if same else "prediction changed",
                "blue" if same else "orange",
                None,
            )
        else:
            badge = _BADGES[first == true, then == true]
        st.badge(badge[0], color=badge[1], icon=badge[2], width="content")
    said = []
    for each in (before, after):
        percent = 100 * float(each.probabilities[each.prediction])
        said.append(
            f"**{plain(classes.name(each.prediction))}** "
            f"({percent:{'.0f' if percent >= 1 else '.2g'}} %)"
        )
    st.markdown(f"plain: {said[0]} → distorted: {said[1]}")
    if before.has_zero_head:
        st.caption(ZERO_HEAD)


# -- how far layers move ---------------------------------------------------------------------------


def show_moves(
    networks: dict[str, Model], picture: Picture, images: Images, chosen: Setting
) -> None:
    """How far the distortion moves this image at every block."""
    frames = []
    for name, network in networks.items():
        with guarded():
            frames.append(moves(name, picture, images, chosen.of(network)))
    if not frames:
        return
    frame = pd.concat(frames, ignore_index=True)
    more = {"rank:Q": "rank of its undistorted image among neighbours", "n:Q": "of n images"}
    drawn = charts.curves(frame, "cosine", "cosine of plain and distorted", more=more)
    show.chart(drawn, f"moves {picture.title} {chosen}", frame, key="img moves chart")
    st.caption(
        "1: the layer is invariant to the distortion; 0: the distorted image is no closer to the "
        "original than other images are. Activations are means over positions, less their mean "
        f"over {join(map(str, dict.fromkeys(frame['n'])))} of the images, so that a layer with "
        "identical activations for all images does not appear invariant."
    )


def show_shifts(networks: dict[str, Model], images: Images, chosen: Setting) -> None:
    """How far the distortion moves all images at every block."""
    measure = url_state.choose(st.segmented_control, "Measure", "img-measure", ("cosine", "CKA"))
    frames = []
    for name, network in networks.items():
        with guarded():
            frames.append(
                shift(name, images, chosen.of(network)).to_frame().assign(network=shown(name))
            )
    if not frames:
        return
    frame, field = pd.concat(frames, ignore_index=True), measure.lower()
    more = {f"{field}_null:Q .3f": "null", "n:Q": "n images"}
    bounds = (f"{field}_low", f"{field}_high")
    drawn = charts.curves(
        frame, field, f"{measure} of plain and distorted", bounds=bounds, more=more
    )
    show.chart(drawn, f"shift {measure} {chosen}", frame, key="img shift chart")
    st.caption(
        f"Mean over {len(images)} images, bands are 95 % intervals. Cosine: whether each "
        "representation keeps its direction. CKA (unbiased, linear): whether the similarity "
        "structure of the images is preserved, up to rotation and scale. The null is in the "
        "tooltip."
    )


def shift(name: str, images: Images, distortion: Distortion) -> RepresentationShift:
    """How far the distortion moves the representations of all images."""
    options: Any = {"batch_size": BATCH, "permutations": SAMPLES, "resamples": SAMPLES}
    label, given = (
        f"{shown(name)}: shift, {distortion.label}",
        (calls.network(name), calls.shown_images(images), (_given(distortion),)),
    )
    found: RepresentationShift = result_of(
        "Image", label, "shift", "invariance.representation_shift", *given, **options
    )
    return found


def _given(distortion: Distortion) -> Given:
    """A distortion as an argument."""
    code = f"mp.images.{distortion!r}"
    if hasattr(distortion, "steps"):
        first = distortion.steps[0]
        code = f"mp.images.paper_shuffle({first.grid!r}, {first.seed!r})"
    return Given(lambda: distortion, repr(distortion), code)


# -- disagreements ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictions:
    """The predictions of a network for all images, plain (row 0) and distorted (row 1): `predicted`
    [2, image], and whether they are `right`: equal to the labels, or to the prediction for the
    plain image where labels are not among the classes."""

    predicted: np.ndarray
    right: np.ndarray
    classes: Classes
    result: DistortionAccuracy | None


def all_predictions(name: str, model: Model, images: Images, distortion: Distortion) -> Predictions:
    """The predictions of a network for all images. Raises MeasureError for one without a
    classifier."""
    classes = classes_of(model, images)
    if classes.labels is None:
        key = (key_of(model), key_of_images(images), repr(distortion))
        title = f"{shown(name)}: {len(images)} images, plain and distorted"
        predicted, _ = cached(
            "predictions", key, title, lambda: predictions(model, images, (distortion,), BATCH)
        )
        return Predictions(predicted, predicted == predicted[:1], classes, None)
    label, given = (
        f"{shown(name)}: accuracy, {distortion.label}",
        (calls.network(name), calls.shown_images(images), (_given(distortion),)),
    )
    kind, function = "distortion accuracy", "invariance.distortion_accuracy"
    result: DistortionAccuracy = result_of("Image", label, kind, function, *given, batch_size=BATCH)
    return Predictions(result.predicted, result.right, classes, result)


def show_disagreements(networks: dict[str, Model], images: Images, chosen: Setting) -> None:
    """The images that one network still gets right when distorted, and another wrong."""
    st.markdown(
        f"Runs the distortion above on all {len(images)} chosen images and lists those that one "
        "network still gets right and another gets wrong."
    )
    about = "The page Home and the box at the side say how many images there are."
    if not url_state.toggle(st, "Find them", "img-find", help=about):
        return
    found: dict[str, Predictions] = {}
    for name, network in networks.items():
        with guarded():
            found[name] = all_predictions(name, network, images, chosen.of(network))
    labelled = {name: each for name, each in found.items() if each.result is not None}
    if labelled and len(labelled) < len(found):
        others = join(plain(shown(name)) for name in found if name not in labelled)
        excluded = (
            f"The labels of the images are not among the classes of {others}, which is therefore "
            "excluded here."
        )
        st.info(excluded, icon=":material/info:")
    used = labelled or found
    if not used:
        return
    sentences = []
    for name, each in used.items():
        if each.result is None:
            same = 100 * float(each.right[1].mean())
            sentences.append(
                f"{shown(name)} gives the same prediction for {same:.0f} % of the images when "
                "distorted."
            )
            continue
        a = each.result.accuracy
        before, after = (
            f"{100 * a.value[i]:.0f} % [{100 * a.low[i]:.0f}, {100 * a.high[i]:.0f}]"
            for i in (0, 1)
        )
        sentences.append(
            f"{shown(name)} is right on {before} of the plain and {after} of the distorted images."
        )
    show.bullets(sentences)
    show_list(used, networks, images, chosen, bool(labelled))


def show_list(
    found: dict[str, Predictions],
    networks: dict[str, Model],
    images: Images,
    chosen: Setting,
    labelled: bool,
) -> None:
    """The boxes for the two networks, and the images on which they disagree. At first a CNN is
    wrong and a Mixer right."""
    names = list(found)
    cnns, mixers = (
        [name for name in names if networks[name].family == family] for family in ("cnn", "mixer")
    )
    wrong_first = (cnns or names[-1:])[0]
    right_first = next((name for name in [*mixers, *names] if name != wrong_first), ANY)
    labels = (
        ("Right:", "Wrong:") if labelled else ("Keeps its prediction:", "Changes its prediction:")
    )
    who = lambda name: "any network" if name == ANY else shown(name)  # noqa: E731
    first, second = st.columns(2)
    right = url_state.choose(
        first.selectbox, labels[0], "img-right", [*names, ANY], right_first, format_func=who
    )
    wrong = url_state.choose(
        second.selectbox, labels[1], "img-wrong", names, wrong_first, format_func=who
    )
    label, about = (
        "Only images that both get right when plain",
        "Errors are then due to the distortion.",
    )
    both = labelled and url_state.toggle(st, label, "img-both", True, help=about)
    if right == wrong:
        st.info("Choose two different networks.", icon=":material/info:")
        return
    rows = disagreements(
        found[wrong].right, None if right == ANY else found[right].right, both_undistorted=both
    )
    verbs = ("right", "wrong") if labelled else ("keeps its prediction", "changes its prediction")
    said = plain(
        (f"{shown(right)} {verbs[0]}, " if right != ANY else "") + f"{shown(wrong)} {verbs[1]}"
    )
    if not len(rows):
        more = "Try another grid, strength or seed above, or select more images in the sidebar."
        st.info(f"No image here: {said}. {more}", icon=":material/search_off:")
        return
    frame = disagreement_frame(
        rows[:_MOST_FOUND], found, images, networks[right if right != ANY else wrong], chosen
    )
    more = f" The first {_MOST_FOUND} are shown." if len(rows) > _MOST_FOUND else ""
    st.markdown(
        f"**{len(rows)} of {len(images)} images** when distorted: {said}.{more} Click an image to "
        "select it."
    )
    tips = {"name": "image"} | ({"class": "class"} if labelled else {})
    columns = {f"said_{i}": f"{shown(name)}, plain → distorted" for i, name in enumerate(found)}
    gallery(frame, tips | columns, f"found {chosen} {right} {wrong} {both} {url_state.get('img')}")
    show.downloads(
        f"disagreements {chosen} {right} {wrong}",
        frame.drop(columns="picture").rename(columns=columns),
    )


def disagreement_frame(
    rows: np.ndarray, found: dict[str, Predictions], images: Images, network: Model, chosen: Setting
) -> pd.DataFrame:
    """One row per image: its class, the predictions of each network for it, and the distorted
    thumbnail."""
    distortion, part = chosen.of(network), images.subset(rows)

    def draw() -> list[Image.Image]:
        pixels = distortion_examples(network, part, (distortion,), len(part)).pixels[1]
        return [thumb(Image.fromarray(p)) for p in pixels]

    key = ("found", key_of(network), key_of_images(images), repr(distortion), tuple(rows.tolist()))
    pictures = cached("pictures", key, "Drawing", draw, queue="draw", on_disk=False)
    said = {
        f"said_{n}": [
            " → ".join(each.classes.name(int(k)) for k in each.predicted[:, i]) for i in rows
        ]
        for n, each in enumerate(found.values())
    }
    classes = [data.class_of(images, int(i)) for i in rows]
    uris = [as_uri(small) for small in pictures]
    return pd.DataFrame(
        {"place": rows, "name": part.ids, "class": classes, **said, "picture": uris}
    )
