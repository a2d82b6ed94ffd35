"""Concepts of images: where each is (masks) or whether it is there (attributes), matched to the
images by name.

Masks come as one folder per concept with binary pictures, or as pictures of indices or colours with
a legend; attributes as a CSV file. A mask goes through the same resizing and cropping as its image,
by nearest neighbour.
"""

from __future__ import annotations

import csv
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from PIL import Image, ImageColor
from torchvision.transforms import Grayscale

from mixer_probe.core.errors import ImagesError, ImagesWarning, closest
from mixer_probe.core.validate import checked
from mixer_probe.images.decode import EXTENSIONS, orientation, reason, sized
from mixer_probe.images.folder import image_files
from mixer_probe.images.labelled import Images
from mixer_probe.images.transforms import model_transform

Missing = Literal["unknown", "absent"]
# A concept's index in a picture, or its colour as "#rrggbb" or (r, g, b).
Mark: TypeAlias = int | str | tuple[int, int, int]
Legend: TypeAlias = Mapping[str, Mark]
Geometry = Callable[[np.ndarray], np.ndarray]

LEGEND = "legend.csv"
_LOSSLESS = frozenset(
    {".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm", ".pbm", ".pnm", ".tga"}
)
_VALUES = {"1": 1.0, "true": 1.0, "0": 0.0, "false": 0.0, "": np.nan}
# Values of EXIF's orientation that turn a picture by a quarter.
_QUARTER_TURNS = range(5, 9)


class MaskReader(Protocol):
    """Where masks come from."""

    def read(self, place: int) -> np.ndarray:
        """Integers [layer, row, column] for the image at `place`: 0 is nothing, c + 1 is concept c.
        Layers may overlap."""
        ...

    def where(self, place: int) -> str:
        """What to call the mask in an error."""
        ...


@dataclass(frozen=True, eq=False)
class Concepts:
    """What is known of `names` in the images called `ids`.

    `known` [image, concept] says where a concept was looked for. Either `attributes` [image,
    concept] says whether it is there, or `reader` reads masks. `left_out` counts images without an
    annotation, `unmatched` annotations without an image."""

    name: str
    names: tuple[str, ...]
    ids: tuple[str, ...]
    known: np.ndarray
    attributes: np.ndarray | None = None
    reader: MaskReader | None = None
    left_out: int = 0
    unmatched: int = 0
    # Whether a mask of another size than its image, and of the same proportions, is stretched to
    # it.
    stretch: bool = False

    def __repr__(self) -> str:
        what = "attributes" if self.reader is None else "masks"
        return (
            f"Concepts({self.name!r}, {what} of {len(self.names)} concepts in {len(self.ids)} "
            "images)"
        )

    @property
    def kind(self) -> Literal["masks", "attributes"]:
        """ "masks" or "attributes"."""
        return "attributes" if self.reader is None else "masks"

    def mask(self, place: int, size: tuple[int, int]) -> np.ndarray:
        """The mask of an image of `size` (height, width), integers [layer, row, column] as in
        `MaskReader`.

        Raises ImagesError for attributes, an unreadable mask, and one of another size than its
        image."""
        if self.reader is None:
            raise ImagesError(f"'{self.name}' holds attributes of whole images and no masks")
        found = self.reader.read(place)
        shape = found.shape[1:]
        if shape == size or not len(found):
            return found if len(found) else np.zeros((1, *size), dtype=np.int32)
        same_shape = abs(shape[0] * size[1] - shape[1] * size[0]) <= max(*shape, *size)
        if self.stretch and same_shape:
            pictures = [Image.fromarray(layer.astype(np.int32)) for layer in found]
            return np.stack(
                [
                    np.asarray(p.resize((size[1], size[0]), Image.Resampling.NEAREST))
                    for p in pictures
                ]
            )
        cure = (
            "give stretch=True to stretch masks of the same proportions"
            if same_shape
            else "its proportions differ as well"
        )
        raise ImagesError(
            f"{self.reader.where(place)} is {shape[1]} x {shape[0]} and image '{self.ids[place]}' "
            f"is {size[1]} x {size[0]}: a mask has the size of its image; {cure}"
        )

    def planes(self, layers: np.ndarray) -> np.ndarray:
        """Booleans [concept, row, column] from integers [layer, row, column]."""
        marks = np.arange(1, len(self.names) + 1)[:, None, None]
        found = np.zeros((len(self.names), *layers.shape[1:]), dtype=bool)
        for layer in layers:
            found |= layer[None] == marks
        return found


