"""Controlled distortions of images: shuffles, dropped patches, shifts, low- and high-pass filters.

A distortion acts on the input of a network: RGB tensors [n, 3, h, w] in the pixels of its input,
after resizing and cropping and before normalisation, as uint8 or as floats with 1 for white. It is
a frozen record and a pure function: the same images, numbers of images and seed give the same
pixels, whatever the batches. Shuffles and cyclic shifts move values and change none, so that `undo`
gives the image back bit for bit.

Random choices are one for all images (`shared=True`) or one per image. An image's own choice
depends on the seed and its number: its place in a bare tensor, a hash of its id in `distort(images,
...)`, so that a subset of the images is distorted as the whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from mixer_probe.core.errors import ImagesError, closest
from mixer_probe.core.fingerprint import altered_key, images_fingerprint
from mixer_probe.core.result import ImagesRecord, storable
from mixer_probe.core.validate import check_grid, checked
from mixer_probe.images.labelled import Images, indexed_batches
from mixer_probe.images.transforms import Transform, split_transform

Colour = tuple[float, float, float]
Grid = int | tuple[int, int]
D = TypeVar("D", bound="type[Distortion]")

GREY: Colour = (0.5, 0.5, 0.5)
BLACK: Colour = (0.0, 0.0, 0.0)
DISTORTIONS: dict[str, type[Distortion]] = {}


@dataclass(frozen=True)
class Distortion:
    """Base of all distortions. `kind` groups those that differ in `strength` only; `exact` ones can
    be undone."""

    _unit: ClassVar[str] = ""
    _severity_sign: ClassVar[int] = 1
    exact: ClassVar[bool] = False

    @property
    def unit(self) -> str:
        """What the strength counts."""
        return self._unit

    @property
    def severity_sign(self) -> int:
        """1 where a larger strength takes more away, -1 where a smaller one does."""
        return self._severity_sign

    @property
    def kind(self) -> str:
        """What is done, without how much of it."""
        raise NotImplementedError

    @property
    def strength(self) -> float:
        """How much of it, in `unit`."""
        raise NotImplementedError

    @property
    def strength_text(self) -> str:
        """The strength as a figure writes it."""
        return f"{self.strength:g}"

    @property
    def label(self) -> str:
        """Kind and strength."""
        return f"{self.kind}, {self.strength_text}"

    def __call__(self, images: Tensor, index: Sequence[int] | None = None) -> Tensor:
        """The distorted images [n, 3, h, w]; `index` holds their numbers, by default 0 to n - 1.

        Raises ImagesError for another shape or type, and for a grid that does not divide the
        images."""
        return self._apply(_checked(images), _numbers(index, len(images)))

    def undo(self, images: Tensor, index: Sequence[int] | None = None) -> Tensor:
        """The images before the distortion, bit for bit. Raises ImagesError for a distortion that
        loses something."""
        if not self.exact:
            raise ImagesError(
                f"'{self.label}' loses a part of the image and cannot be undone; shuffles and "
                "cyclic shifts can"
            )
        return self._apply(_checked(images), _numbers(index, len(images)), undo=True)

    def _apply(self, images: Tensor, index: Sequence[int], undo: bool = False) -> Tensor:
        """The distorted images; with `undo`, of exact distortions only, the images before."""
        raise NotImplementedError


def _known(cls: D) -> D:
    """Class decorator: a result can carry this distortion."""
    DISTORTIONS[cls.__name__] = cls
    return storable(cls)


# -- shuffles --------------------------------------------------------------------------------------


class _OnGrid(Distortion):
    """Base of distortions of the cells of a `grid`, whose strength it is."""

    grid: Grid

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", _square(self.grid))

    @property
    def strength(self) -> float:
        """Cells along the longer side of the grid."""
        return float(max(_pair(self.grid)))

    @property
    def strength_text(self) -> str:
        """See `Distortion`."""
        return _grid_text(self.grid)


@checked(ImagesError)
@_known
@dataclass(frozen=True)
class PatchShuffle(_OnGrid):
    """The cells of a `grid` (rows, columns; one number for both) in random order, every order but
    the present one alike.

    Structure inside cells stays, that between them goes. `order` says which: cell i of the result
    is cell order[i]."""

    grid: Grid
    seed: int = 0
    shared: bool = False

    _unit: ClassVar[str] = "grid"
    exact: ClassVar[bool] = True

    @property
    def kind(self) -> str:
        """See `Distortion`."""
        return "patches shuffled"

    def order(self, index: Sequence[int]) -> Tensor:
        """Which cell [n, cell] comes to each place, for the images of these numbers."""
        rows, columns = _pair(self.grid)
        return _orders(rows * columns, index, self.seed, self.shared)

    def _apply(self, images: Tensor, index: Sequence[int], undo: bool = False) -> Tensor:
        order = self.order(index)
        return permute_cells(images, order.argsort(1) if undo else order, self.grid)


@checked(ImagesError)
@_known
@dataclass(frozen=True)
class PixelShuffle(_OnGrid):
    """The pixels inside each cell of a `grid` in random order; grid 1 shuffles the pixels of the
    whole image.

    Structure inside cells goes, that between them stays: the fewer cells, the farther the pixels
    move. `tied` gives all cells of an image the same order, as Tolstikhin et al. 2021 (Fig. 4) do.
    The colours of a pixel stay together."""

    grid: Grid = 1
    seed: int = 0
    shared: bool = False
    tied: bool = True

    _unit: ClassVar[str] = "grid of cells"
    _severity_sign: ClassVar[int] = -1
    exact: ClassVar[bool] = True

    @property
    def kind(self) -> str:
        """See `Distortion`."""
        return "pixels shuffled inside cells"

    def _apply(self, images: Tensor, index: Sequence[int], undo: bool = False) -> Tensor:
        cells = to_cells(images, self.grid)
        pixels = cells.flatten(3)
        n, count, _, size = pixels.shape
        own = 1 if self.tied else count
        order = torch.stack(
            [_orders(size, index, self.seed, self.shared, salt) for salt in range(own)], 1
        )
        order = (order.argsort(2) if undo else order).to(images.device)
        moved = torch.take_along_dim(pixels, order[:, :, None].expand(n, count, 1, size), 3)
        return from_cells(moved.reshape(cells.shape), self.grid)


@_known
@dataclass(frozen=True)
class Chain(Distortion):
    """Several distortions, one after another. `name` is the kind; strength and unit are those of
    the last step."""

    steps: tuple[Distortion, ...]
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        if not self.steps:
            raise ImagesError("a chain of distortions has at least one step")

    @property
    def kind(self) -> str:
        """See `Distortion`."""
        return self.name or " then ".join(step.kind for step in self.steps)

    @property
    def strength(self) -> float:
        """See `Distortion`."""
        return self.steps[-1].strength

    @property
    def unit(self) -> str:
        """See `Distortion`."""
        return self.steps[-1].unit

    @property
    def severity_sign(self) -> int:
        """See `Distortion`."""
        return self.steps[-1].severity_sign

    @property
    def strength_text(self) -> str:
        """See `Distortion`."""
        return self.steps[-1].strength_text

    @property
    def label(self) -> str:
        """See `Distortion`."""
        return (
            f"{self.name}, {self.strength_text}"
            if self.name
            else ", then ".join(step.label for step in self.steps)
        )

    def _apply(self, images: Tensor, index: Sequence[int], undo: bool = False) -> Tensor:
        for step in self.steps:
            images = step(images, index)
        return images

    def undo(self, images: Tensor, index: Sequence[int] | None = None) -> Tensor:
        """See `Distortion`; the steps are undone from the last to the first."""
        for step in reversed(self.steps):
            images = step.undo(images, index)
        return images


@checked(ImagesError)
def paper_shuffle(grid: Grid, seed: int = 0) -> Chain:
    """Tolstikhin et al. 2021, Fig. 4: patches in one order and the pixels inside all patches in one
    order, the same for all images; grid 1 is one order of all pixels. To train a Mixer on images in
    one order of patches is as easy as on plain ones; a Mixer that was trained on plain ones has
    never seen them."""
    steps = PatchShuffle(grid, seed, shared=True), PixelShuffle(grid, seed, shared=True)
    return Chain(steps, "patches and pixels in one order")


# -- what is lost ----------------------------------------------------------------------------------


@checked(ImagesError)
@_known
@dataclass(frozen=True)
class PatchDrop(Distortion):
    """A random fraction (`fraction`) of the cells of a `grid`, in whole cells, set to the colour
    `fill` (1 is white).

    With one seed a larger fraction drops what a smaller one drops, and more. Naseer et al. 2021
    ("Intriguing Properties of Vision Transformers")."""

    fraction: float
    grid: Grid
    seed: int = 0
    shared: bool = False
    fill: Colour = GREY

    _unit: ClassVar[str] = "fraction of patches"

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", _square(self.grid))
        if not 0 <= self.fraction <= 1:
            raise ImagesError(
                f"the fraction of patches must be between 0 and 1, not {self.fraction}"
            )

    @property
    def kind(self) -> str:
        """See `Distortion`."""
        return "patches dropped"

    @property
    def strength(self) -> float:
        """Fraction of the cells."""
        return self.fraction

    @property
    def strength_text(self) -> str:
        """See `Distortion`."""
        return f"{100 * self.fraction:g} %"

    def _apply(self, images: Tensor, index: Sequence[int], undo: bool = False) -> Tensor:
        cells = to_cells(images, self.grid)
        count = cells.shape[1]
        rank = _orders(count, index, self.seed, self.shared).to(images.device)
        dropped = (rank < round(self.fraction * count))[:, :, None, None, None]
        return from_cells(torch.where(dropped, _colour(self.fill, images), cells), self.grid)


@checked(ImagesError)
@_known
@dataclass(frozen=True)
class Shift(Distortion):
    """The image moved by `rows` pixels down and `columns` to the right (negative: up and left).

    `edge` "cyclic" brings in again what leaves on the other side, and can be undone; "repeat" fills
    the gap with copies of the border row or column."""

    rows: int
    columns: int
    edge: Literal["cyclic", "repeat"] = "cyclic"

    _unit: ClassVar[str] = "pixels"

    def __post_init__(self) -> None:
        if self.edge not in ("cyclic", "repeat"):
            raise ImagesError(
                f"unknown edge '{self.edge}'; {closest(str(self.edge), ('cyclic', 'repeat'))}"
            )

    @property
    def kind(self) -> str:
        """See `Distortion`."""
        return "cyclic shift" if self.edge == "cyclic" else "shift with border repeated"

    @property
    def strength(self) -> float:
        """The larger of the two steps in pixels."""
        return float(max(abs(self.rows), abs(self.columns)))

    @property
    def label(self) -> str:
        """See `Distortion`."""
        return f"{self.kind}, {self.rows} px down and {self.columns} right"

    def _apply(self, images: Tensor, index: Sequence[int], undo: bool = False) -> Tensor:
        if self.edge == "cyclic":
            return images.roll((self.rows, self.columns), (2, 3))
        for dim, step in ((2, self.rows), (3, self.columns)):
            places = (torch.arange(images.shape[dim], device=images.device) - step).clamp(
                0, images.shape[dim] - 1
            )
            images = images.index_select(dim, places)
        return images

    def undo(self, images: Tensor, index: Sequence[int] | None = None) -> Tensor:
        """See `Distortion`."""
        if self.edge != "cyclic":
            raise ImagesError(
                f"'{self.label}' loses what leaves the image and cannot be undone; edge='cyclic' "
                "can"
            )
        return replace(self, rows=-self.rows, columns=-self.columns)(images, index)


Filter = Literal["gaussian", "ideal"]


@dataclass(frozen=True)
class _Pass(Distortion):
    """What the two filters share. `cutoff` is in cycles per image, along the height and the width
    alike.

    "gaussian" multiplies the Fourier transform by exp(-f^2 / (2 cutoff^2)), "ideal" keeps f <=
    cutoff. The transform takes the image for periodic, so that opposite borders meet. Results are
    floats with 1 for white, of uint8 images too, and are not clipped: an ideal filter overshoots at
    edges."""

    cutoff: float
    filter: Filter = "gaussian"

    _unit: ClassVar[str] = "cutoff (cycles per image)"

    def __post_init__(self) -> None:
        if not self.cutoff > 0:
            raise ImagesError(
                f"a cutoff is a positive number of cycles per image, not {self.cutoff}"
            )
        if self.filter not in ("gaussian", "ideal"):
            raise ImagesError(
                f"unknown filter '{self.filter}'; "
                f"{closest(str(self.filter), ('gaussian', 'ideal'))}"
            )

    @property
    def strength(self) -> float:
        """The cutoff in cycles per image."""
        return self.cutoff

    def _low(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        down = torch.fft.fftfreq(height, 1 / height, device=images.device, dtype=images.dtype)
        right = torch.fft.rfftfreq(width, 1 / width, device=images.device, dtype=images.dtype)
        squared = down[:, None].square() + right.square()
        passed = (
            (squared <= self.cutoff**2).to(images.dtype)
            if self.filter == "ideal"
            else (-squared / (2 * self.cutoff**2)).exp()
        )
        filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(images) * passed, s=(height, width))
        return filtered


@checked(ImagesError)
@_known
@dataclass(frozen=True)
class LowPass(_Pass):
    """Coarse structure alone: the image filtered at `cutoff`. The mean colour stays."""

    _severity_sign: ClassVar[int] = -1

    @property
    def kind(self) -> str:
        """See `Distortion`."""
        return "low-pass"

    def _apply(self, images: Tensor, index: Sequence[int], undo: bool = False) -> Tensor:
        return self._low(_floats(images))


@checked(ImagesError)
@_known
@dataclass(frozen=True)
class HighPass(_Pass):
    """Fine structure alone: the image minus its `LowPass` of the same cutoff, plus the colour
    `level`.

    With the level black, low-pass and high-pass add up to the image. A network should get its mean
    colour as the level: the mean of an image is among what the filter takes away, and black is no
    neutral colour."""

    level: Colour = BLACK

    @property
    def kind(self) -> str:
        """See `Distortion`."""
        return "high-pass"

    def _apply(self, images: Tensor, index: Sequence[int], undo: bool = False) -> Tensor:
        pixels = _floats(images)
        return pixels - self._low(pixels) + _colour(self.level, pixels)


# -- images ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DistortedImages:
    """`images` with a `distortion`, done batch by batch when asked for; extract and every measure
    take it like `Images`.

    The name and the hash of the record contain the distortion, so that a store never takes one for
    the other; ids and labels are those of the images, so that clean and distorted representations
    can be compared."""

    images: Images
    distortion: Distortion
    _seen: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"DistortedImages({self.images!r}, {self.distortion.label})"

    @property
    def ids(self) -> tuple[str, ...]:
        """One name per image."""
        return self.images.ids

    @property
    def keys(self) -> tuple[str, ...]:
        """Key of each image with the distortion, and with the number by which the image draws its
        own choices."""
        keys, how = self.images.keys, repr(self.distortion)
        if self._seen.get("of") is not keys:
            self._seen["keys"] = tuple(
                altered_key(key, how, str(number))
                for key, number in zip(keys, image_numbers(self.ids), strict=True)
            )
            self._seen["of"] = keys
        return self._seen["keys"]

    @property
    def labels(self) -> np.ndarray | None:
        """Class indices [n], None without labels."""
        return self.images.labels

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names by class index."""
        return self.images.class_names

    @property
    def record(self) -> ImagesRecord:
        """What a result says about the images."""
        record = self.images.record
        found = images_fingerprint(self.keys, self.labels, self.class_names, record.split)
        return replace(record, name=f"{record.name} ({self.distortion.label})", fingerprint=found)

    def subset(self, indices: Iterable[int] | np.ndarray) -> DistortedImages:
        """Some of the images, each distorted as it is here; see `Images.subset`."""
        return replace(self, images=self.images.subset(indices))

    @checked(ImagesError)
    def sample(self, limit: int | None, seed: int = 0) -> DistortedImages:
        """At most `limit` of the images; see `Images.sample`."""
        return replace(self, images=self.images.sample(limit, seed))

    def batches(
        self,
        transform: Transform,
        batches: int | Iterable[Sequence[int]],
        *,
        workers: int | Literal["auto"] = "auto",
        pin_memory: bool = False,
    ) -> Iterator[Tensor]:
        """Float tensors [B, 3, h, w], see `Images.batches`: transformed, distorted, then
        normalised.

        The distortion stands before the Normalize that ends the transform; a transform without one
        gives pixels as it is."""
        to_pixels, normalise = split_transform(transform)
        numbers = image_numbers(self.ids)
        for batch, index in indexed_batches(
            self.images, to_pixels, batches, workers=workers, pin_memory=pin_memory
        ):
            yield normalise(self.distortion(batch, [numbers[i] for i in index]))


