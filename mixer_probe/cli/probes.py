"""`probe`: what can be read from each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Pretrained,
    Root,
    Seed,
    Split,
    app,
    folder,
)
from mixer_probe.cli.output import finish
from mixer_probe.cli.shared import check_any, check_layers, find_images, model_loaders, study_settings, train_and_test
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import check_choice, shown, whole_number

if TYPE_CHECKING:
    from mixer_probe.core.result import Result


@app.command(epilog="Example: mixer-probe probe zoo:mixer zoo:vit --what accuracy,fewshot,control --out probes")
def probe(
    names: ModelNames,
    what: Annotated[
        str | None,
        typer.Option(
            help="accuracy (default), fewshot, confusion, calibration, control, mdl, control-mdl, random-labels, positions, "
            "attentive, patch-position, targets; several with commas, or all."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Method for accuracy, confusion and calibration: ridge, logistic, knn or centroid.")
    ] = "ridge",
    shots: Annotated[str | None, typer.Option(help="Images per class for few-shot probes, such as 1,5,10,25.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Few-shot protocol: big_vision (default), ridge, logistic, knn or centroid.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="FILE.csv:COLUMN, or an image property such as brightness or hue; may be repeated.")
    ] = None,
    groups: Annotated[Path | None, typer.Option(help="Table with columns class and group, for control tasks.")] = None,
    data: Data = "demo",
    test_data: Annotated[
        str | None, typer.Option(help="Separate test images: probes are fitted on --data, with classes matched by name.")
    ] = None,
    layers: Layers = "blocks",
    split: Split = None,
    test_split: Annotated[str | None, typer.Option(help="Split of --test-data.")] = None,
    root: Root = None,
    limit: Limit = None,
    on_error: OnError = "raise",
    pretrained: Pretrained = True,
    checkpoint: Checkpoint = None,
    model_args: ModelArgs = None,
    baselines: Annotated[bool, typer.Option(help="Also probe the untrained baselines and raw pixels.")] = True,
    device: Device = "auto",
    autocast: Autocast = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for figures, tables, results.json and report.html.", parser=folder, metavar="PATH")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Probes of every layer, with 95 % intervals, against the same network untrained, raw pixels and chance.

    With --out writes every figure as SVG and PNG, the numbers as CSV, results.json and report.html."""
    from mixer_probe.probing.analyses import read_groups, study_targets
    from mixer_probe.study import run_analyses

    settings = study_settings(
        layers,
        batch_size=batch_size,
        seed=seed,
        baselines=baselines,
        autocast=autocast,
        probes=_probes(what, shots or preset, target),
        probe_method=_probe_method(method, "--method"),
        few_shot=_probe_method(preset or "big_vision", "--preset", "big_vision"),
        shots=_shots(shots),
        targets=_targets(target),
        groups=groups and str(groups),
        sampled_probes=False,
    )
    loaders = model_loaders(names, pretrained, checkpoint, device, model_args)
    check_layers(loaders, layers)
    if test_data is None:
        images, train = train_and_test(data, split, root, limit, on_error, seed)
    else:
        train, images = (find_images(d, s, root, limit, on_error, seed) for d, s in ((data, split), (test_data, test_split)))
    # Tables that do not fit are told before any network runs.
    read_groups(settings.groups)
    shared = {"targets": study_targets((train or images, images), settings.targets)} if "targets" in settings.probes else {}
    probing = {"probing": settings.probes}
    results = run_analyses(loaders, probing, images, train, settings, strict=what != "all", **shared)
    check_any(results)
    finish(results, out, "Probe analysis", as_json, files=_paths(results), tables=True)


def _probes(what: str | None, few: Any, target: Any) -> tuple[str, ...]:
    """Analyses asked for: by name, or by the options that they alone have."""
    from mixer_probe.probing.analyses import ROOM

    if what == "all":
        return ROOM.names
    named = () if what is None else tuple(name.strip() for name in what.split(","))
    implied = (["fewshot"] if few else []) + (["targets"] if target else [])
    return ROOM.check((*named, *implied) or ("accuracy",))


def _probe_method(name: str, option: str, *others: str) -> str:
    from mixer_probe.probing.methods import FITTERS

    return check_choice(option, name, (*others, *FITTERS), MeasureError)


def _shots(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    counts = [whole_number(part) for part in text.split(",")]
    if not all(counts):
        raise MeasureError(f"--shots is a list of positive numbers such as 1,5,10,25, not {shown(text)}")
    return tuple(sorted({count for count in counts if count is not None}))


def _targets(specs: Sequence[str] | None) -> tuple[str, ...]:
    from mixer_probe.probing.analyses import check_target

    return tuple(check_target(spec) for spec in dict.fromkeys(specs or ()))


def _paths(results: Sequence[Result]) -> dict[str, str]:
    """A table of every value of the paths of all probes, by the name of its file."""
    import pandas as pd

    from mixer_probe.core.text import csv_text
    from mixer_probe.probing import ProbeResult

    paths = [r.path_frame() for r in results if isinstance(r, ProbeResult)]
    return {"linear-probes-path.csv": csv_text(pd.concat(paths, ignore_index=True))} if paths else {}
