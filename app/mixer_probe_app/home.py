"""The page Home: cards, the ways to find a network, the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.result import ModelRecord
from mixer_probe.core.words import short_name
from mixer_probe.images import Images
from mixer_probe.models import ModelCard
from mixer_probe.models.catalogue import CatalogueEntry
from mixer_probe_app import calls, choice, data, disk, page
from mixer_probe_app.choice import CHECKPOINT, RUN, UNTRAINED
from mixer_probe_app.local_files import CHECKPOINTS, UPLOADED, keep_upload, labels, roots
from mixer_probe_app.messages import guarded, plain, show_error
from mixer_probe_app.show import bullets, folded_table

ANY = "any"
FAMILIES = {ANY: "all", "mixer": "Mixer", "vit": "ViT", "cnn": "CNN"}
PREVIEW = 10
BUNDLED, BASELINE = "bundled", "untrained baseline"

QUESTION = (
    "What did an MLP-Mixer learn, and how does that differ from a ViT and a CNN? Choose one to "
    "three networks and a set of images; all pages use them. The URL of this page stores the "
    "choice."
)
NOTHING = "No network selected. Select one above, or find one below, to compare it with the others."
DOWNLOAD = (
    "timm downloads pretrained weights once if they are not on this machine. Untrained baselines "
    "need no download."
)
NO_RUN = (
    "No stored run in the app's folders. Create one with `mixer-probe extract MODEL --out "
    "run.zarr`, then start the app with `mixer-probe app run.zarr`."
)


def show() -> None:
    """The page Home."""
    names = page.begin("Networks and images", QUESTION, choose=False)
    st.header("Networks")
    columns = st.columns(choice.MOST, border=True)
    choice.chooser(columns)
    names = choice.chosen()
    for column, name in zip(columns, names):
        with column, guarded():
            (run_card if name.startswith(RUN) else network_card)(name)
    for column in columns[len(names) :]:
        column.caption(NOTHING)
    if st.session_state.get("failed models"):
        st.button(
            "Retry failed models",
            on_click=st.session_state["failed models"].clear,
            icon=":material/refresh:",
        )
    if not names:
        st.info(
            "No network is selected. Select one to three above.", icon=":material/arrow_upward:"
        )
    with st.expander(
        "Find another network: search timm, open a checkpoint or a stored run",
        icon=":material/search:",
    ):
        for tab, find in zip(
            st.tabs(["Search timm", "Checkpoint file", "Stored run"]),
            (search, open_checkpoint, open_run),
        ):
            with tab, guarded():
                find()
    st.header("Images")
    with guarded():
        images()
    choice.device_chooser(st.columns(3)[0])
    if names:
        st.header("Analyses")
        for entry in page.ENTRIES:
            left, right = st.columns([2, 7], vertical_alignment="center")
            left.page_link(f"pages/{entry.file}.py", label=entry.title, icon=entry.icon)
            right.caption(entry.about)


# -- cards -----------------------------------------------------------------------------------------


def network_card(name: str) -> None:
    """What a network is."""
    found = calls.card(name)
    _head(found.model, facts(name, found))
    if found.model.note:
        st.caption(plain(found.model.note))
    folded_table("Layers in execution order", found.to_frame())


def run_card(name: str) -> None:
    """What a stored run holds."""
    run = calls.stored_run(name)
    st.badge("stored run: representations only", color="blue", icon=":material/inventory_2:")
    lines = {
        "Family": run.model.family,
        "Parameters": f"{run.model.parameters:,}",
        "Images": f"{run.images.n:,} of {run.images.name}",
        "Layers": str(len(run.layers)),
        "Reduction over positions": run.reduce,
    }
    _head(run.model, lines)
    st.caption(
        "Available on the Similarity and Probes pages if it contains the images chosen in the "
        "sidebar."
    )


def _head(record: ModelRecord, lines: dict[str, str]) -> None:
    if record.trained:
        st.badge("trained", color="green", icon=":material/check:")
    else:
        st.badge("untrained", color="orange", icon=":material/casino:")
    st.markdown(f"**{plain(record.name)}**")
    bullets([f"{label}: {text}" for label, text in lines.items()])


def facts(name: str, found: ModelCard) -> dict[str, str]:
    """The lines of a card; bundled networks have their accuracy as well."""
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
    if name.startswith("zoo:") and not name.endswith(UNTRAINED) and found.model.trained:
        known = mp.zoo.card(name.removeprefix("zoo:"))
        lines["Test accuracy"] = (
            f"{100 * known.test_accuracy:.1f} % of {known.test_images:,} CIFAR-10 images"
        )
    return lines


# -- finding a network -----------------------------------------------------------------------------


def search() -> None:
    """Networks of timm by part of the name, family and tag."""
    left, middle, right = st.columns([3, 3, 3], vertical_alignment="bottom")
    text = left.text_input(
        "Part of a name", key="search text", placeholder="mixer, vit_small, resnet…"
    )
    look: dict[str, Any] = {
        "default": ANY,
        "required": True,
        "format_func": FAMILIES.__getitem__,
        "key": "search family",
    }
    family = middle.segmented_control("Family", list(FAMILIES), **look)
    tags = sorted(
        {
            tag
            for entry in choice.catalogue()
            for tag in entry.tags
            if not entry.name.startswith("zoo:")
        }
    )
    tag = right.selectbox(
        "Weights", [ANY, *tags], key="search tag", help="Pretrained weights with this tag of timm."
    )
    found = matching(text, family or ANY, tag)
    if not found:
        st.info(
            "No timm model matches. Try a shorter search term, or all families.",
            icon=":material/search_off:",
        )
        return
    left, middle, right = st.columns([3, 3, 3], vertical_alignment="bottom")
    name = left.selectbox(
        f"{len(found)} networks", [entry.name for entry in found], key="search result"
    )
    entry = next((e for e in found if e.name == name), found[0])
    own = [BUNDLED] if entry.name.startswith("zoo:") else [tag for tag in entry.tags if tag]
    weights = middle.selectbox("With", [BASELINE, *own], key="search weights")
    wanted = {BASELINE: entry.name + UNTRAINED, BUNDLED: entry.name}.get(
        weights, f"{entry.name}.{weights}"
    )
    right.button("Add to selection", on_click=choice.add, args=(wanted,), icon=":material/add:")
    if weights in dict(entry.notes):
        st.caption(plain(dict(entry.notes)[weights]))
    st.caption(DOWNLOAD)


def matching(text: str, family: str, tag: str) -> list[CatalogueEntry]:
    """Networks by part of the name, family and tag."""
    return [
        entry
        for entry in choice.catalogue()
        if text.strip().lower() in entry.name
        and family in (ANY, entry.family)
        and (tag == ANY or tag in entry.tags)
    ]


def open_checkpoint() -> None:
    """A checkpoint of the app's folders, or an upload. What is wrong with an upload is said beside
    it until another comes."""
    left, middle, right = st.columns([3, 3, 3], vertical_alignment="bottom")
    known = labels("checkpoint")
    label = left.selectbox(
        "File", known, index=0 if known else None, key="checkpoint file", placeholder="none here"
    )
    architectures = [
        entry.name for entry in choice.catalogue() if not entry.name.startswith("zoo:")
    ]
    look: dict[str, Any] = {
        "index": None,
        "key": "checkpoint architecture",
        "placeholder": "a name of timm",
    }
    architecture = middle.selectbox("Made for", architectures, **look)
    call: dict[str, Any] = {
        "on_click": choice.add,
        "args": (f"{CHECKPOINT}{label}@{architecture}",),
        "disabled": not (label and architecture),
    }
    right.button("Open", icon=":material/folder_open:", **call)
    about = (
        "Weights as safetensors or a torch file of plain tensors; nothing in it is executed. Then "
        "select it above."
    )
    kinds = [suffix.removeprefix(".") for suffix in CHECKPOINTS]
    upload = st.file_uploader(
        "Upload a checkpoint", type=kinds, key="upload checkpoint", help=about
    )
    if upload is None:
        return
    try:
        saved = keep_upload(upload.name, upload.getvalue(), Path(upload.name).suffix.lower())
        disk.tidy()
        st.success(
            f"{plain(upload.name)} is saved as {plain(saved)}; select it above.",
            icon=":material/check:",
        )
        if saved not in st.session_state.setdefault("saved uploads", set()):
            st.session_state["saved uploads"].add(saved)
            st.rerun()
    except MixerProbeError as error:
        show_error(error)


def open_run() -> None:
    """A stored run of the app's folders."""
    known = labels("run")
    if not known:
        st.info(NO_RUN, icon=":material/inventory_2:")
        return
    left, right = st.columns([6, 3], vertical_alignment="bottom")
    label = left.selectbox("Run", known, key="run label")
    right.button(
        "Add", on_click=choice.add, args=(RUN + label,), key="add run", icon=":material/add:"
    )