@overload
def distort(images: Tensor, distortion: Distortion) -> Tensor: ...
@overload
def distort(images: Images | DistortedImages, distortion: Distortion) -> DistortedImages: ...
def distort(
    images: Images | DistortedImages | Tensor, distortion: Distortion
) -> DistortedImages | Tensor:
    """Images with a distortion, in the pixels of each network that looks at them, or a tensor of
    pixels [n, 3, h, w] distorted.

    Distorted images are distorted once more. Raises ImagesError for anything else."""
    if isinstance(images, Tensor):
        return distortion(images)
    if isinstance(images, DistortedImages):
        return DistortedImages(images.images, Chain((images.distortion, distortion)))
    if not isinstance(images, Images):
        raise ImagesError(
            "images are what load_images returns or a tensor [n, 3, h, w], not a "
            f"{type(images).__name__}"
        )
    return DistortedImages(images, distortion)


def image_numbers(ids: Sequence[str]) -> list[int]:
    """The number by which each image draws its own choices: a hash of its id."""
    return [zlib.crc32(name.encode("utf-8", "surrogateescape")) for name in ids]


# -- cells -----------------------------------------------------------------------------------------


def permute_cells(images: Tensor, order: Tensor, grid: Grid) -> Tensor:
    """Images [n, c, h, w] whose cell i, row by row of `grid`, is cell order[i] of the original;
    `order` is [cell] or [n, cell].

    Raises ImagesError for a grid that does not divide the images and for an order of another
    length."""
    cells = to_cells(images, grid)
    order = order.to(images.device).expand(len(cells), -1)
    if order.shape[1] != cells.shape[1]:
        raise ImagesError(
            f"an order of {order.shape[1]} cells does not fit a grid of {_grid_text(grid)} = "
            f"{cells.shape[1]}"
        )
    return from_cells(cells[torch.arange(len(cells), device=images.device)[:, None], order], grid)


