"""`probe`: what can be read from each layer."""

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
    OptionalOut,
    PassOptions,
    command,
    parts,
)
from mixer_probe.cli.output import finish, kept_in
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import check_choice, shown, whole_number


@command("probe zoo:mixer zoo:vit --what accuracy,fewshot,control --out probes")
def probe(
    names: ModelNames,
    what: Annotated[
        str | None,
        typer.Option(
            help=(
                "accuracy (default), fewshot, confusion, calibration, control, mdl, control-mdl, "
                "random-labels, targets, positions, attentive, patch-position; several with "
                "commas, or all."
            )
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="Method for accuracy, confusion and calibration: ridge, logistic, knn or centroid."
        ),
    ] = "ridge",
    shots: Annotated[
        str | None, typer.Option(help="Images per class for few-shot probes, such as 1,5,10,25.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Few-shot protocol: big_vision (default), ridge, logistic, knn or centroid."
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="FILE.csv:COLUMN, or an image property such as brightness or hue; may be repeated."
        ),
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(help="Table with columns class and group, for control tasks.")
    ] = None,
    source: ImageOptions = ImageOptions(),
    test_data: Annotated[
        str | None,
        typer.Option(
            help="Separate test images: probes are fitted on --data, with classes matched by name."
        ),
    ] = None,
    test_split: Annotated[str | None, typer.Option(help="Split of --test-data.")] = None,
    passes: PassOptions = PassOptions(),
    models: ModelOptions = ModelOptions(),
    baselines: Baselines = True,
    out: OptionalOut = None,
    as_json: AsJson = False,
) -> None:
    """Probes of every layer, with 95 % intervals, against the same network untrained, raw pixels
    and chance.

    With --out writes every figure as SVG and PNG, the numbers as CSV, results.json and report.html.
    What is finished is kept in the folder, and the same command goes on with it after an
    interrupt."""
    from dataclasses import replace

    import pandas as pd

    from mixer_probe.core.text import csv_text
    from mixer_probe.probing import ProbeResult
    from mixer_probe.probing.analyses import ROOM, check_target, read_groups, study_targets
    from mixer_probe.probing.methods import FITTERS
    from mixer_probe.study import run_analyses

    counts = None if shots is None else [whole_number(part) for part in shots.split(",")]
    if counts is not None and not all(counts):
        raise MeasureError(
            f"--shots is a list of positive numbers such as 1,5,10,25, not {shown(shots)}"
        )
    implied = ["fewshot"] * bool(shots or preset) + ["targets"] * bool(target)
    chosen = (
        ROOM.names
        if what == "all"
        else ROOM.check((*parts(what), *implied) if what else implied or ("accuracy",))
    )
    settings = passes.settings(
        seed=source.seed,
        baselines=baselines,
        probe_method=check_choice("--method", method, FITTERS, MeasureError),
        few_shot=check_choice(
            "--preset", preset or "big_vision", ("big_vision", *FITTERS), MeasureError
        ),
        shots=counts and tuple(sorted({count for count in counts if count is not None})),
        targets=tuple(check_target(spec) for spec in dict.fromkeys(target or ())),
        groups=groups and str(groups),
        sampled_probes=False,
    )
    loaders = models.loaders(names)
    passes.check_layers(loaders)
    if test_data is None:
        images, train = source.train_and_test()
    else:
        images, train = replace(source, data=test_data, split=test_split).load(), source.load()
    # Tables that do not fit are an error before any network runs.
    read_groups(settings.groups)
    shared = kept_in(out)
    if "targets" in chosen:
        shared["targets"] = study_targets((train or images, images), settings.targets)
    results = run_analyses(
        loaders, {"probing": chosen}, images, train, settings, strict=what != "all", **shared
    )
    paths = [r.path_frame() for r in results if isinstance(r, ProbeResult)]
    files = (
        {"linear-probes-path.csv": csv_text(pd.concat(paths, ignore_index=True))} if paths else {}
    )
    finish(results, out, "Probe analysis", as_json, files=files, tables=True)