# -- images ----------------------------------------------------------------------------------------


def images() -> None:
    """Which images, what they look like, and the ways to other ones."""
    left, right = st.columns([1, 2], gap="large")
    with left:
        data.chooser(st.container())
    with right:
        preview(data.images())
    with st.expander(
        "Other images: upload files, or open a timm data set", icon=":material/add_photo_alternate:"
    ):
        uploaded, timm = st.tabs(["Upload", "timm data set"])
        about = "Uploads are stored on this machine, so the URL of this page reopens them."
        look: dict[str, Any] = {
            "accept_multiple_files": True,
            "key": "upload images",
            "help": about,
        }
        uploads = uploaded.file_uploader("Images, or a zip file with one folder per class", **look)
        look = {"icon": ":material/visibility:", "type": "primary", "key": "look at uploads"}
        if uploads and uploaded.button("Use these images", **look):
            data.choose(data.save_upload([(upload.name, upload.getvalue()) for upload in uploads]))
            st.rerun()
        with timm:
            open_timm()


def preview(found: Images) -> None:
    """The first image of each of the first classes, or the first images; the files that were
    skipped; the credit."""
    classes = f" of {found.n_classes} classes" if found.labels is not None else ", without labels"
    st.markdown(f"{len(found):,} images{classes}.")
    first = (
        range(len(found))
        if found.labels is None
        else np.unique(found.labels, return_index=True)[1].tolist()
    )
    names = [short_name(plain(data.class_of(found, i)))[:14] for i in first[:PREVIEW]]
    st.image([found[i].resize((96, 96)) for i in first[:PREVIEW]], caption=names, width=72)
    if found.skipped:
        path, why = found.skipped[0]
        st.warning(
            f"{len(found.skipped)} files could not be read and are skipped; the first is "
            f"{plain(Path(path).name)} ({plain(why)}).",
            icon=":material/broken_image:",
        )
    if found.credit:
        st.caption(plain(found.credit))


def open_timm() -> None:
    """A data set of timm in one of the folders that the app was started with."""
    left, middle, right = st.columns([3, 3, 3], vertical_alignment="bottom")
    name = left.text_input("Name", key="timm name", placeholder="torch/cifar10, hfds/OWNER/NAME…")
    folders = [name for name, path in roots().items() if name != UPLOADED and path.is_dir()]
    look: dict[str, Any] = {
        "index": 0 if folders else None,
        "key": "timm root",
        "placeholder": "none",
    }
    label = middle.selectbox("In the folder", folders, **look)
    if right.button(
        "Open the data set",
        disabled=not (name and label),
        icon=":material/folder_open:",
        key="open timm",
    ):
        data.choose(f"{name.strip()}@{label}")
        st.rerun()
    if not folders:
        st.info(
            "Start the app with the folder that contains the data: `mixer-probe app FOLDER`.",
            icon=":material/info:",
        )
