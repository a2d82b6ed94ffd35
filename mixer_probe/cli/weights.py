"""`weights`: what the weights alone say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixer_probe.cli.options import (
    AsJson,
    Baselines,
    ImageOptions,
    ModelNames,
    ModelOptions,
    Out,
    command,
    parts,
)
from mixer_probe.cli.output import finish

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@command("weights zoo:mixer --what units,kernels --block 1 --out weights")
def weights(
    names: ModelNames,
    what: Annotated[
        str,
        typer.Option(
            help=(
                "anatomy, units, kernels, tying, stem, positions, spectra; several with commas, or "
                "all."
            )
        ),
    ] = "all",
    block: Annotated[
        int | None, typer.Option(help="Also plot this block separately; -1 is the last.")
    ] = None,
    source: ImageOptions = ImageOptions(limit=64),
    models: ModelOptions = ModelOptions(device="cpu"),
    baselines: Baselines = True,
    out: Out = Path("weights"),
    as_json: AsJson = False,
) -> None:
    """What the weights alone say: token-mixing units, kernels and their tying, stem, positions,
    spectra, anatomy.

    Kernel tying of Mixers and ViTs is measured on --data.

    Writes every figure as SVG and PNG, the numbers as CSV, results.json and report.html."""
    from mixer_probe import catalog
    from mixer_probe.study import Study, StudySettings
    from mixer_probe.weights.views.block import block_path, block_pictures

    room = catalog.room("weights")
    chosen = room.names if what == "all" else room.check(parts(what))
    images = source.load() if "tying" in chosen else None
    settings = StudySettings("blocks", baselines=baselines, seed=source.seed)
    study = Study(
        images,
        settings=settings,
        names={"weights": chosen},
        strict=what != "all",
        shared={"kernel_images": None},
    )
    drawn: dict[str, Figure] = {}
    for load in models.loaders(names):
        model = load()
        path = None if block is None else block_path(model, block)
        found = study.add(model).found
        drawn |= (
            {}
            if path is None
            else block_pictures(
                [r for r in found if getattr(r, "model", None) == model.record], path
            )
        )
    finish(study.results, out, "Weight analysis", as_json, drawn=drawn)
