"""`weights`: what the weights alone say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixer_probe.cli.options import (
    AsJson,
    Checkpoint,
    Device,
    Limit,
    ModelArgs,
    ModelNames,
    OnError,
    Out,
    Pretrained,
    Root,
    Seed,
    Split,
    app,
)
from mixer_probe.cli.output import finish
from mixer_probe.cli.shared import find_images, model_loaders, study_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@app.command(epilog="Example: mixer-probe weights zoo:mixer --what units,kernels --block 1 --out weights")
def weights(
    names: ModelNames,
    what: Annotated[
        str, typer.Option(help="anatomy, units, kernels, tying, stem, positions, spectra; several with commas, or all.")
    ] = "all",
    block: Annotated[int | None, typer.Option(help="Also plot this block separately; -1 is the last.")] = None,
    data: Annotated[str, typer.Option(help="Images for kernel tying, which is measured on data for Mixers and ViTs.")] = "demo",
    split: Split = None,
    root: Root = None,
    limit: Limit = 64,
    on_error: OnError = "raise",
    pretrained: Pretrained = True,
    checkpoint: Checkpoint = None,
    model_args: ModelArgs = None,
    baselines: Annotated[bool, typer.Option(help="Also analyse the untrained baseline of every trained network.")] = True,
    device: Device = "cpu",
    seed: Seed = 0,
    out: Out = Path("weights"),
    as_json: AsJson = False,
) -> None:
    """What the weights alone say: token-mixing units, kernels and their tying, stem, positions, spectra, anatomy.

    Writes every figure as SVG and PNG, the numbers as CSV, results.json and report.html."""
    from mixer_probe import catalog
    from mixer_probe.study import Study
    from mixer_probe.weights.views.block import block_path, block_pictures

    room = catalog.room("weights")
    chosen = room.names if what == "all" else room.check([name.strip() for name in what.split(",")])
    images = find_images(data, split, root, limit, on_error, seed) if "tying" in chosen else None
    settings = study_settings("blocks", baselines=baselines, seed=seed)
    study = Study(images, settings=settings, names={"weights": chosen}, strict=what != "all", shared={"kernel_images": None})
    drawn: dict[str, Figure] = {}
    for load in model_loaders(names, pretrained, checkpoint, device, model_args):
        model = load()
        path = None if block is None else block_path(model, block)
        found = study.add(model).found
        drawn |= {} if path is None else block_pictures([r for r in found if getattr(r, "model", None) == model.record], path)
    finish(study.results, out, "Weight analysis", as_json, drawn=drawn)
