"""`attribute`: which pixels and hidden units contribute to a class, and how far that can be believed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixer_probe.cli.options import (
    AsJson,
    BatchSize,
    Checkpoint,
    ClassNames,
    Device,
    ModelArgs,
    ModelNames,
    OnError,
    Pretrained,
    Root,
    Seed,
    Split,
    app,
    folder,
)
from mixer_probe.cli.output import finish
from mixer_probe.cli.shared import check_layer, find_images, model_loaders
from mixer_probe.core.errors import ImagesError, MeasureError

if TYPE_CHECKING:
    from mixer_probe.attribution.settings import AttributionSettings
    from mixer_probe.images import Images
    from mixer_probe.study import Study


@app.command(epilog="Example: mixer-probe attribute zoo:mixer zoo:vit --method saliency,gradcam --out attributions")
def attribute(
    names: ModelNames,
    what: Annotated[
        str,
        typer.Option(help="overlays, curves, faithfulness, randomisation, agreement, conductance; several with commas, or all."),
    ] = "overlays,curves",
    method: Annotated[
        str | None,
        typer.Option(
            help="saliency, input_x_gradient, integrated_gradients, smoothgrad, deeplift, occlusion, gradcam, "
            "attention_rollout, gradient_attention; several with commas, or all that the network supports."
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help="Target class: true, predicted, an index or a name; auto uses the true class where the classes of the images "
            "match those of the network."
        ),
    ] = "auto",
    layer: Annotated[
        str | None, typer.Option(help="Layer for Grad-CAM (default: the last layer whose positions the network uses).")
    ] = None,
    baseline: Annotated[str, typer.Option(help="Baseline input: grey, black, blur or mean.")] = "grey",
    data: Annotated[
        str | None, typer.Option(help="demo (default), photos, a folder of images, or a timm data set (torch/..., hfds/...).")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="An image file instead of --data; may be repeated.")] = None,
    split: Split = None,
    root: Root = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many images of --data, balanced over classes.")] = 8,
    shown: Annotated[int, typer.Option(min=1, help="Number of images in the figure of attribution maps.")] = 4,
    on_error: OnError = "raise",
    pretrained: Pretrained = True,
    checkpoint: Checkpoint = None,
    model_args: ModelArgs = None,
    class_names: ClassNames = None,
    device: Device = "auto",
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for overlays, figures, tables, results.json and report.html.", parser=folder, metavar="PATH"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Attributions: maps over the images, and whether they can be believed.

    With --out writes every map over its image at the image's own resolution, every figure as SVG and PNG, the numbers as CSV, all
    maps (attributions.json), results.json and report.html."""
    from mixer_probe.attribution.analyses import ROOM
    from mixer_probe.study import Study

    chosen = ROOM.names if what == "all" else ROOM.check(_parts(what))
    settings = _settings(method, target, layer, baseline, batch_size, seed, shown)
    loaders = model_loaders(names, pretrained, checkpoint, device, model_args, class_names)
    check_layer(loaders, layer)
    images = _images(image, data, split, root, limit, on_error, seed)
    study = Study(images, names={"attribution": chosen}, strict=True, shared={"attribution": settings})
    for load in loaders:
        study.add(load())
    if not study.finish():
        raise MeasureError("no network has a token-mixing MLP, whose hidden units conductance is of; take overlays or curves")
    files = _maps(study, images, shown) if out is not None and "overlays" in chosen else {}
    finish(study.results, out, "Attribution maps and their evaluation", as_json, files=files, tables=True)


def _settings(
    method: str | None, target: str, layer: str | None, baseline: str, batch_size: int, seed: int, shown: int
) -> AttributionSettings:
    from dataclasses import replace

    from mixer_probe.attribution import METHODS
    from mixer_probe.attribution.settings import THOROUGH, AttributionSettings, check_methods

    named = None if method in (None, "all") else check_methods(_parts(method or ""))
    if layer is not None and named is not None and "gradcam" not in named:
        raise MeasureError("--layer is that of Grad-CAM; add gradcam to --method or leave --layer out")
    # "all" is what a network allows of them.
    budget = replace(THOROUGH, methods=tuple(METHODS)) if method == "all" else THOROUGH
    return AttributionSettings(named, target, layer, baseline, batch_size, seed, shown, budget)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _images(
    files: Sequence[Path] | None,
    data: str | None,
    split: str | None,
    root: str | None,
    limit: int | None,
    on_error: str,
    seed: int,
) -> Images:
    from mixer_probe.images.folder import load_files

    if files and data is not None:
        raise ImagesError("give --image or --data, not both")
    return load_files(files) if files else find_images(data or "demo", split, root, limit, on_error, seed)


def _maps(study: Study, images: Images, shown: int) -> dict[str, str | bytes]:
    """Every map over its image, pixel by pixel, and all maps as data, by the names of their files."""
    from mixer_probe.attribution import Attribution
    from mixer_probe.attribution.figures import overlay_image
    from mixer_probe.core.result import results_text
    from mixer_probe.core.text import slug

    maps = [a for network in study.networks for a in network.results(Attribution)]
    files: dict[str, str | bytes] = {"attributions.json": results_text(maps)}
    for i in range(min(shown, len(images))):
        picture = images[i]
        for a in maps:
            name = "-".join(slug(part)[:60] for part in (Path(a.ids[i]).stem, a.model.name.removeprefix("zoo:"), a.method))
            stream = io.BytesIO()
            overlay_image(picture, a, i).save(stream, "PNG")
            files[f"overlays/{i}-{name}.png"] = stream.getvalue()
    return files