def mask_geometry(
    size: Sequence[int], crop_pct: float = 1.0, crop_mode: str = "center"
) -> Geometry:
    """The resizing and cropping of `model_transform` for integers [row, column], by nearest
    neighbour.

    `size` is (channels, H, W); returns [H, W]. What lies outside the mask is 0."""
    # A mask has one channel, which must not become grey; after resizing and cropping come tensors.
    transform = model_transform((1, *size[1:]), (0.0,), (1.0,), "nearest", crop_pct, crop_mode)
    steps = [step for step in transform.transforms if not isinstance(step, Grayscale)]  # type: ignore[attr-defined]

    def transformed(mask: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(mask.astype(np.int32))
        for step in steps:
            following = step(picture)
            if not isinstance(following, Image.Image):
                break
            picture = following
        return np.asarray(picture)

    return transformed


def image_size(images: Images, index: int) -> tuple[int, int]:
    """Height and width of an image as it is shown, turned as its EXIF orientation says; only its
    header is read.

    Raises ImagesError if it cannot be opened."""
    try:
        with images.reader.open(int(images.positions[index])) as image:
            turned = orientation(image) in _QUARTER_TURNS
            width, height = image.size
    except Exception as error:
        raise ImagesError(
            f"cannot read image '{images.ids[index]}' of '{images.name}': {reason(error)}"
        ) from error
    return (width, height) if turned else (height, width)


# -- in memory -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Held:
    """Masks in memory, [concept, row, column] per image."""

    masks: Sequence[np.ndarray]

    def read(self, place: int) -> np.ndarray:
        planes = self.masks[place]
        return (
            np.asarray(planes, dtype=np.int32)
            * np.arange(1, len(planes) + 1, dtype=np.int32)[:, None, None]
        )

    def where(self, place: int) -> str:
        return f"mask {place}"


def concepts_from_arrays(
    masks: Sequence[np.ndarray] | np.ndarray,
    names: Sequence[str],
    ids: Sequence[str] | None = None,
    known: np.ndarray | None = None,
    name: str = "arrays",
) -> Concepts:
    """Concepts from boolean masks [concept, row, column], one array per image, each of the size of
    its image.

    `ids` are those of the images (None: "0", "1", ..., as those of a tensor of images). `known`
    [image, concept] says where a concept was looked for (None: everywhere). Raises ImagesError for
    masks, names and ids that do not fit each other."""
    found = [np.asarray(mask) for mask in masks]
    for i, mask in enumerate(found):
        if mask.ndim != 3 or len(mask) != len(names) or not np.isin(mask, (0, 1)).all():
            raise ImagesError(
                f"mask {i} has shape {mask.shape}: give booleans [concept, row, column] of the "
                f"{len(names)} concepts named"
            )
    return _checked(name, names, ids, len(found), known, reader=_Held(found))


def concepts_from_attributes(
    values: np.ndarray, names: Sequence[str], ids: Sequence[str] | None = None, name: str = "arrays"
) -> Concepts:
    """Concepts from attributes [image, concept]: 1 there, 0 not there, NaN unknown. `ids` as in
    `concepts_from_arrays`.

    Raises ImagesError for other values and for numbers of names and ids that do not fit."""
    array = np.asarray(values, dtype=np.float64)
    if (
        array.ndim != 2
        or array.shape[1] != len(names)
        or not np.isin(array[~np.isnan(array)], (0, 1)).all()
    ):
        raise ImagesError(
            f"attributes are 0, 1 or NaN [image, concept] of the {len(names)} concepts named, not "
            f"{array.shape}"
        )
    return _checked(name, names, ids, len(array), ~np.isnan(array), attributes=array == 1)


def class_concepts(images: Images) -> Concepts:
    """The classes of labelled images as attributes. Raises ImagesError without labels."""
    labels = images.require_labels("making attributes of classes")
    classes = np.unique(labels)
    names = [str(c) if images.class_names is None else images.class_names[c] for c in classes]
    return concepts_from_attributes(
        labels[:, None] == classes, names, images.ids, f"classes of {images.name}"
    )


def _checked(
    name: str,
    names: Sequence[str],
    ids: Sequence[str] | None,
    n: int,
    known: np.ndarray | None,
    attributes: np.ndarray | None = None,
    reader: MaskReader | None = None,
) -> Concepts:
    called = tuple(str(i) for i in range(n)) if ids is None else tuple(ids)
    _check_unique(names, "concept", name)
    _check_unique(called, "image", name)
    known = np.ones((n, len(names)), dtype=bool) if known is None else np.asarray(known, dtype=bool)
    if len(called) != n or known.shape != (n, len(names)) or not n:
        raise ImagesError(
            f"{n} images are annotated, and there are {len(called)} ids and what is known is "
            f"{known.shape}"
        )
    return Concepts(name, tuple(names), called, known, attributes, reader)


def _check_unique(names: Iterable[str], what: str, where: str) -> None:
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ImagesError(
            f"{where} names {what} '{twice[0]}' twice"
            + (f" (and {len(twice) - 1} more)" if twice[1:] else "")
        )


# -- from files ------------------------------------------------------------------------------------


@checked(ImagesError)
def load_concepts(
    source: str | os.PathLike[str],
    images: Images,
    legend: Legend | str | os.PathLike[str] | None = None,
    *,
    missing: Missing = "unknown",
    stretch: bool = False,
) -> Concepts:
    """Concepts of `images` from a folder of masks or a CSV file of attributes.

    `source` is one of
    - a folder with one folder per concept and binary masks in it, 0 where the concept is not;
    - a folder of pictures whose indices or colours a `legend` explains: {name: index}, {name:
      "#rrggbb"} or a CSV file with the columns "concept" and "index" or "colour" (default:
      legend.csv in the folder, if there is one). Concept "" is nothing, and so are index 0 and
      black where the legend does not name them;
    - a CSV file: ids of images in the first column, a concept in each other one, 1 there, 0 not
      there, empty unknown.

    A mask belongs to the image whose id is its path without suffix, or whose last part of the id is
    its name. Images without an annotation are left out of all measurements; a concept whose folder
    lacks an image is unknown in it. With `missing`="absent" it is not there, in images without any
    mask too. `stretch` allows masks of another size than their image, of the same proportions.
    Pixels are read when they are needed.

    Raises ImagesError for a source that is neither, names that fit no image or several, two
    annotations of one image, a legend that is not clear, and values other than 0 and 1. Warns with
    ImagesWarning about images and annotations left out."""
    path = Path(source)
    _check_unique(images.ids, "image", f"'{images.name}'")
    found = _Names(images)
    if path.is_file() and path.suffix.lower() == ".csv":
        concepts, unmatched = _from_table(path, found)
    elif not path.is_dir():
        raise ImagesError(f"{path} is no folder of masks and no CSV file of attributes")
    elif (marks := _legend(path, legend)) is None:
        concepts, unmatched = _from_folders(path, found, missing)
    else:
        files = _mask_files(path)
        places, unmatched = found.match(files, str(path), "masks")
        if not places:
            raise found.none_fits(files, str(path), "masks")
        chosen = sorted(places)
        pictures = _Pictures(tuple(path / files[places[i]] for i in chosen), marks)
        known = np.ones((len(chosen), len(marks.names)), dtype=bool)
        ids = tuple(images.ids[i] for i in chosen)
        concepts = Concepts(str(path), marks.names, ids, known, reader=pictures)
    annotated = set(concepts.ids)
    left_out = [name for name in images.ids if name not in annotated]
    parts = []
    if left_out:
        parts.append(
            f"{len(left_out)} of {len(images)} images have none (the first: '{left_out[0]}')"
        )
    if unmatched:
        parts.append(
            f"{len(unmatched)} belong to no image of '{images.name}' (the first: '{unmatched[0]}')"
        )
    if parts:
        what = "rows" if concepts.kind == "attributes" else "masks"
        warnings.warn(
            f"{what} of {path}: {' and '.join(parts)}; these are left out",
            ImagesWarning,
            stacklevel=3,
        )
    stretched = stretch and concepts.kind == "masks"
    return replace(concepts, left_out=len(left_out), unmatched=len(unmatched), stretch=stretched)


class _Names:
    """Finds images by what their annotations are called."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self.exact = {name: i for i, name in enumerate(images.ids)}
        self.whole: dict[str, list[int]] = {}
        self.last: dict[str, list[int]] = {}
        for i, name in enumerate(images.ids):
            bare = _bare(name)
            self.whole.setdefault(bare, []).append(i)
            self.last.setdefault(bare.rpartition("/")[2], []).append(i)

    def find(self, name: str) -> int | None:
        """The image that `name` belongs to. Raises ImagesError if there are several."""
        if name in self.exact:
            return self.exact[name]
        bare = _bare(name)
        found = self.whole.get(bare) or self.last.get(bare.rpartition("/")[2], [])
        if len(found) > 1:
            first, second = (self.images.ids[i] for i in found[:2])
            raise ImagesError(
                f"'{name}' fits {len(found)} images ('{first}', '{second}'): name it as the whole "
                "id of one"
            )
        return found[0] if found else None

    def match(
        self, names: Iterable[str], where: str, what: str
    ) -> tuple[dict[int, int], list[str]]:
        """{image: place in `names`} and the names that fit no image.

        Raises ImagesError if none fits, and for two names that fit one image."""
        places: dict[int, int] = {}
        called, unmatched = list(names), []
        for place, name in enumerate(called):
            image = self.find(name)
            if image is None:
                unmatched.append(name)
            elif image in places:
                raise ImagesError(
                    f"{where} has two {what} for image '{self.images.ids[image]}': "
                    f"'{called[places[image]]}' and '{name}'"
                )
            else:
                places[image] = place
        return places, unmatched

    def none_fits(self, names: Sequence[str], where: str, what: str) -> ImagesError:
        """The error when nothing has an image."""
        example = f"the first is called '{names[0]}', the first image '{self.images.ids[0]}'"
        return ImagesError(
            f"none of the {len(names)} {what} of {where} is named after an image of "
            f"'{self.images.name}': {example}"
        )


def _bare(name: str) -> str:
    """A name without the suffix of a picture; dots that begin no such suffix stay."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in EXTENSIONS else name


def _from_table(path: Path, found: _Names) -> tuple[Concepts, list[str]]:
    """The concepts of a CSV file, and the rows that belong to no image."""
    rows = _rows(path)
    header, rows = [name.strip() for name in rows[0]], rows[1:]
    if len(header) < 2 or not rows or not all(header[1:]):
        raise ImagesError(
            f"{path} is no table of attributes: give ids in the first column, a named concept in "
            "each other, and rows"
        )
    _check_unique(header[1:], "concept", str(path))
    ids = [row[0].strip() for row in rows]
    _check_unique(ids, "image", str(path))
    places, unmatched = found.match(ids, str(path), "rows")
    if not places:
        raise found.none_fits(ids, str(path), "rows")
    chosen = sorted(places)
    values: np.ndarray = np.empty((len(chosen), len(header) - 1))
    for i, image in enumerate(chosen):
        row = rows[places[image]]
        if len(row) != len(header):
            raise ImagesError(
                f"{path}: the row of '{row[0]}' has {len(row)} cells and the header {len(header)}"
            )
        for c, cell in enumerate(row[1:]):
            if cell.strip().lower() not in _VALUES:
                raise ImagesError(
                    f"{path}: '{cell}' for '{header[c + 1]}' in the row of '{row[0]}': write 1, 0 "
                    "or leave it empty"
                )
            values[i, c] = _VALUES[cell.strip().lower()]
    kept = ~np.isnan(values).all(1)
    if not kept.any():
        raise ImagesError(
            f"{path} says nothing about any image of '{found.images.name}': all cells are empty"
        )
    annotated = tuple(found.images.ids[i] for i, keep in zip(chosen, kept, strict=True) if keep)
    known = ~np.isnan(values[kept])
    return Concepts(
        str(path), tuple(header[1:]), annotated, known, attributes=values[kept] == 1
    ), unmatched


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            found = [row for row in csv.reader(stream) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImagesError(f"cannot read {path} as a CSV file: {error}") from error
    if not found:
        raise ImagesError(f"{path} is empty")
    return found


# -- masks in files --------------------------------------------------------------------------------


def _mask_files(top: Path) -> list[str]:
    """Paths of masks below `top`. Raises ImagesError for none, and for formats that change
    values."""
    files = sorted("/".join(parts) for parts in image_files(top))
    lossy = [name for name in files if Path(name).suffix.lower() not in _LOSSLESS]
    if lossy:
        raise ImagesError(f"{top / lossy[0]} may have lost exact values: save masks as PNG")
    if not files:
        raise ImagesError(f"{top} holds no masks; give pictures such as .png")
    return files


def _from_folders(top: Path, found: _Names, missing: Missing) -> tuple[Concepts, list[str]]:
    """The concepts of one folder each, and the masks that belong to no image."""
    folders = sorted(
        child for child in top.iterdir() if child.is_dir() and not child.name.startswith(".")
    )
    if not folders:
        raise ImagesError(
            f"{top} has no folder per concept and no legend of its pictures; give legend= or "
            f"{LEGEND} in it"
        )
    names = tuple(folder.name for folder in folders)
    paths: dict[int, dict[int, Path]] = {}
    unmatched: list[str] = []
    for c, folder in enumerate(folders):
        files = _mask_files(folder)
        places, others = found.match(files, str(folder), "masks")
        unmatched += [f"{folder.name}/{name}" for name in others]
        for image, place in places.items():
            paths.setdefault(image, {})[c] = folder / files[place]
    if not paths:
        raise found.none_fits(unmatched, str(top), "masks")
    # Where a missing mask says that nothing is there, an image without any is one without these
    # concepts.
    chosen = sorted(paths) if missing == "unknown" else list(range(len(found.images)))
    masks = tuple(paths.get(i, {}) for i in chosen)
    known = np.array(
        [[missing == "absent" or c in mask for c in range(len(names))] for mask in masks]
    )
    gaps = (~known).sum(0)
    if gaps.any():
        worst = int(gaps.argmax())
        warnings.warn(
            f"'{names[worst]}' of {top} has no mask for {gaps[worst]} of {len(known)} images "
            f"({(gaps > 0).sum()} concepts have gaps): they are unknown and left out of its sums; "
            "missing='absent' says that it is not there",
            ImagesWarning,
            stacklevel=4,
        )
    ids = tuple(found.images.ids[i] for i in chosen)
    return Concepts(str(top), names, ids, known, reader=_Binary(masks)), unmatched


@dataclass(frozen=True)
class _Binary:
    """Binary pictures by concept, for each image."""

    paths: tuple[dict[int, Path], ...]

    def read(self, place: int) -> np.ndarray:
        layers = []
        for c, path in sorted(self.paths[place].items()):
            values, _ = _opened(path)
            flat = values.reshape(*values.shape[:2], -1)
            there = (flat != 0).any(-1)
            if len(np.unique(flat[there], axis=0)) > 1:
                raise ImagesError(
                    f"{path} is no binary mask: it has several values above 0; a mask is 0 where "
                    "the concept is not"
                )
            layers.append(there * np.int32(c + 1))
        if not layers:
            return np.zeros((0, 0, 0), dtype=np.int32)
        sizes = {layer.shape for layer in layers}
        if len(sizes) > 1:
            raise ImagesError(
                f"masks of one image have the sizes {sorted(sizes)}: {self.where(place)} and others"
            )
        return np.stack(layers)

    def where(self, place: int) -> str:
        return str(next(iter(self.paths[place].values())))


def _opened(path: Path) -> tuple[np.ndarray, str]:
    """Values and mode of a mask, palettes as indices; transparency is not looked at."""
    try:
        with Image.open(path) as opened:
            picture: Image.Image = sized(opened)
            if picture.mode in ("RGBA", "LA", "PA"):
                picture = picture.convert({"RGBA": "RGB", "LA": "L", "PA": "P"}[picture.mode])
            return np.asarray(picture), picture.mode
    except Exception as error:
        raise ImagesError(f"cannot read the mask {path}: {reason(error)}") from error


@dataclass(frozen=True)
class _Marks:
    """What indices or colours stand for: {mark: concept + 1}, 0 for nothing."""

    names: tuple[str, ...]
    codes: dict[int, int] = field(default_factory=dict)
    colours: bool = False

    def text(self, code: int) -> str:
        """An index or colour in words."""
        return f"colour #{code:06x}" if self.colours else f"index {code}"


def _legend(top: Path, legend: Legend | str | os.PathLike[str] | None) -> _Marks | None:
    if legend is None:
        if not (top / LEGEND).is_file():
            return None
        legend = top / LEGEND
    if isinstance(legend, Mapping):
        return _marks(list(legend.items()), "the legend")
    path = Path(legend)
    rows = _rows(path)
    header = [name.strip().lower() for name in rows[0]]
    column = next((name for name in ("index", "colour", "color") if name in header), None)
    if "concept" not in header or column is None:
        raise ImagesError(
            f"{path} is no legend: it needs the columns 'concept' and 'index' or 'colour'"
        )
    name, mark = header.index("concept"), header.index(column)
    if any(len(row) != len(header) for row in rows):
        raise ImagesError(f"{path} is no legend: its rows have different numbers of cells")
    try:
        marks: list[tuple[str, Mark]] = [
            (row[name].strip(), int(row[mark]) if column == "index" else row[mark].strip())
            for row in rows[1:]
        ]
    except ValueError as error:
        raise ImagesError(f"{path}: an index is a whole number ({error})") from error
    return _marks(marks, str(path))


def _marks(rows: Sequence[tuple[str, Mark]], where: str) -> _Marks:
    """The legend of (concept, index or colour). Raises ImagesError for a mixture, and for one mark
    of two concepts."""
    names = tuple(dict.fromkeys(name for name, _ in rows if name))
    colours = {not isinstance(mark, (int, np.integer)) for _, mark in rows}
    if not names or len(colours) > 1:
        raise ImagesError(
            f"{where} names {'indices and colours: take one of them' if names else 'no concept'}"
        )
    # Nothing, unless the legend says otherwise.
    codes: dict[int, int] = {0: 0}
    said: dict[int, str] = {}
    for name, mark in rows:
        if isinstance(mark, (int, np.integer)):
            code = int(mark)
        else:
            try:
                red, green, blue = ImageColor.getrgb(mark)[:3] if isinstance(mark, str) else mark
            except ValueError as error:
                raise ImagesError(f"{where}: '{mark}' is no colour; write '#rrggbb'") from error
            code = int(_colour_code(int(red), int(green), int(blue)))
        if said.setdefault(code, name) != name:
            raise ImagesError(f"{where} gives one mark, {mark!r}, to '{said[code]}' and '{name}'")
        codes[code] = names.index(name) + 1 if name else 0
    return _Marks(names, codes, colours.pop())


def _colour_code(red: Any, green: Any, blue: Any) -> Any:
    """A colour of 8 bits per channel as one integer, or an array of such."""
    return (red << 16) | (green << 8) | blue


@dataclass(frozen=True)
class _Pictures:
    """Pictures of indices or colours and their legend."""

    paths: tuple[Path, ...]
    marks: _Marks

    def read(self, place: int) -> np.ndarray:
        path, marks = self.paths[place], self.marks
        values, mode = _opened(path)
        if not marks.colours and values.ndim != 2:
            raise ImagesError(
                f"{path} is a picture of colours and the legend names indices; name colours as "
                "'#rrggbb'"
            )
        if marks.colours and values.ndim == 2 and mode != "P":
            raise ImagesError(
                f"{path} is a picture of indices (mode {mode}) and the legend names colours; name "
                "indices"
            )
        if marks.colours and mode == "P":
            with Image.open(path) as picture:
                values = np.asarray(picture.convert("RGB"))
        codes = values.astype(np.int64)
        if marks.colours:
            codes = np.asarray(_colour_code(*np.moveaxis(codes, -1, 0)[:3]))
        present, inverse = np.unique(codes, return_inverse=True)
        unknown = [int(code) for code in present if int(code) not in marks.codes]
        if unknown:
            known = [marks.text(code) for code in marks.codes]
            raise ImagesError(
                f"{path} has {int((codes == unknown[0]).sum())} pixels of "
                f"{marks.text(unknown[0])}, which the legend does not name ({len(unknown)} such); "
                f"{closest(marks.text(unknown[0]), known)}; name it '' if it is nothing"
            )
        concepts = np.array([marks.codes[int(code)] for code in present], dtype=np.int32)
        return np.asarray(concepts[inverse.reshape(codes.shape)])[None]

    def where(self, place: int) -> str:
        return str(self.paths[place])
