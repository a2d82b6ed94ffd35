"""Choosing one image: from a strip of thumbnails, by its number, or by an upload. The URL says
which (`img`)."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st
from PIL import Image, ImageOps

from mixer_probe.core.errors import ImagesError, ImagesWarning, StoreError
from mixer_probe.core.files import reason as files_reason
from mixer_probe.core.files import write_bytes
from mixer_probe.core.text import visible
from mixer_probe.images import Images, from_arrays, photo_credit
from mixer_probe.images.decode import MOST_PIXELS, conversions, reason, to_rgb
from mixer_probe_app import charts, data, local_files, url_state
from mixer_probe_app.messages import plain
from mixer_probe_app.store import cached

CHOSEN, CLASS, PAGE = "img", "img-class", "img-page"
EVERY_CLASS = "all"
UPLOAD = "upload:"
# In pixels along the longer side; larger uploads are reduced, since no network here reads more.
LONGEST = 1024
_SMALLEST, _FLATTEST = 8, 10
_MOST_BYTES = 100 * 2**20
_MOST_UPLOADS = 300
# Formats that are decoded; EPS, for one, would start another program.
_FORMATS = ("JPEG", "MPO", "JPEG2000", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
_SHOWN = "PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"
_NAME = re.compile(r"[0-9a-f]{16}\.png")

_COLUMNS, _ROWS = 10, 2
_THUMB = 64
_MARK = 4
# What Streamlit leaves below a chart, in px.
_BELOW = 20
HERE = "#D55E00"


@dataclass(frozen=True)
class Picture:
    """One image: as Images of one, its place among the images chosen (None for an upload), what
    decides its numbers, and the Python that opens it: `setup` makes `images`, and `code` is this
    one of them."""

    image: Images
    place: int | None
    title: str
    key: Hashable
    setup: str
    code: str

    @property
    def label(self) -> int | None:
        """Its class index, where it is known."""
        return None if self.image.labels is None else int(self.image.labels[0])

    @property
    def class_name(self) -> str:
        """The name of its class, "" where there is none."""
        names = self.image.class_names
        return names[self.label] if names and self.label is not None else ""

    @property
    def pixels(self) -> Image.Image:
        """The image itself."""
        return self.image[0]


# -- which one -------------------------------------------------------------------------------------


def chosen(images: Images | None) -> Picture | None:
    """The image that the URL names, the first where it names none; None where there are no images
    at all."""
    said = url_state.get(CHOSEN) or ""
    if said.startswith(UPLOAD):
        try:
            return uploaded(said.removeprefix(UPLOAD))
        except ImagesError as error:
            st.error(
                f"{plain(error)} The first image of the set is shown instead.",
                icon=":material/error:",
            )
            said = ""
            choose(0)
    if images is None:
        return None
    place = min(max(int(said) if said.isdecimal() else 1, 1), len(images)) - 1
    choose(place)
    one = images.subset([place])
    key = (data.source(), one.record.fingerprint)
    return Picture(
        one,
        place,
        f"image {place + 1}: {one.ids[0]}",
        key,
        data.setup(),
        f"images.subset([{place}])",
    )


def choose(place: int) -> None:
    """Look at this one of the images chosen from now on."""
    url_state.put(CHOSEN, str(place + 1) if place else None)


def chooser(images: Images | None) -> Picture | None:
    """The strip of thumbnails with its boxes, the upload, and the image at size; returns it."""
    left, right = st.columns([1, 3])
    with right:
        picture = chosen(images)
        if images is not None:
            show_strip(images, picture)
        else:
            st.info(
                "No images to choose from. Choose others in the sidebar, or upload one.",
                icon=":material/info:",
            )
        with st.expander("Upload an image", icon=":material/upload:", expanded=picture is None):
            label = f"{_SHOWN}, at most {MOST_PIXELS // 10**6} million pixels"
            st.file_uploader(label, key="img-upload", on_change=receive)
        for text in st.session_state.get("img-said", ()):
            st.info(plain(text), icon=":material/info:")
        if problem := st.session_state.get("img-problem"):
            st.error(
                f"{plain(problem)} The previous image is still shown.", icon=":material/error:"
            )
    if picture is not None:
        width, height = picture.pixels.size
        known = f", class {picture.class_name}" if picture.class_name else ""
        # Photographs carry the names of their authors.
        credit = photo_credit(picture.image.ids[0]) if picture.image.name == "photos" else ""
        title = f"{picture.title[0].upper()}{picture.title[1:]}{known}"
        caption = f"{title}, {width}×{height} px. {credit}".strip()
        left.image(
            enlarged(picture.pixels), caption=plain(caption), width="stretch", output_format="PNG"
        )
    return picture


def show_strip(images: Images, picture: Picture | None) -> None:
    """The thumbnails of the images, or of those of one class, page by page; another image brings
    its own page."""
    first, second, third = st.columns(3, vertical_alignment="bottom")
    current = picture.place if picture is not None else None
    if current is None:
        first.button(
            "Back to the image set",
            on_click=choose,
            args=(0,),
            icon=":material/undo:",
            width="stretch",
        )
    else:
        about = "Position of the image in the set."
        current = (
            url_state.number(
                first, f"Image, 1 to {len(images)}", CHOSEN, 1, len(images), 1, help=about
            )
            - 1
        )
    labels, names, places = images.labels, images.class_names, list(range(len(images)))
    if labels is not None and names and images.n_classes > 1:
        options = [EVERY_CLASS, *(names[int(label)] for label in np.unique(labels))]
        every = lambda name: "all classes" if name == EVERY_CLASS else name  # noqa: E731
        wanted = url_state.choose(
            second.selectbox, "Class", CLASS, options, EVERY_CLASS, format_func=every
        )
        places = [i for i in places if wanted in (EVERY_CLASS, names[int(labels[i])])]
    before = st.session_state.get("img-before")
    st.session_state["img-before"] = current
    if before is not None and before != current:
        url_state.put(PAGE, None)
    size = _COLUMNS * _ROWS
    pages = -(-len(places) // size)
    own = places.index(current) // size if current in places else 0
    page = (
        url_state.number(third, f"Page of thumbnails, 1 to {pages}", PAGE, 1, pages, own + 1)
        if pages > 1
        else 1
    )
    shown = places[(page - 1) * size :][:size]
    frame = thumbnails(images, shown, (data.source(), images.record.fingerprint), current)
    gallery(
        frame, {"name": "image"} | ({"class": "class"} if names else {}), f"strip {page} {current}"
    )
    st.caption("Click an image to select it.")


# -- thumbnails ------------------------------------------------------------------------------------


def thumbnails(
    images: Images, places: Sequence[int], key: Hashable, current: int | None = None
) -> pd.DataFrame:
    """One row per thumbnail: its `place`, `name`, `class` and `picture`, the current one framed."""
    draw = lambda: [thumb(images[place]) for place in places]  # noqa: E731
    found = cached(
        "pictures", ("thumbs", key, tuple(places)), "Drawing", draw, queue="draw", on_disk=False
    )
    classes = images.class_names and images.labels is not None
    rows = [
        (
            place,
            images.ids[place],
            data.class_of(images, place) if classes else "",
            as_uri(small, HERE if place == current else None),
        )
        for place, small in zip(places, found, strict=True)
    ]
    return pd.DataFrame(rows, columns=["place", "name", "class", "picture"])


def thumb(picture: Image.Image) -> Image.Image:
    """The picture with a longer side of some `_THUMB` px; small ones keep their pixels."""
    small = enlarged(picture, _THUMB)
    return (
        small
        if max(small.size) < 2 * _THUMB
        else ImageOps.contain(small, (_THUMB, _THUMB), Image.Resampling.LANCZOS)
    )


def as_uri(small: Image.Image, frame: str | None = None) -> str:
    """A picture as an address for charts, with a frame of a colour."""
    return charts.uri(
        ImageOps.expand(ImageOps.contain(small, (_THUMB - 2 * _MARK,) * 2), _MARK, frame)
        if frame
        else small
    )


def enlarged(picture: Image.Image, least: int = 288) -> Image.Image:
    """The picture with its pixels as squares, so that the longer side has at least `least` px."""
    factor = max(1, -(-least // max(picture.size)))
    return (
        picture
        if factor == 1
        else picture.resize(
            (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
        )
    )


def square(picture: Image.Image, side: int, frame: str | None = None) -> Image.Image:
    """The picture as a square of `side` px, a small one with whole pixels; with a `frame` of a
    colour."""
    border = side // 14 if frame else 0
    resampling = Image.Resampling.NEAREST if max(picture.size) < side else Image.Resampling.LANCZOS
    return ImageOps.expand(picture.resize((side - 2 * border,) * 2, resampling), border, frame or 0)


def gallery(frame: pd.DataFrame, tips: dict[str, str], key: str, columns: int = _COLUMNS) -> None:
    """Thumbnails in rows; a click looks at the image. `tips` are columns of the frame by what they
    are called."""
    if frame.empty:
        return
    order = np.arange(len(frame))
    table = frame.assign(row=order // columns, column=order % columns, spot=1)
    rows = int(table["row"].max()) + 1
    drawn = (
        alt.Chart(table)
        .mark_image(
            width=alt.expr(f"min(width / {columns} - 4, {_THUMB})"), height=_THUMB, cursor="pointer"
        )
        .encode(
            x=alt.X("column:O", axis=None, scale=alt.Scale(domain=list(range(columns)), padding=0)),
            y=alt.Y("row:O", axis=None, scale=alt.Scale(padding=0)),
            url="picture:N",
            tooltip=charts.tips({f"{field}:N": title for field, title in tips.items()}),
        )
        .add_params(charts.pick("pick", "place"))
        .properties(height=rows * (_THUMB + 6) + _BELOW, padding=0)
        .configure_view(stroke=None)
    )

    def take() -> None:
        place = charts.picked(key, "pick").get("place")
        if place is not None:
            choose(int(place))

    st.altair_chart(drawn, width="stretch", key=key, on_select=take, selection_mode="pick")


# -- uploads ---------------------------------------------------------------------------------------


def folder() -> Path:
    """The folder of uploaded pictures; hidden, so that it is not offered as a set of images."""
    return local_files.uploads() / ".pictures"


def uploaded(name: str) -> Picture:
    """The picture that was saved as `name`. Raises ImagesError where there is none."""
    file = folder() / name
    if not _NAME.fullmatch(name) or not file.is_file():
        raise ImagesError(
            "the uploaded image of this link is not stored on this machine; upload it again."
        )
    with Image.open(file, formats=("PNG",)) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    digest = name.removesuffix(".png")
    image = from_arrays([pixels], ids=[digest], name="uploaded image")
    setup = (
        "import numpy as np\nfrom PIL import Image\n\n"
        f"pixels = [np.asarray(Image.open({str(file)!r}))]\n"
        f'images = mp.images.from_arrays(pixels, ids=[{digest!r}], name="uploaded image")'
    )
    return Picture(image, None, f"uploaded image {digest[:8]}", (UPLOAD, digest), setup, "images")


def receive() -> None:
    """Save an upload and look at it, or say why not, for callbacks."""
    st.session_state.pop("img-said", None)
    st.session_state.pop("img-problem", None)
    file = st.session_state.get("img-upload")
    if file is None:
        return
    try:
        picture, said = read_upload(file.name, file.getvalue())
        name = save(picture)
    except (ImagesError, StoreError) as error:
        st.session_state["img-problem"] = str(error)
        return
    st.session_state["img-said"] = said
    url_state.put(CHOSEN, f"{UPLOAD}{name}")


def read_upload(name: str, content: bytes) -> tuple[Image.Image, list[str]]:
    """An uploaded picture as 8-bit RGB of at most `LONGEST` px a side, and what was changed, in
    sentences.

    Raises ImagesError for what is no picture, too large, too small, or broken off, with what to do
    about it."""
    shown = f"'{visible(' '.join(name[:60].split()))}'"
    if len(content) > _MOST_BYTES:
        raise ImagesError(
            f"{shown} has more than {_MOST_BYTES >> 20} MB; reduce its size, for example by saving "
            "it as JPEG."
        )
    try:
        with warnings.catch_warnings(record=True) as caught:
            # The limit here is lower than the one that Pillow warns of; which range was assumed is
            # stated below.
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", ImagesWarning)
            Image.init()
            known = [name for name in _FORMATS if name in Image.OPEN]
            with Image.open(io.BytesIO(content), formats=known) as opened:
                _check_size(shown, *opened.size)
                said = conversions(opened)
                picture = to_rgb(opened)
        said += [f"It {str(warning.message).removeprefix('an image ')}." for warning in caught]
    except ImagesError:
        raise
    except Image.DecompressionBombError:
        raise ImagesError(_TOO_LARGE.format(shown, "far more than")) from None
    except Exception as error:
        why = reason(error) if content else "the file is empty"
        raise ImagesError(f"{shown} cannot be read: {why}. Upload a {_SHOWN} file.") from error
    if max(picture.size) > LONGEST:
        small = ImageOps.contain(picture, (LONGEST, LONGEST), Image.Resampling.LANCZOS)
        said.append(
            f"It was reduced from {picture.width}×{picture.height} to {small.width}×{small.height} "
            "px."
        )
        picture = small
    return picture, said


_TOO_LARGE = (
    f"{{}} has {{}} {MOST_PIXELS // 10**6} million pixels, the maximum supported; reduce it, for "
    "example to 1000 px per side."
)


def _check_size(shown: str, width: int, height: int) -> None:
    """By the header alone, before anything is decoded. A strip one pixel high would become very
    long when its short side is made 224 px. Raises ImagesError."""
    if width * height > MOST_PIXELS:
        raise ImagesError(_TOO_LARGE.format(shown, f"{width}×{height} px, more than"))
    if min(width, height) < _SMALLEST or max(width, height) > _FLATTEST * min(width, height):
        raise ImagesError(
            f"{shown} has {width}×{height} px; the shorter side must have {_SMALLEST} px or more, "
            f"and the longer one at most {_FLATTEST} times as many. Crop it."
        )


def save(picture: Image.Image) -> str:
    """Save a picture, encoded anew, under the hash of its pixels, and give the name of its file;
    the oldest leave.

    Raises StoreError."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    digest = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()[:16]
    file = folder() / f"{digest}.png"
    try:
        if not file.exists():
            write_bytes(file, stream.getvalue())
            files = sorted(folder().glob("*.png"), key=lambda f: f.stat().st_mtime, reverse=True)
            for old in files[_MOST_UPLOADS:]:
                old.unlink(missing_ok=True)
    except (OSError, StoreError) as error:
        raise StoreError(f"cannot save the upload in {folder()}: {files_reason(error)}.") from error
    return file.name
