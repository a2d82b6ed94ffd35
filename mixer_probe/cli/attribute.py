"""`attribute`: which pixels and hidden units contribute to a class, and how far that can be
believed."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mixer_probe.cli.options import (
    AsJson,
    ImageOptions,
    ModelNames,
    ModelOptions,
    OptionalOut,
    command,
    parts,
    without_weights,
)
from mixer_probe.cli.output import finish
from mixer_probe.core.errors import ImagesError, MeasureError


@command("attribute zoo:mixer zoo:vit --method saliency,gradcam --out attributions")
def attribute(
    names: ModelNames,
    what: Annotated[
        str,
        typer.Option(
            help=(
                "overlays, curves, faithfulness, randomisation, agreement, conductance; several "
                "with commas, or all."
            )
        ),
    ] = "overlays,curves",
    method: Annotated[
        str | None,
        typer.Option(
            help=(
                "saliency, input_x_gradient, integrated_gradients, smoothgrad, deeplift, "
                "occlusion, gradcam, attention_rollout, gradient_attention; several with commas, "
                "or all that the network supports."
            )
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help=(
                "Target class: true, predicted, an index or a name; auto uses the true class where "
                "the classes of the images match those of the network."
            )
        ),
    ] = "auto",
    layer: Annotated[
        str | None,
        typer.Option(
            help="Layer for Grad-CAM (default: the last layer whose positions the network uses)."
        ),
    ] = None,
    baseline: Annotated[
        str, typer.Option(help="Baseline input: grey, black, blur or mean.")
    ] = "grey",
    image: Annotated[
        list[Path] | None, typer.Option(help="An image file instead of --data; may be repeated.")
    ] = None,
    source: ImageOptions = ImageOptions(limit=8),
    shown: Annotated[
        int, typer.Option(min=1, help="Number of images in the figure of attribution maps.")
    ] = 4,
    models: ModelOptions = ModelOptions(),
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 16,
    out: OptionalOut = None,
    as_json: AsJson = False,
) -> None:
    """Attributions: maps over the images, and whether they can be believed.

    With --out writes every map over its image at the image's own resolution, every figure as SVG
    and PNG, the numbers as CSV, all maps (attributions.json), results.json and report.html."""
    from mixer_probe.attribution import METHODS, Attribution
    from mixer_probe.attribution.analyses import ROOM
    from mixer_probe.attribution.figures import overlay_image
    from mixer_probe.attribution.settings import THOROUGH, AttributionSettings, check_methods
    from mixer_probe.core.result import results_text
    from mixer_probe.core.text import slug
    from mixer_probe.images.folder import load_files
    from mixer_probe.study import Study

    chosen = ROOM.names if what == "all" else ROOM.check(parts(what))
    named = None if method in (None, "all") else check_methods(parts(method or ""))
    if layer is not None and named is not None and "gradcam" not in named:
        raise MeasureError(
            "--layer is that of Grad-CAM; add gradcam to --method or leave --layer out"
        )
    # "all" is what a network allows of them.
    budget = replace(THOROUGH, methods=tuple(METHODS)) if method == "all" else THOROUGH
    settings = AttributionSettings(
        named, target, layer, baseline, batch_size, source.seed, shown, budget
    )
    loaders = models.loaders(names)
    # A layer that a network lacks is an error before any network runs.
    for model in without_weights(loaders if layer is not None else ()):
        model.layer(str(layer))
    if image and source.data is not None:
        raise ImagesError("give --image or --data, not both")
    images = load_files(image) if image else source.load()
    study = Study(
        images, names={"attribution": chosen}, strict=True, shared={"attribution": settings}
    )
    for load in loaders:
        study.add(load())
    if not study.finish():
        raise MeasureError(
            "no network has a token-mixing MLP, whose hidden units conductance is of; take "
            "overlays or curves"
        )
    files: dict[str, str | bytes] = {}
    if out is not None and "overlays" in chosen:
        maps = [a for network in study.networks for a in network.results(Attribution)]
        files["attributions.json"] = results_text(maps)
        for i in range(min(shown, len(images))):
            picture = images[i]
            for a in maps:
                name = "-".join(
                    slug(part)[:60]
                    for part in (Path(a.ids[i]).stem, a.model.name.removeprefix("zoo:"), a.method)
                )
                stream = io.BytesIO()
                overlay_image(picture, a, i).save(stream, "PNG")
                files[f"overlays/{i}-{name}.png"] = stream.getvalue()
    finish(
        study.results,
        out,
        "Attribution maps and their evaluation",
        as_json,
        files=files,
        tables=True,
    )