def to_cells(images: Tensor, grid: Grid) -> Tensor:
    """Images [n, c, h, w] as [n, cell, c, h / rows, w / columns], cells row by row. Raises
    ImagesError where the grid, in whole pixels, does not divide the images."""
    (rows, columns), (n, channels, height, width) = _pair(grid), images.shape
    if height % rows or width % columns:
        fitting = ", ".join(map(str, dividing_grids(height, width)))
        raise ImagesError(
            f"a grid of {_grid_text(grid)} does not divide images of {height}×{width} px; grids "
            f"that do: {fitting}"
        )
    parts = images.reshape(n, channels, rows, height // rows, columns, width // columns)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(
        n, rows * columns, channels, height // rows, width // columns
    )


def from_cells(cells: Tensor, grid: Grid) -> Tensor:
    """The inverse of `to_cells`."""
    (rows, columns), (n, _, channels, height, width) = _pair(grid), cells.shape
    parts = cells.reshape(n, rows, columns, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(n, channels, rows * height, columns * width)


def dividing_grids(height: int, width: int) -> list[int]:
    """The square grids, from 1 up, that divide images of this size."""
    return [g for g in range(1, min(height, width) + 1) if height % g == 0 and width % g == 0]


def _pair(grid: Grid) -> tuple[int, int]:
    return (grid, grid) if isinstance(grid, int) else (grid[0], grid[1])


def _square(grid: Grid) -> Grid:
    """One number for a square grid, so that equal distortions are equal records."""
    rows, columns = check_grid(grid, ImagesError)
    return rows if rows == columns else (rows, columns)


def _grid_text(grid: Grid) -> str:
    rows, columns = _pair(grid)
    return f"{rows}×{columns}"


# -- randomness and values -------------------------------------------------------------------------


def _orders(size: int, index: Sequence[int], seed: int, shared: bool, salt: int = 0) -> Tensor:
    """A random order [n, size] for every image; one for all of them if `shared`."""
    if shared or size == 1:
        return torch.from_numpy(_order(size, [seed, salt])).expand(len(index), -1)
    return torch.from_numpy(np.stack([_order(size, [seed, salt, number]) for number in index]))


def _order(size: int, key: Sequence[int]) -> np.ndarray:
    random, plain = np.random.default_rng(key), np.arange(size)
    order: np.ndarray = random.permutation(size)
    # Of few cells one order in some is the present one, which would be no shuffle at all.
    while size > 1 and (order == plain).all():
        order = random.permutation(size)
    return order


def _numbers(index: Sequence[int] | None, n: int) -> Sequence[int]:
    found = range(n) if index is None else index
    if len(found) != n:
        raise ImagesError(f"{len(found)} numbers for {n} images: give one per image")
    return found


def _checked(images: Tensor) -> Tensor:
    if (
        not isinstance(images, Tensor)
        or images.ndim != 4
        or images.shape[1] != 3
        or not len(images)
    ):
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ImagesError(f"images to distort are a tensor [n, 3, height, width], not {shape}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ImagesError(f"images to distort are uint8 or floating-point, not {images.dtype}")
    return images


def _floats(images: Tensor) -> Tensor:
    """Floats with 1 for white; half precision becomes float32, for which there are Fourier
    transforms."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    return images if images.dtype == torch.float64 else images.float()


def _colour(colour: Colour, like: Tensor) -> Tensor:
    """A colour [3, 1, 1] in the type of the images; 1 is white."""
    values = torch.tensor(colour, dtype=torch.float64).view(3, 1, 1)
    scaled = (255 * values).round().clamp(0, 255) if like.dtype == torch.uint8 else values
    return scaled.to(dtype=like.dtype).to(like.device)
