"""`weights`: what the weights alone say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from mixer_probe.cli.shared import find_images, model_loaders

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mixer_probe.core.result import Result
    from mixer_probe.models import Model


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
    from mixer_probe.study.weights import block_path, block_pictures, weight_results

    chosen = None if what == "all" else catalog.room("weights").check([name.strip() for name in what.split(",")])
    images = find_images(data, split, root, limit, on_error, seed) if chosen is None or "tying" in chosen else None
    results: list[Result] = []
    drawn: dict[str, Figure] = {}
    for load in model_loaders(names, pretrained, checkpoint, device, model_args):
        model = load()
        path = None if block is None else block_path(model, block)
        twins = [model.untrained()] if baselines and model.weights.trained else []
        found = weight_results([model, *twins], chosen, images)
        drawn |= {} if path is None else block_pictures([r for r in found if _is_of(r, model)], path)
        results += found
    finish(results, out, "Weight analysis", as_json, drawn=drawn)


def _is_of(result: Any, model: Model) -> bool:
    return getattr(result, "model", None) == model.record
