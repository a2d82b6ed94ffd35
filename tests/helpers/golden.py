"""Golden files: what the program said when somebody last read it, to be compared with what it says
now.

`pytest --update-golden` writes them anew; the change is then read as one diff."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.spines import Spine
from matplotlib.text import Text

from mixer_probe.core.result import Result, load_results
from mixer_probe.core.section import Picture, Section
from mixer_probe.report import make_sections

GOLDEN = Path(__file__).parents[1] / "golden"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
# Columns that a machine measures, or that follow from what it measured.
_MEASURED = {
    "ModelCost": {"peak_activation_bytes", "images_per_second", "low", "high"},
    "CostGrowth": {"seconds_per_image", "peak_activation_bytes"},
    "AccuracyCost": {"value", "on_frontier", "dominated"},
}
_WHOLE = 12  # numbers of an array that are written one by one


def numbers(values: Any) -> str:
    """An array as text: its numbers, or its shape with five sums that any change of a number or of
    their order moves."""
    array = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)
    if array.size <= _WHOLE:
        return "[" + ", ".join(f"{value:.10g}" for value in array.ravel()) + "]"
    known = np.nan_to_num(array.ravel())
    sums = (
        known.mean(),
        known.std(),
        known.min(),
        known.max(),
        known @ np.cos(np.arange(known.size)) / known.size,
    )
    return (
        f"{'x'.join(map(str, array.shape))} ({', '.join(f'{value:.10g}' for value in sums)}; "
        f"{np.isnan(array).sum()} NaN)"
    )


def figure_text(figure: Figure) -> Iterator[str]:
    """What a figure shows, axes by axes: titles, axis labels, and the data of every artist."""
    for axes in figure.axes:
        yield f"axes {axes.get_title()!r} x {axes.get_xlabel()!r} y {axes.get_ylabel()!r}"
        for artist in (child for child in axes.get_children() if not isinstance(child, Spine)):
            if (line := _artist_text(axes, artist)) is not None:
                yield "  " + line


def _artist_text(axes: Axes, artist: Any) -> str | None:
    name = str(artist.get_label())
    label = "" if not name or name.startswith("_") else f" {name!r}"
    match artist:
        case Line2D():
            return f"line{label} x {numbers(artist.get_xdata())} y {numbers(artist.get_ydata())}"
        case AxesImage():
            return f"image{label} {numbers(artist.get_array())} limits {numbers(artist.get_clim())}"
        case Collection():
            values = "" if artist.get_array() is None else f" values {numbers(artist.get_array())}"
            corners = [path.vertices for path in artist.get_paths()]
            shapes = (
                f" paths {numbers(np.concatenate(corners))}"
                if len(artist.get_offsets()) <= 1 and corners
                else ""
            )
            return f"collection{label} at {numbers(artist.get_offsets())}{values}{shapes}"
        case Patch() if artist is not axes.patch:
            return (
                f"patch{label} "
                f"{numbers(artist.get_path().transformed(artist.get_patch_transform()).vertices)}"
            )
        case Text() if artist.get_text() and artist not in (
            axes.title,
            axes._left_title,
            axes._right_title,
        ):  # type: ignore[attr-defined]
            return f"text {artist.get_text()!r}"
    return None


def section_text(section: Section) -> Iterator[str]:
    """Everything a section says, and the data of its figures."""
    yield f"# {section.title} (#{section.anchor})"
    yield from (f"warning: {text}" for text in section.warnings)
    yield from section.paragraphs
    yield from (f"see: {anchor}" for anchor in section.see)
    for item in section.content:
        yield ""
        if isinstance(item, Picture):
            yield f"figure {item.file_name}{' (folded)' if item.folded else ''}"
            yield from (f"shows: {item.shows}", f"reading: {item.reading}", f"alt: {item.alt}")
            yield from figure_text(item.figure)
        else:
            yield f"table{' (folded)' if item.folded else ''}: {item.caption}"
            yield " | ".join(item.header)
            yield from (" | ".join(text for text, _ in row) for row in item.rows)


def frame_text(result: Result) -> str:
    """The table of a result as CSV, floats with the digits that give them back."""
    frame: pd.DataFrame = result.to_frame()
    return frame.to_csv(index=not isinstance(frame.index, pd.RangeIndex), lineterminator="\n")


def folder_text(out: Path) -> str:
    """What a command or a study wrote: of every result its columns, each with mean and standard
    deviation of its numbers or how many texts it has, then the anchors of the report with its
    pictures and the headers of its tables."""
    results = load_results(out)
    lines = [line for result in results for line in _columns_text(result)]
    for section in make_sections(results):
        lines += ["", f"# {section.title} (#{section.anchor})"]
        for item in section.content:
            lines.append(
                f"figure {item.file_name}"
                if isinstance(item, Picture)
                else f"table {' | '.join(item.header)}"
            )
    return "\n".join(lines) + "\n"


def _columns_text(result: Result) -> Iterator[str]:
    frame = result.to_frame()
    yield f"{type(result).__name__}, {len(frame)} rows"
    measured = _MEASURED.get(type(result).__name__, set())
    for name, column in frame.items():
        if name in measured:
            yield f"  {name}: measured"
        elif pd.api.types.is_numeric_dtype(column):
            values = column.to_numpy(float)
            known = values[np.isfinite(values)]
            moments = (
                f", mean {known.mean():.6g}, deviation {known.std():.6g}" if known.size else ""
            )
            yield f"  {name}: {known.size} numbers{moments}"
        else:
            yield f"  {name}: {column.astype(str).nunique()} texts"


def check_folder(name: str, out: Path, update: bool) -> None:
    """Compares what a command or a study wrote with its golden file. Networks compute in float32,
    whose rounding depends on the machine, and may move a rank or a predicted class."""
    check(f"folders/{name}.txt", folder_text(out), update, tolerance=0.01)


def differences(golden: str, now: str, tolerance: float) -> list[str]:
    """Lines that differ, where numbers may differ by `tolerance`, relative or absolute."""
    old, new = golden.splitlines(), now.splitlines()
    found = [
        f"line {i}\n  was {a}\n  is  {b}"
        for i, (a, b) in enumerate(zip(old, new, strict=False), 1)
        if not _same(a, b, tolerance)
    ]
    return (
        found
        if len(old) == len(new)
        else [*found, f"{len(old)} lines were expected, {len(new)} came"]
    )


def _same(a: str, b: str, tolerance: float) -> bool:
    if a == b:
        return True
    if _NUMBER.sub("#", a) != _NUMBER.sub("#", b):
        return False
    pairs = zip(map(float, _NUMBER.findall(a)), map(float, _NUMBER.findall(b)), strict=True)
    return all(abs(x - y) <= tolerance * max(1, abs(x)) for x, y in pairs)


def check(name: str, now: str, update: bool, tolerance: float = 1e-9) -> None:
    """Compares a text with its golden file, or writes the file."""
    file = GOLDEN / name
    if update:
        file.parent.mkdir(exist_ok=True)
        file.write_text(now)
        return
    assert file.exists(), f"no golden file {name}: run pytest --update-golden"
    found = differences(file.read_text(), now, tolerance)
    assert not found, (
        f"{name}: {len(found)} lines differ (pytest --update-golden writes them anew)\n"
        + "\n".join(found[:5])
    )
