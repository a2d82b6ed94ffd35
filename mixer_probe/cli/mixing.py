"""`mixing`: from where each layer reads, and what its blocks do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixer_probe.cli.options import (
    AsJson,
    Baselines,
    ImageOptions,
    ModelNames,
    ModelOptions,
    Out,
    Workers,
    command,
    parts,
)
from mixer_probe.cli.output import finish
from mixer_probe.core.errors import MeasureError
from mixer_probe.parallel import ranks


@command("mixing zoo:mixer zoo:vit zoo:resnet --what jacobian,erf --out mixing")
def mixing(
    names: ModelNames,
    what: Annotated[
        str,
        typer.Option(
            help=(
                "jacobian, attention, erf, pca, fourier, residual, lens, lesions; several with "
                "commas, or all."
            )
        ),
    ] = "all",
    images: Annotated[
        int, typer.Option(min=1, help="Images whose derivatives are taken; more are more precise.")
    ] = 16,
    probes: Annotated[
        int, typer.Option(min=1, help="Random vectors per position and image, for Jacobians.")
    ] = 1,
    positions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="About so many output positions of every layer, for Jacobians (default: one per "
            "cell of the common grid, 49 for images of 224 px).",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 32,
    source: ImageOptions = ImageOptions(limit=200),
    models: ModelOptions = ModelOptions(),
    baselines: Baselines = True,
    workers: Workers = 1,
    out: Out = Path("mixing"),
    as_json: AsJson = False,
) -> None:
    """Spatial mixing of Mixers, ViTs and CNNs on one axis: Jacobians between positions, attention,
    receptive fields, frequencies, the residual stream, early reading and lesions.

    Writes every figure as SVG and PNG, the numbers as CSV, results.json and report.html. What is
    finished is kept in the folder, and the same command goes on with it after an interrupt."""
    from mixer_probe.mixing import MixingSettings
    from mixer_probe.mixing.analyses import ROOM
    from mixer_probe.study import ResultCache, Study, StudySettings, fill_steps

    chosen = ROOM.names if what == "all" else ROOM.check(parts(what))
    loaders = models.loaders(names)
    test, train = source.train_and_test()
    settings = StudySettings(baselines=baselines, seed=source.seed, analyses={"mixing": chosen})
    shared = {
        "mixing": MixingSettings(
            images=images,
            probes=probes,
            positions=positions,
            batch_size=batch_size,
            seed=source.seed,
        )
    }
    steps, only = ResultCache(out / "parts"), {"mixing": chosen}
    if workers > 1 and ranks().world == 1:
        fill_steps(loaders, test, train, settings, None, steps, workers, only, shared)
    # What one of several networks cannot have is left out.
    strict = what != "all" and len(loaders) == 1
    study = Study(test, train, settings, steps=steps, names=only, strict=strict, shared=shared)
    with study.after_passes(loaders) as first:
        if not first:
            return
        for load in loaders:
            study.add(load())
        study.finish()
    if not study.results:
        raise MeasureError(
            f"none of {', '.join(names)} has what --what {what} measures; attention is that of ViTs"
        )
    finish(study.results, out, "Spatial mixing", as_json)
