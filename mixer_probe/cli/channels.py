"""`channels`: what single channels do, which classes they tell, and who does the same elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixer_probe.cli.options import (
    AsJson,
    Autocast,
    BatchSize,
    Checkpoint,
    Data,
    Device,
    Layers,
    Limit,
    ModelArgs,
    ModelNames,
    OnError,
    Permutations,
    Pretrained,
    Root,
    Seed,
    Split,
    app,
    folder,
)
from mixer_probe.cli.output import finish
from mixer_probe.cli.shared import check_any, check_layers, find_images, model_loaders, study_settings, train_and_test
from mixer_probe.core.errors import LayerError, MeasureError, closest

if TYPE_CHECKING:
    from mixer_probe.images import Images
    from mixer_probe.models import Model

Asked = dict[str, tuple[int, ...]]


@app.command(epilog="Example: mixer-probe channels zoo:mixer zoo:vit --what selectivity,partners,pages --out channels")
def channels(
    names: ModelNames,
    what: Annotated[
        str | None,
        typer.Option(
            help="statistics, selectivity, needed, partners, pages; several with commas, or all (default). Also dissection, "
            "visualization."
        ),
    ] = None,
    channel: Annotated[
        list[str] | None, typer.Option(help="LAYER:NUMBER, such as blocks.3:17: a page for that channel; may be repeated.")
    ] = None,
    pages: Annotated[int, typer.Option(min=1, help="Channel pages per layer, if no channels are given.")] = 1,
    top: Annotated[int, typer.Option(min=1, help="Top and bottom images per channel.")] = 9,
    masks: Annotated[
        Path | None,
        typer.Option(help="Segmentation masks for dissection: one folder per concept, or label images with a legend.csv."),
    ] = None,
    attributes: Annotated[
        Path | None, typer.Option(help="Table of images and binary attributes (1 or 0) for dissection.")
    ] = None,
    visualize: Annotated[
        bool, typer.Option("--visualize", help="Feature visualizations of the channels that have a page.")
    ] = False,
    data: Data = "demo",
    layers: Layers = "blocks",
    split: Split = None,
    root: Root = None,
    limit: Limit = None,
    on_error: OnError = "raise",
    pretrained: Pretrained = True,
    checkpoint: Checkpoint = None,
    model_args: ModelArgs = None,
    baselines: Annotated[bool, typer.Option(help="Also analyse the untrained baseline of every trained network.")] = True,
    device: Device = "auto",
    autocast: Autocast = None,
    batch_size: BatchSize = 32,
    permutations: Permutations = 100,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for figures, tables, results.json and report.html.", parser=folder, metavar="PATH")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Channels: statistics, the classes they tell, how many a class needs, their partners elsewhere, pages of single ones.

    With --masks or --attributes the concepts that they mark; with --visualize images that excite them (at 32 px, seconds each).

    With --out writes every figure as SVG and PNG, the numbers as CSV, results.json and report.html."""
    from mixer_probe.images import load_concepts
    from mixer_probe.stats import check_permutations
    from mixer_probe.study import run_analyses

    asked, by_name = _asked(channel), what not in (None, "all")
    sources = [path for path in (masks, attributes) if path is not None]
    chosen = _analyses(what, len(names), bool(asked), bool(sources), visualize)
    check_permutations(permutations)
    loaders = model_loaders(names, pretrained, checkpoint, device, model_args)
    check_layers(loaders, layers)
    images, train = _images(data, split, root, limit, on_error, seed, chosen)
    concepts = [load_concepts(path, images) for path in sources]
    if by_name:
        _check_labels(images, train, chosen, seed)
    settings = study_settings(
        layers,
        batch_size=batch_size,
        permutations=permutations,
        seed=seed,
        baselines=baselines,
        autocast=autocast,
        channels=chosen,
        statistics_images=None,
        channel_pages=pages,
        page_images=top,
    )
    _check_asked(asked, loaders)
    shared = {"channels": asked, "concepts": concepts}
    results = run_analyses(loaders, {"channels": chosen}, images, train, settings, strict=by_name, **shared)
    check_any(results)
    finish(results, out, "Channel analysis", as_json)


def _analyses(what: str | None, networks: int, asked: bool, annotated: bool, visualize: bool) -> tuple[str, ...]:
    """Analyses asked for, by name or by the options that they alone have. Raises MeasureError."""
    from mixer_probe.channels.analyses import ROOM

    implied = ["dissection"] * annotated + ["visualization"] * visualize + ["pages"] * (asked or visualize)
    if what is None and implied:
        return tuple(dict.fromkeys(implied))
    if what is None or what == "all":
        return ROOM.check([name for name in ROOM.defaults if networks > 1 or name != "partners"] + implied)
    chosen = ROOM.check([name.strip() for name in what.split(",")] + implied)
    if "partners" in chosen and networks < 2:
        raise MeasureError(
            "partners (best-matching channels) need two networks or more; give another network, or leave out partners"
        )
    if "dissection" in chosen and not annotated:
        raise MeasureError("a dissection needs annotated images: give --masks FOLDER or --attributes FILE.csv")
    return ROOM.check([*chosen, *(["pages"] if "visualization" in chosen else [])])


def _asked(channel: Sequence[str] | None) -> Asked:
    """Channels by layer. Raises MeasureError unless each is LAYER:NUMBER."""
    asked: Asked = {}
    for text in dict.fromkeys(channel or ()):
        layer, _, number = text.rpartition(":")
        if not layer or not number.isdecimal():
            raise MeasureError(f"--channel is LAYER:NUMBER such as blocks.3:17, not '{text}'")
        asked[layer] = (*asked.get(layer, ()), int(number))
    return asked


def _check_asked(asked: Mapping[str, Sequence[int]], loaders: Sequence[Callable[[], Model]]) -> None:
    """Before any network runs on images. Raises LayerError for a layer that no network has, and for a channel out of range."""
    missing: dict[str, list[str]] = {layer: [] for layer in asked}
    for load in loaders if asked else ():
        model = load()
        known = model.structure.names()
        for layer, numbers in asked.items():
            if layer in known:
                _check_range(model, layer, numbers)
            else:
                missing[layer].append(f"{model.name} ({closest(layer, known, 3)})")
    for layer, lacking in missing.items():
        if len(lacking) == len(loaders):
            raise LayerError(f"--channel: no layer '{layer}' in {' or '.join(lacking)}")


def _check_range(model: Model, layer: str, numbers: Sequence[int]) -> None:
    size = model.layer(layer).channels
    if max(numbers) >= size:
        raise LayerError(
            f"--channel {layer}:{max(numbers)} is out of range: '{layer}' of {model.name} has channels 0 to {size - 1}"
        )


def _images(
    data: str, split: str | None, root: str | None, limit: int | None, on_error: str, seed: int, chosen: Sequence[str]
) -> tuple[Images, Images | None]:
    """Images to look at, and images to fit probes on where a probe is wanted and the data set has its own."""
    if "needed" in chosen:
        return train_and_test(data, split, root, limit, on_error, seed)
    return find_images(data, split, root, limit, on_error, seed), None


def _check_labels(images: Images, train: Images | None, chosen: Sequence[str], seed: int) -> None:
    """Raises ImagesError or MeasureError for labels that the analyses need and that are missing or too few."""
    from mixer_probe.capture.analysis_inputs import halves
    from mixer_probe.channels.analyses import check_labels

    check_labels(images, chosen)
    if "needed" in chosen and train is None:
        halves(images.labels, images.name, images.class_names, seed)
