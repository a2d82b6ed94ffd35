"""What there is and what a network is: `models`, `analyses`, `inspect` and `extract`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mixer_probe.cli.options import (
    AsJson,
    ImageOptions,
    ModelName,
    ModelOptions,
    PassOptions,
    command,
    console,
    folder,
)
from mixer_probe.cli.output import print_frame, print_json, print_rows


@command("models mixer")
def models(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="Part of a name, or shell wildcards.")
    ] = "*",
    as_json: AsJson = False,
) -> None:
    """List the zoo and timm's Mixer, ViT and CNN models with their pretrained tags."""
    from mixer_probe.models import list_models

    entries = list_models(pattern)
    if as_json:
        print_json(
            [
                {"name": e.name, "family": e.family, "tags": e.tags, "notes": dict(e.notes)}
                for e in entries
            ]
        )
        return
    print_rows(
        ("model", "family", "pretrained tags"),
        [(e.name, e.family, ", ".join(e.tags) or "-") for e in entries],
    )
    for entry in entries:
        for tag, note in entry.notes:
            console.print(f"\n{entry.name}.{tag}: {note}", markup=False, highlight=False)


@command("analyses")
def analyses(as_json: AsJson = False) -> None:
    """List all analyses with their group, name, question, required input and result types."""
    from mixer_probe import catalog

    header = ("room", "name", "question", "needs", "results")
    if as_json:
        print_json([dict(zip(header, row, strict=True)) for row in catalog.listed()])
        return
    print_rows(header, catalog.listed())


@command("inspect mixer_b16_224 --no-pretrained")
def inspect(
    model: ModelName, models: ModelOptions = ModelOptions(), as_json: AsJson = False
) -> None:
    """Print a model's layers, parameters and multiply-accumulates."""
    from mixer_probe.core.result import to_dict
    from mixer_probe.models import describe

    card = describe(models.loaders([model])[0]())
    if as_json:
        print_json(to_dict(card))
        return
    record = card.model
    rows = {
        "model": f"{record.name} ({card.architecture}, family {record.family})",
        "weights": record.weights,
        "parameters": f"{record.parameters:,}",
        "GMACs": f"{card.macs / 1e9:.4f} per image of {'×'.join(map(str, card.input_size))}",
        "mean, std": f"{card.mean}, {card.std}",
        "fingerprint": record.fingerprint[:16],
    }
    for title, text in rows.items():
        console.print(f"{title:12}{text}", markup=False, highlight=False)
    if record.note:
        console.print(f"{'note':12}{record.note}", style="yellow", markup=False, highlight=False)
    print_frame(card.to_frame())


@command("extract zoo:mixer --data demo --out runs/mixer.zarr")
def extract(
    model: ModelName,
    source: ImageOptions = ImageOptions(),
    out: Annotated[
        str,
        typer.Option(
            help="The zarr store to write: a folder, or a URL that fsspec opens (s3://...).",
            metavar="PATH",
        ),
    ] = "run.zarr",
    passes: PassOptions = PassOptions(),
    reduce: Annotated[
        str, typer.Option(help="mean over positions, prefix token, or none (all positions).")
    ] = "mean",
    models: ModelOptions = ModelOptions(),
    dtype: Annotated[
        str | None,
        typer.Option(help="float16 takes half the space of float32 (default)."),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read all that is stored, and rewrite damaged parts."),
    ] = False,
) -> None:
    """Store a model's representations of images; an interrupted run resumes where it stopped, and
    processes of torchrun divide the images."""
    import mixer_probe as mp

    loaded = models.loaders([model])[0]()
    options: dict[str, Any] = {"batch_size": passes.batch_size, "autocast": passes.autocast}
    # A path is checked, a URL is as it was written.
    place = out if "://" in out else folder(out)
    run = mp.extract(
        loaded,
        source.load(),
        passes.chosen,
        reduce=reduce,  # type: ignore[arg-type]
        out=place,
        dtype=dtype,  # type: ignore[arg-type]
        verify=verify,
        **options,
    )
    console.print(f"{run!r}", markup=False, highlight=False)
    console.print(str(out), markup=False, highlight=False)
