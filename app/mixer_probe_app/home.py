"""The page Home: cards, the ways to find a network, the images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import streamlit as st

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.result import ModelRecord
from mixer_probe.core.words import short_name
from mixer_probe.images import Images
from mixer_probe.models import ModelCard
from mixer_probe.models.catalogue import CatalogueEntry
from mixer_probe_app import analyses, choice, data, disk, menu, store
from mixer_probe_app.choice import CHECKPOINT, RUN, UNTRAINED
from mixer_probe_app.messages import advice, guarded, plain
from mixer_probe_app.offers import CHECKPOINTS, UPLOADED, keep_upload, labels, roots
from mixer_probe_app.page import begin
from mixer_probe_app.show import bullets, folded_table

ANY = "any"
FAMILIES = {ANY: "all", "mixer": "Mixer", "vit": "ViT", "cnn": "CNN"}
PREVIEW = 10
_PROBLEM = "problem with "


QUESTION = (
    "What did an MLP-Mixer learn, and how does that differ from a ViT and a CNN? "
    "Choose one to three networks and a set of images; all pages use them. The URL of this page stores the choice."
)
NOTHING = "No network selected. Select one above, or find one below, to compare it with the others."


def show() -> None:
    """The page Home."""
    names = begin("Networks and images", QUESTION, choose=False)
    st.header("Networks")
    _networks(choice.chosen())
    if not names:
        st.info("No network is selected. Select one to three above.", icon=":material/arrow_upward:")
    with guarded():
        find()
    st.header("Images")
    with guarded():
        images()
    choice.device_chooser(st.columns(3)[0])
    with guarded():
        where_next(names)


def _networks(names: tuple[str, ...]) -> None:
    columns = st.columns(choice.MOST, border=True)
    choice.chooser(columns)
    for column, name in zip(columns, names):
        with column, guarded():
            show_card(name)
    for column in columns[len(names) :]:
        column.caption(NOTHING)
    if st.session_state.get("failed models"):
        st.button("Retry failed models", on_click=store.forget_failures, icon=":material/refresh:")


# -- cards -------------------------------------------------------------------------------------------------------------------


def show_card(name: str) -> None:
    """What a network or a stored run is."""
    if name.startswith(RUN):
        _show_run(name)
        return
    found = analyses.card(name)
    _head(found.model)
    bullets([f"{label}: {text}" for label, text in facts(name, found).items()])
    if found.model.note:
        st.caption(plain(found.model.note))
    folded_table("Layers in execution order", found.to_frame())


def _head(record: ModelRecord) -> None:
    if record.trained:
        st.badge("trained", color="green", icon=":material/check:")
    else:
        st.badge("untrained", color="orange", icon=":material/casino:")
    st.markdown(f"**{plain(record.name)}**")


def facts(name: str, found: ModelCard) -> dict[str, str]:
    """The lines of a card."""
    blocks = [layer for layer in found.layers if layer.kind == "block"]
    grids = list(dict.fromkeys("×".join(map(str, layer.grid)) for layer in blocks if layer.grid))
    lines = {
        "Family": f"{found.model.family} ({found.architecture})",
        "Parameters": f"{found.model.parameters:,}",
        "Multiply-accumulates": f"{found.macs / 1e9:.3f} G per image",
        "Input": "×".join(map(str, found.input_size)) + " (channels, height, width in px)",
        "Blocks": str(len(blocks)),
        "Position grid": " → ".join(grids) or "none",
        "Weights": found.model.weights,
    }
    return lines | _accuracy(name, found)


def _accuracy(name: str, found: ModelCard) -> dict[str, str]:
    """What the card of a bundled network promises."""
    if not name.startswith("zoo:") or name.endswith(UNTRAINED) or not found.model.trained:
        return {}
    known = mp.zoo.card(name.removeprefix("zoo:"))
    return {"Test accuracy": f"{100 * known.test_accuracy:.1f} % of {known.test_images:,} CIFAR-10 images"}


def _show_run(name: str) -> None:
    run = analyses.stored_run(name)
    st.badge("stored run: representations only", color="blue", icon=":material/inventory_2:")
    _head(run.model)
    lines = {
        "Family": run.model.family,
        "Parameters": f"{run.model.parameters:,}",
        "Images": f"{run.images.n:,} of {run.images.name}",
        "Layers": str(len(run.layers)),
        "Reduction over positions": run.reduce,
    }
    bullets([f"{label}: {text}" for label, text in lines.items()])
    st.caption("Available on the Similarity and Probes pages if it contains the images chosen in the sidebar.")


# -- finding a network -------------------------------------------------------------------------------------------------------


def find() -> None:
    """Search timm, open a checkpoint, take a stored run."""
    with st.expander("Find another network: search timm, open a checkpoint or a stored run", icon=":material/search:"):
        searched, file, run = st.tabs(["Search timm", "Checkpoint file", "Stored run"])
        with searched:
            _search()
        with file:
            _checkpoint()
        with run:
            _run()


def _search() -> None:
    left, middle, right = st.columns([3, 3, 3], vertical_alignment="bottom")
    text = left.text_input("Part of a name", key="search text", placeholder="mixer, vit_small, resnet…")
    family = middle.segmented_control(
        "Family", list(FAMILIES), default=ANY, required=True, format_func=lambda f: FAMILIES[f], key="search family"
    )
    tag = right.selectbox("Weights", [ANY, *_tags()], key="search tag", help="Pretrained weights with this tag of timm.")
    found = matching(text, family or ANY, tag)
    if not found:
        st.info("No timm model matches. Try a shorter search term, or all families.", icon=":material/search_off:")
        return
    left, middle, right = st.columns([3, 3, 3], vertical_alignment="bottom")
    name = left.selectbox(f"{len(found)} networks", [entry.name for entry in found], key="search result")
    entry = next((e for e in found if e.name == name), found[0])
    weights = middle.selectbox("With", ["untrained baseline", *_weights_of(entry)], key="search weights")
    wanted = entry.name + UNTRAINED if weights == "untrained baseline" else _tagged(entry.name, weights)
    right.button("Add to selection", on_click=choice.add, args=(wanted,), icon=":material/add:")
    notes = dict(entry.notes)
    if weights in notes:
        st.caption(plain(notes[weights]))
    st.caption(
        "timm downloads pretrained weights once if they are not on this machine. Random weights need no internet connection."
    )


def matching(text: str, family: str, tag: str) -> list[CatalogueEntry]:
    """Networks by part of the name, family and tag."""
    return [
        entry
        for entry in choice.catalogue()
        if text.strip().lower() in entry.name and family in (ANY, entry.family) and (tag == ANY or tag in entry.tags)
    ]


@st.cache_resource(show_spinner=False)
def _tags() -> tuple[str, ...]:
    return tuple(sorted({tag for entry in choice.catalogue() for tag in entry.tags if not entry.name.startswith("zoo:")}))


def _weights_of(entry: CatalogueEntry) -> list[str]:
    return ["bundled"] if entry.name.startswith("zoo:") else [tag for tag in entry.tags if tag]


def _tagged(name: str, weights: str) -> str:
    return name if weights == "bundled" else f"{name}.{weights}"


def _checkpoint() -> None:
    left, middle, right = st.columns([3, 3, 3], vertical_alignment="bottom")
    known = labels("checkpoint")
    label = left.selectbox("File", known, index=0 if known else None, key="checkpoint file", placeholder="none here")
    architectures = [entry.name for entry in choice.catalogue() if not entry.name.startswith("zoo:")]
    architecture = middle.selectbox(
        "Made for", architectures, index=None, key="checkpoint architecture", placeholder="a name of timm"
    )
    ready = bool(label and architecture)
    right.button(
        "Open",
        on_click=choice.add,
        args=(f"{CHECKPOINT}{label}@{architecture}",),
        disabled=not ready,
        icon=":material/folder_open:",
    )
    _upload(
        "Upload a checkpoint",
        [suffix.removeprefix(".") for suffix in CHECKPOINTS],
        "checkpoint",
        lambda name, content: keep_upload(name, content, Path(name).suffix.lower()),
        "Weights as safetensors or a torch file of plain tensors; nothing in it is executed. Then select it above.",
    )


def _run() -> None:
    known = labels("run")
    if not known:
        st.info(
            "No stored run in the app's folders. Create one with `mixer-probe extract MODEL --out run.zarr`, then start the app "
            "with `mixer-probe app run.zarr`.",
            icon=":material/inventory_2:",
        )
        return
    left, right = st.columns([6, 3], vertical_alignment="bottom")
    label = left.selectbox("Run", known, key="run label")
    right.button("Add", on_click=choice.add, args=(RUN + label,), key="add run", icon=":material/add:")


def _upload(title: str, kinds: list[str], what: str, keep: Callable[[str, bytes], str], help_text: str) -> None:
    """One file to be kept; what is wrong with it is said beside it, at this and later runs, until another comes."""
    upload = st.file_uploader(title, type=kinds, key=f"upload {what}", help=help_text)
    if upload is None:
        return
    try:
        label = keep(upload.name, upload.getvalue())
        disk.tidy()
        st.success(f"{plain(upload.name)} is saved as {plain(label)}; select it above.", icon=":material/check:")
        if label not in st.session_state.setdefault("told uploads", set()):
            st.session_state["told uploads"].add(label)
            st.rerun()
    except MixerProbeError as error:
        st.error(f"{plain(error)}\n\n{advice(error)}".strip(), icon=":material/error:")


# -- images ------------------------------------------------------------------------------------------------------------------


def images() -> None:
    """Which images, what they look like, and the ways to other ones."""
    left, right = st.columns([1, 2], gap="large")
    with left:
        data.chooser(st.container())
    with right:
        _preview(data.images())
    with st.expander("Other images: upload files, or open a timm data set", icon=":material/add_photo_alternate:"):
        uploaded, timm = st.tabs(["Upload", "timm data set"])
        with uploaded:
            _upload_images()
        with timm:
            _timm()


def _preview(found: Images) -> None:
    classes = f" of {found.n_classes} classes" if found.labels is not None else ", without labels"
    st.markdown(f"{len(found):,} images{classes}.")
    some = _of_each_class(found)
    pictures = [found[i].resize((96, 96)) for i in some]
    st.image(pictures, caption=[short_name(_class_of(found, i))[:14] for i in some], width=72)
    if found.skipped:
        path, why = found.skipped[0]
        st.warning(
            f"{len(found.skipped)} files could not be read and are skipped; the first is {plain(Path(path).name)} "
            f"({plain(why)}).",
            icon=":material/broken_image:",
        )
    if found.credit:
        st.caption(plain(found.credit))


def _of_each_class(found: Images) -> list[int]:
    """The first image of each of the first classes, or the first images."""
    if found.labels is None:
        return list(range(min(PREVIEW, len(found))))
    _, first = np.unique(found.labels, return_index=True)
    return [int(i) for i in first[:PREVIEW]]


def _class_of(found: Images, i: int) -> str:
    if found.labels is None:
        return ""
    label = int(found.labels[i])
    return plain(found.class_names[label]) if found.class_names and label < len(found.class_names) else str(label)


def _upload_images() -> None:
    uploads = st.file_uploader(
        "Images, or a zip file with one folder per class",
        accept_multiple_files=True,
        key="upload images",
        help="Uploads are stored on this machine, so the URL of this page reopens them.",
    )
    if uploads and st.button("Use these images", icon=":material/visibility:", type="primary", key="look at uploads"):
        data.choose(data.keep([(upload.name, upload.getvalue()) for upload in uploads]))
        st.rerun()


def _timm() -> None:
    left, middle, right = st.columns([3, 3, 3], vertical_alignment="bottom")
    name = left.text_input("Name", key="timm name", placeholder="torch/cifar10, hfds/OWNER/NAME…")
    folders = choice_of_roots()
    label = middle.selectbox("In the folder", folders, index=0 if folders else None, key="timm root", placeholder="none")
    if right.button("Open the data set", disabled=not (name and label), icon=":material/folder_open:", key="open timm"):
        data.choose(f"{name.strip()}@{label}")
        st.rerun()
    if not folders:
        st.info("Start the app with the folder that contains the data: `mixer-probe app FOLDER`.", icon=":material/info:")


def choice_of_roots() -> list[str]:
    """The folders that the app was started with."""
    return [name for name, path in roots().items() if name != UPLOADED and path.is_dir()]


# -- where next --------------------------------------------------------------------------------------------------------------


def where_next(names: tuple[str, ...]) -> None:
    """What can be asked of these networks, with a link each."""
    if not names:
        return
    st.header("Analyses")
    for entry in menu.ENTRIES:
        left, right = st.columns([2, 7], vertical_alignment="center")
        left.page_link(f"pages/{entry.file}.py", label=entry.title, icon=entry.icon)
        right.caption(entry.question)
