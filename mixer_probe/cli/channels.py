"""`channels`: what single channels respond to, which classes they separate, and which channels of
other networks match them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixer_probe.cli.options import (
    AsJson,
    Baselines,
    ImageOptions,
    ModelNames,
    ModelOptions,
    OptionalOut,
    PassOptions,
    Permutations,
    command,
    parts,
)
from mixer_probe.cli.output import finish, kept_in
from mixer_probe.core.errors import LayerError, MeasureError, closest

if TYPE_CHECKING:
    from mixer_probe.models import Model


@command("channels zoo:mixer zoo:vit --what selectivity,partners,pages --out channels")
def channels(
    names: ModelNames,
    what: Annotated[
        str | None,
        typer.Option(
            help=(
                "statistics, selectivity, needed, partners, pages; several with commas, or all "
                "(default). Also dissection, visualization."
            )
        ),
    ] = None,
    channel: Annotated[
        list[str] | None,
        typer.Option(
            help="LAYER:NUMBER, such as blocks.3:17: a page for that channel; may be repeated."
        ),
    ] = None,
    pages: Annotated[
        int, typer.Option(min=1, help="Channel pages per layer, if no channels are given.")
    ] = 1,
    top: Annotated[int, typer.Option(min=1, help="Top and bottom images per channel.")] = 9,
    masks: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Segmentation masks for dissection: one folder per concept, or label images with a "
                "legend.csv."
            )
        ),
    ] = None,
    attributes: Annotated[
        Path | None,
        typer.Option(help="Table of images and binary attributes (1 or 0) for dissection."),
    ] = None,
    visualize: Annotated[
        bool,
        typer.Option(
            "--visualize", help="Feature visualizations of the channels that have a page."
        ),
    ] = False,
    source: ImageOptions = ImageOptions(),
    passes: PassOptions = PassOptions(batch_size=32),
    models: ModelOptions = ModelOptions(),
    baselines: Baselines = True,
    permutations: Permutations = 100,
    out: OptionalOut = None,
    as_json: AsJson = False,
) -> None:
    """Channels: statistics, the classes that they separate, accuracy against their number, best
    matches, pages of single ones.

    With --masks or --attributes the concepts that they mark; with --visualize images that excite
    them (at 32 px, seconds each).

    With --out writes every figure as SVG and PNG, the numbers as CSV, results.json and report.html.
    What is finished is kept in the folder, and the same command goes on with it after an
    interrupt."""
    from mixer_probe.capture.analysis_inputs import halves
    from mixer_probe.channels.analyses import check_labels
    from mixer_probe.images import load_concepts
    from mixer_probe.stats import check_permutations
    from mixer_probe.study import run_analyses

    channels: dict[str, tuple[int, ...]] = {}
    for text in dict.fromkeys(channel or ()):
        layer, _, number = text.rpartition(":")
        if not layer or not number.isdecimal():
            raise MeasureError(f"--channel is LAYER:NUMBER such as blocks.3:17, not '{text}'")
        channels[layer] = (*channels.get(layer, ()), int(number))
    by_name = what not in (None, "all")
    annotated = [path for path in (masks, attributes) if path is not None]
    chosen = _analyses(what, len(names), bool(channels), bool(annotated), visualize)
    check_permutations(permutations)
    loaders = models.loaders(names)
    passes.check_layers(loaders)
    # Probes alone are fitted on images of their own.
    images, train = source.train_and_test() if "needed" in chosen else (source.load(), None)
    concepts = [load_concepts(path, images) for path in annotated]
    if by_name:
        check_labels(images, chosen)
        if "needed" in chosen and train is None:
            halves(images.labels, images.name, images.class_names, source.seed)
    settings = passes.settings(
        permutations=permutations,
        seed=source.seed,
        baselines=baselines,
        statistics_images=None,
        channel_pages=pages,
        page_images=top,
    )
    _check_channels(channels, loaders)
    files = [
        file
        for path in annotated
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.is_file()
    ]
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    shared = {"channels": channels, "concepts": concepts, "annotations": states, **kept_in(out)}
    results = run_analyses(
        loaders, {"channels": chosen}, images, train, settings, strict=by_name, **shared
    )
    finish(results, out, "Channel analysis", as_json)


def _analyses(
    what: str | None, networks: int, named: bool, annotated: bool, visualize: bool
) -> tuple[str, ...]:
    """The analyses chosen by name or by the options that they alone have. Raises MeasureError."""
    from mixer_probe.channels.analyses import ROOM

    implied = (
        ["dissection"] * annotated
        + ["visualization"] * visualize
        + ["pages"] * (named or visualize)
    )
    if what is None and implied:
        return tuple(dict.fromkeys(implied))
    if what is None or what == "all":
        return ROOM.check(
            [name for name in ROOM.defaults if networks > 1 or name != "partners"] + implied
        )
    chosen = ROOM.check(parts(what) + implied)
    if "partners" in chosen and networks < 2:
        raise MeasureError(
            "partners (best-matching channels) need two networks or more; give another network, or "
            "leave out partners"
        )
    if "dissection" in chosen and not annotated:
        raise MeasureError(
            "a dissection needs annotated images: give --masks FOLDER or --attributes FILE.csv"
        )
    return ROOM.check([*chosen, *(["pages"] if "visualization" in chosen else [])])


def _check_channels(
    channels: Mapping[str, Sequence[int]], loaders: Sequence[Callable[[], Model]]
) -> None:
    """Before any network runs on images. Raises LayerError for a layer that no network has, and for
    a channel out of range."""
    missing: dict[str, list[str]] = {layer: [] for layer in channels}
    for load in loaders if channels else ():
        model = load()
        known = model.structure.names()
        for layer, numbers in channels.items():
            if layer not in known:
                missing[layer].append(f"{model.name} ({closest(layer, known, 3)})")
            elif max(numbers) >= (size := model.layer(layer).channels):
                raise LayerError(
                    f"--channel {layer}:{max(numbers)} is out of range: '{layer}' of {model.name} "
                    f"has channels 0 to {size - 1}"
                )
    for layer, lacking in missing.items():
        if len(lacking) == len(loaders):
            raise LayerError(f"--channel: no layer '{layer}' in {' or '.join(lacking)}")
