"""The page Image, part Shuffle: an image distorted, what every network then says, how far it moves, and who fails where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st
from PIL import Image

import mixer_probe as mp
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
from mixer_probe.invariance import DistortionAccuracy, RepresentationShift, distortion_accuracy, distortion_examples, predictions
from mixer_probe.models import Model
from mixer_probe_app import held, seen, show
from mixer_probe_app.analyses import BATCH, key_of, key_of_images
from mixer_probe_app.choice import shown
from mixer_probe_app.messages import guarded, join, plain
from mixer_probe_app.one_image import (
    AFTER,
    BEFORE,
    TOP,
    Classes,
    Look,
    bars,
    classes_of,
    colours,
    curves,
    look,
    moves,
    says_nothing,
    top,
)
from mixer_probe_app.pictures import Picture, as_uri, enlarged, gallery, thumb
from mixer_probe_app.store import made, model

KINDS = {
    "patches": "Patches shuffled",
    "pixels": "Pixels shuffled inside cells",
    "both": "Patches and pixels, fixed permutation",
    "drop": "Patches dropped",
    "shift": "Cyclic shift",
    "low": "Low-pass",
    "high": "High-pass",
}
_WHAT = {
    "patches": "The cells of the grid are permuted. Structure within cells is kept, structure across cells is lost.",
    "pixels": "Pixels within each cell are permuted. The layout is kept, texture within cells is lost; grid 1×1 shuffles all.",
    "both": "Cells, and the pixels within all cells, are permuted in one order for all images, as in Fig. 4 of the paper.",
    "drop": "A fraction of the cells is set to the mean colour that each network subtracts.",
    "shift": "The image is shifted down and to the right, with wrap-around.",
    "low": "Only frequencies below the cutoff are kept (Gaussian filter).",
    "high": "Only frequencies above the cutoff are kept, added to the mean colour that each network subtracts (Gaussian filter).",
}
_RANDOM = ("patches", "pixels", "both", "drop")
_SHARES = (10, 25, 50, 75, 90)
_MOST_SEEDS = 9999
ANYONE = "nobody"
# Random pairings behind the null; twice as many take twice as long.
DRAWS = 40
# Thumbnails of the finder, in rows of ten.
_MOST_FOUND = 60


@dataclass(frozen=True)
class Setting:
    """A kind of distortion with how much of it, before it meets a network."""

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
            "drop": lambda: PatchDrop(self.strength / 100, self.grid, self.seed, fill=network.input.mean_colour),
            "shift": lambda: Shift(self.strength, self.strength),
            "low": lambda: LowPass(float(self.strength)),
            "high": lambda: HighPass(float(self.strength), level=network.input.mean_colour),
        }
        return makers[self.kind]()


def setting(networks: Sequence[Model]) -> Setting | None:
    """The boxes for the distortion; None, with a sentence, where no grid divides the inputs of all networks."""
    sides = [network.input.size[1:] for network in networks]
    first, second, third, fourth = st.columns([3, 4, 2, 2], vertical_alignment="bottom")
    kind = held.select(first, "Distortion", "img-kind", list(KINDS), format_func=KINDS.__getitem__)
    fine = kind in ("patches", "drop")
    grids = [g for g in _common_grids(sides) if (g > 1 or not fine) and (g < _smallest(sides) or kind == "patches")]
    if kind in (*_RANDOM,) and not grids:
        st.info(
            f"No grid divides the inputs of all networks, {_sizes_text(sides)}. Choose a shift or a filter.",
            icon=":material/info:",
        )
        return None
    strength = _strength(second, kind, _smallest(sides), grids)
    grid = strength
    if kind == "drop":
        grid = held.select(third, "Grid", "img-drop-grid", grids, _near(grids, 8), format_func=_times)
    seed = (
        held.number(fourth, "Order", "img-seed", 0, _MOST_SEEDS, help="Random seed of the permutation.") if kind in _RANDOM else 0
    )
    st.caption(_WHAT[kind])
    return Setting(kind, strength, grid, seed)


def _strength(place: st.delta_generator.DeltaGenerator, kind: str, side: int, grids: Sequence[int]) -> int:
    if kind == "drop":
        return held.steps(place, "Fraction of patches", "img-drop", _SHARES, 50, format_func=lambda share: f"{share} %")
    if kind in _RANDOM:
        return held.steps(place, "Grid of cells", f"img-{kind}", grids, _near(grids, 4), format_func=_times)
    powers = [2**k for k in range((side // 2).bit_length())]
    if kind == "shift":
        return held.steps(place, "Pixels down and right", "img-shift", powers, _near(powers, 4))
    return held.steps(place, "Cutoff (cycles per image)", f"img-{kind}", powers, _near(powers, 4))


def _times(grid: int) -> str:
    return f"{grid}×{grid}"


def _near(options: Sequence[int], wanted: int) -> int:
    return min(options, key=lambda option: abs(option - wanted))


def _common_grids(sides: Sequence[tuple[int, ...]]) -> list[int]:
    found = set.intersection(*(set(dividing_grids(height, width)) for height, width in sides))
    return sorted(found)


def _smallest(sides: Sequence[tuple[int, ...]]) -> int:
    return min(min(side) for side in sides)


def _sizes_text(sides: Sequence[tuple[int, ...]]) -> str:
    return join(list(dict.fromkeys(f"{height}×{width} px" for height, width in sides)))


# -- the image before and after ----------------------------------------------------------------------------------------------


def show_shuffle(names: Sequence[str], picture: Picture, images: Images | None) -> None:
    """The whole part."""
    networks = _loaded(names)
    if not networks:
        return
    chosen = setting(list(networks.values()))
    if chosen is None:
        return
    with guarded():
        _before_and_after(networks, picture, chosen)
    if images is None:
        return
    st.header("Find images where the networks disagree")
    with guarded():
        _find(networks, images, chosen)
    st.header("How far the layers move")
    with guarded():
        _moves(names, networks, picture, images, chosen)


def _loaded(names: Sequence[str]) -> dict[str, Model]:
    """The networks that there are, by choice; a message for each of the others."""
    found = {}
    for name in names:
        with guarded():
            found[name] = model(name)
    return found


def _before_and_after(networks: dict[str, Model], picture: Picture, chosen: Setting) -> None:
    left, right = st.columns([1, 1])
    with left:
        for names, distortion, pixels in _as_seen(networks, picture, chosen):
            _pair(names, distortion, pixels, len(networks))
    with right:
        for name, network in networks.items():
            with guarded():
                _verdict(name, network, picture, chosen)
    charts = st.columns(len(networks))
    for place, (name, network) in zip(charts, networks.items(), strict=True):
        with place, guarded():
            _answers(name, network, picture, chosen)
    st.caption("Blue bars: the plain image. Orange bars: the distorted one. Point at a bar for its numbers.")


def _as_seen(
    networks: dict[str, Model], picture: Picture, chosen: Setting
) -> list[tuple[list[str], Distortion, tuple[Image.Image, Image.Image]]]:
    """The plain and the distorted pixels as networks get them, once for all networks that get the same."""
    groups: dict[str, list[str]] = {}
    for name, network in networks.items():
        spec = network.input
        resized = spec.size, spec.interpolation, spec.crop_pct, spec.crop_mode
        groups.setdefault(repr((resized, chosen.of(network))), []).append(name)
    found = []
    for key, names in groups.items():
        network = networks[names[0]]
        found.append((names, chosen.of(network), _pixels(network, picture, chosen.of(network), key)))
    return found


def _pixels(network: Model, picture: Picture, distortion: Distortion, key: str) -> tuple[Image.Image, Image.Image]:
    one = picture.image

    def make() -> tuple[Image.Image, Image.Image]:
        found = distortion_examples(network, one, (distortion,), 1).pixels
        return enlarged(Image.fromarray(found[0, 0])), enlarged(Image.fromarray(found[1, 0]))

    return made("pictures", ("distorted", picture.key, key), "Drawing", make, lane="draw", keep=False)


def _pair(names: list[str], distortion: Distortion, pixels: tuple[Image.Image, Image.Image], all_of_them: int) -> None:
    who = "" if len(names) == all_of_them else f" for {join(shown(name) for name in names)}"
    first, second = st.columns(2)
    first.image(pixels[0], caption=plain(f"As it enters the network{who}"), width="stretch", output_format="PNG")
    second.image(pixels[1], caption=plain(f"{distortion.label}{who}"), width="stretch", output_format="PNG")


def _verdict(name: str, network: Model, picture: Picture, chosen: Setting) -> None:
    before, after = look(name, picture), look(name, picture, chosen.of(network))
    with st.container(border=True):
        if before.logits is None or after.logits is None:
            st.markdown(f"**{plain(shown(name))}** has no classifier and makes no prediction; its layers are shown below.")
            return
        classes = classes_of(network, picture.image)
        true = classes.true
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{plain(shown(name))}**", width="content")
            _badge(before, after, true)
        st.markdown(f"plain: {_said(before, classes)} → distorted: {_said(after, classes)}")
        if says_nothing(before):
            st.caption("All its logits are equal: its head is zero, as in timm's untrained Mixers.")


def _said(seen_by: Look, classes: Classes) -> str:
    best = int(np.argmax(seen_by.probabilities))
    share = 100 * float(seen_by.probabilities[best])
    return (
        f"**{plain(classes.name(best))}** ({share:.0f} %)" if share >= 1 else f"**{plain(classes.name(best))}** ({share:.2g} %)"
    )


def _badge(before: Look, after: Look, true: int | None) -> None:
    first, then = int(np.argmax(before.probabilities)), int(np.argmax(after.probabilities))
    if true is None:
        kept = first == then
        st.badge("same prediction" if kept else "prediction changed", color="blue" if kept else "orange", width="content")
        return
    words = {
        (True, True): ("still correct", "green", ":material/check:"),
        (True, False): ("now incorrect", "red", ":material/close:"),
        (False, True): ("correct only when distorted", "blue", ":material/check:"),
        (False, False): ("incorrect before and after", "orange", ":material/close:"),
    }
    text, colour, icon = words[first == true, then == true]
    st.badge(text, color=colour, icon=icon, width="content")


def _answers(name: str, network: Model, picture: Picture, chosen: Setting) -> None:
    before, after = look(name, picture), look(name, picture, chosen.of(network))
    if before.logits is None or after.logits is None:
        return
    classes = classes_of(network, picture.image)
    states = ((BEFORE, before), (AFTER, after))
    every = [top(name, each, classes, state, len(before.logits)) for state, each in states]
    both = pd.concat(every, ignore_index=True)
    likeliest = both.groupby("index")["probability"].max().nlargest(TOP).index
    frame = both[both["index"].isin([*likeliest, likeliest[0] if classes.true is None else classes.true])]
    st.markdown(f"**{plain(shown(name))}**")
    show.chart(bars(frame), f"before and after {name} {picture.title} {chosen}", frame, key=f"img answers {name}")


# -- how far layers move -----------------------------------------------------------------------------------------------------


def _moves(names: Sequence[str], networks: dict[str, Model], picture: Picture, images: Images, chosen: Setting) -> None:
    options = ("this image", "all images")
    what = held.segments(st, "Measured on", "img-moves", options, label_visibility="collapsed")
    if what == "all images":
        _shifts(names, networks, images, chosen)
        return
    frames = []
    for name, network in networks.items():
        with guarded():
            frames.append(moves(name, picture, images, chosen.of(network)))
    if not frames:
        return
    frame = pd.concat(frames, ignore_index=True)
    tips = {"rank": "rank of its undistorted image among neighbours", "n": "of n images"}
    drawn = curves(frame, "cosine", "cosine of plain and distorted", colours(names), tips)
    show.chart(drawn, f"moves {picture.title} {chosen}", frame, key="img moves chart")
    st.caption(
        "1: the layer is invariant to the distortion; 0: the distorted image is no closer to the original than other images "
        f"are. Activations are means over positions, less their mean over {_numbers(frame)} of the images, so that a layer with "
        "identical activations for all images does not appear invariant."
    )


def _numbers(frame: pd.DataFrame) -> str:
    return join(str(n) for n in dict.fromkeys(frame["n"]))


def _shifts(names: Sequence[str], networks: dict[str, Model], images: Images, chosen: Setting) -> None:
    measure = held.segments(st, "Measure", "img-measure", ("cosine", "CKA"))
    results = []
    for name, network in networks.items():
        with guarded():
            results.append((name, _shift(name, network, images, chosen.of(network))))
    if not results:
        return
    frame = pd.concat([r.to_frame().assign(network=shown(name)) for name, r in results], ignore_index=True)
    field = measure.lower()
    tips = {f"{field}_low": "95 % interval, low", f"{field}_high": "high", f"{field}_null": "null", "n": "n images"}
    title = f"{measure} of plain and distorted"
    drawn = curves(frame, field, title, colours(names), tips, band=(f"{field}_low", f"{field}_high"))
    show.chart(drawn, f"shift {measure} {chosen}", frame, key="img shift chart")
    st.caption(
        f"Mean over {len(images)} images, bands are 95 % intervals. Cosine: whether each representation keeps its direction. "
        "CKA (unbiased, linear): whether the similarity structure of the images is preserved, up to rotation and scale. The "
        "null is in the tooltip."
    )


def _shift(name: str, network: Model, images: Images, distortion: Distortion) -> RepresentationShift:
    key = (key_of(network), key_of_images(images), repr(distortion), DRAWS)
    draws = {"permutations": DRAWS, "resamples": DRAWS}
    title = f"{shown(name)}: representations of plain and distorted images"
    make = lambda: mp.invariance.representation_shift(network, images, (distortion,), batch_size=BATCH, **draws)  # noqa: E731
    found = made("shift", key, title, make)
    settings = f"batch_size={BATCH}, permutations={DRAWS}, resamples={DRAWS}"
    code = f"mp.invariance.representation_shift(models[{name!r}], images, ({_code(distortion)},), {settings})"
    seen.saw("Image", f"{shown(name)}: shift, {distortion.label}", "shift", key, code, [name], seen.images_setup())
    return found


def _code(distortion: Distortion) -> str:
    """The Python that makes a distortion."""
    if hasattr(distortion, "steps"):
        first = distortion.steps[0]
        return f"mp.images.paper_shuffle({first.grid!r}, {first.seed!r})"
    return f"mp.images.{distortion!r}"


# -- who fails where ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """What a network says of all images, plain (row 0) and distorted (row 1): `predicted` [2, image], and what counts as right
    in both: the labels, or what it said of the plain image."""

    predicted: np.ndarray
    right: np.ndarray
    classes: Classes
    result: DistortionAccuracy | None


def _find(networks: dict[str, Model], images: Images, chosen: Setting) -> None:
    st.markdown(
        f"Runs the distortion above on all {len(images)} chosen images and lists those that one network still gets right and "
        "another gets wrong."
    )
    if not held.toggle(st, "Find them", "img-find", help="The page Home and the box at the side say how many images there are."):
        return
    found: dict[str, Answers] = {}
    for name, network in networks.items():
        with guarded():
            found[name] = answers(name, network, images, chosen.of(network))
    fits = {name: a for name, a in found.items() if a.result is not None}
    if fits and len(fits) < len(found):
        others = join(plain(shown(name)) for name in found if name not in fits)
        st.info(
            f"The labels of the images are not among the classes of {others}, which is therefore excluded here.",
            icon=":material/info:",
        )
    used = fits or found
    if used:
        _say_scores(used)
        _list(used, networks, images, chosen)


def answers(name: str, network: Model, images: Images, distortion: Distortion) -> Answers:
    """What the network says of all images. Raises MeasureError for one without a classifier."""
    classes = classes_of(network, images)
    key = (key_of(network), key_of_images(images), repr(distortion))
    title = f"{shown(name)}: {len(images)} images, plain and distorted"
    if classes.labels is None:
        predicted, _ = made("predictions", key, title, lambda: predictions(network, images, (distortion,), BATCH))
        return Answers(predicted, predicted == predicted[:1], classes, None)
    make = lambda: distortion_accuracy(network, images, (distortion,), batch_size=BATCH)  # noqa: E731
    result = made("distortion accuracy", key, title, make)
    code = f"mp.invariance.distortion_accuracy(models[{name!r}], images, ({_code(distortion)},), batch_size={BATCH})"
    seen.saw(
        "Image", f"{shown(name)}: accuracy, {distortion.label}", "distortion accuracy", key, code, [name], seen.images_setup()
    )
    return Answers(result.predicted, result.right, classes, result)


def _say_scores(found: dict[str, Answers]) -> None:
    sentences = []
    for name, each in found.items():
        if each.result is None:
            kept = 100 * float((each.right[1]).mean())
            sentences.append(f"{shown(name)} gives the same prediction for {kept:.0f} % of the images when distorted.")
            continue
        a = each.result.accuracy
        plainly, then = (f"{100 * a.value[i]:.0f} % [{100 * a.low[i]:.0f}, {100 * a.high[i]:.0f}]" for i in (0, 1))
        sentences.append(f"{shown(name)} is right on {plainly} of the plain and {then} of the distorted images.")
    show.bullets(sentences)


def _list(found: dict[str, Answers], networks: dict[str, Model], images: Images, chosen: Setting) -> None:
    labelled = all(a.result is not None for a in found.values())
    right, wrong = _boxes(found, networks, labelled)
    first, second = ("right", "wrong") if labelled else ("keeps its prediction", "changes its prediction")
    both = labelled and held.toggle(
        st, "Only images that both get right when plain", "img-both", True, help="Errors are then due to the distortion."
    )
    rows = _rows(found, right, wrong, both)
    if right == wrong:
        st.info("Choose two different networks.", icon=":material/info:")
        return
    told = f"{shown(right)} {first}, {shown(wrong)} {second}" if right != ANYONE else f"{shown(wrong)} {second}"
    if not len(rows):
        st.info(
            f"No image here: {plain(told)}. Try another grid, strength or seed above, or select more images in the sidebar.",
            icon=":material/search_off:",
        )
        return
    name = right if right != ANYONE else wrong
    frame = _table(rows[:_MOST_FOUND], found, images, networks[name], chosen)
    more = f" The first {_MOST_FOUND} are shown." if len(rows) > _MOST_FOUND else ""
    st.markdown(f"**{len(rows)} of {len(images)} images** when distorted: {plain(told)}.{more} Click an image to select it.")
    tips = {"name": "image", "class": "class"} if labelled else {"name": "image"}
    said = {f"said_{i}": f"{shown(name)}, plain → distorted" for i, name in enumerate(found)}
    gallery(frame, tips | said, f"found {chosen} {right} {wrong} {both} {held.recall('img')}")
    show.downloads(f"disagreements {chosen} {right} {wrong}", frame.drop(columns="picture").rename(columns=said))


def _boxes(found: dict[str, Answers], networks: dict[str, Model], labelled: bool) -> tuple[str, str]:
    names = list(found)
    cnns = [name for name in names if networks[name].family == "cnn"]
    mixers = [name for name in names if networks[name].family == "mixer"]
    wrong_first = (cnns or names[-1:])[0]
    right_first = next((name for name in [*mixers, *names] if name != wrong_first), ANYONE)
    words = ("Right:", "Wrong:") if labelled else ("Keeps its prediction:", "Changes its prediction:")
    first, second = st.columns(2)
    right = held.select(first, words[0], "img-right", [*names, ANYONE], right_first, format_func=_who)
    wrong = held.select(second, words[1], "img-wrong", names, wrong_first, format_func=_who)
    return right, wrong


def _who(name: str) -> str:
    return "any network" if name == ANYONE else shown(name)


def _rows(found: dict[str, Answers], right: str, wrong: str, both: bool) -> np.ndarray:
    """The places of the images that `right` gets right and `wrong` wrong when distorted."""
    wanted = ~found[wrong].right[1]
    if right != ANYONE:
        wanted &= found[right].right[1]
    if both:
        for name in {right, wrong} - {ANYONE}:
            wanted &= found[name].right[0]
    return np.flatnonzero(wanted)


def _table(rows: np.ndarray, found: dict[str, Answers], images: Images, network: Model, chosen: Setting) -> pd.DataFrame:
    """A row an image: what it is, what each network says of it, and the distorted thumbnail."""
    distortion = chosen.of(network)
    key = ("found", key_of(network), key_of_images(images), repr(distortion), tuple(rows.tolist()))
    part = images.subset(rows)
    make = lambda: [thumb(Image.fromarray(p)) for p in distortion_examples(network, part, (distortion,), len(part)).pixels[1]]  # noqa: E731
    pictures = made("pictures", key, "Drawing", make, lane="draw", keep=False)
    table = {
        "place": rows,
        "name": part.ids,
        "class": [_label(images, int(i)) for i in rows],
        **{f"said_{n}": [_both(a, int(i)) for i in rows] for n, a in enumerate(found.values())},
        "picture": [as_uri(small) for small in pictures],
    }
    return pd.DataFrame(table)


def _label(images: Images, i: int) -> str:
    names, labels = images.class_names, images.labels
    return "" if labels is None else (names[int(labels[i])] if names else f"class {labels[i]}")


def _both(a: Answers, i: int) -> str:
    return " → ".join(a.classes.name(int(k)) for k in a.predicted[:, i])
