"""What there is and what a network is: `models`, `analyses`, `inspect` and `extract`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

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
    ModelName,
    OnError,
    Pretrained,
    Root,
    Seed,
    Split,
    app,
    console,
    folder,
)
from mixer_probe.cli.output import print_frame, print_json
from mixer_probe.cli.shared import chosen_layers, find_images, model_loaders

if TYPE_CHECKING:
    from mixer_probe.models import CatalogueEntry, ModelCard


@app.command(epilog="Example: mixer-probe models mixer")
def models(
    pattern: Annotated[str, typer.Argument(metavar="[PATTERN]", help="Part of a name, or shell wildcards.")] = "*",
    as_json: AsJson = False,
) -> None:
    """List the zoo and timm's Mixer, ViT and CNN models with their pretrained tags."""
    from mixer_probe.models import list_models

    entries = list_models(pattern)
    if as_json:
        print_json([{"name": e.name, "family": e.family, "tags": e.tags, "notes": dict(e.notes)} for e in entries])
        return
    _print_catalogue(entries)


def _print_catalogue(entries: Sequence[CatalogueEntry]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("model", "family", "pretrained tags"):
        table.add_column(title, overflow="fold")
    for entry in entries:
        table.add_row(entry.name, entry.family, ", ".join(entry.tags) or "-")
    console.print(table)
    for entry in entries:
        for tag, note in entry.notes:
            console.print(f"\n{entry.name}.{tag}: {note}", markup=False, highlight=False)


@app.command(epilog="Example: mixer-probe analyses")
def analyses(as_json: AsJson = False) -> None:
    """List all analyses with their group, name, question, required input and result types."""
    from mixer_probe import catalog
    from mixer_probe.cli.output import print_rows

    header = ("room", "name", "question", "needs", "results")
    if as_json:
        print_json([dict(zip(header, row, strict=True)) for row in catalog.listed()])
        return
    print_rows(header, catalog.listed())


@app.command(epilog="Example: mixer-probe inspect mixer_b16_224 --no-pretrained")
def inspect(
    model: ModelName,
    pretrained: Pretrained = True,
    checkpoint: Checkpoint = None,
    model_args: ModelArgs = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Print a model's layers, parameters and multiply-accumulates."""
    from mixer_probe.core.result import to_dict
    from mixer_probe.models import describe

    card = describe(model_loaders([model], pretrained, checkpoint, device, model_args)[0]())
    if as_json:
        print_json(to_dict(card))
    else:
        _print_card(card)


def _print_card(card: ModelCard) -> None:
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


@app.command(epilog="Example: mixer-probe extract zoo:mixer --data demo --out runs/mixer.zarr")
def extract(
    model: ModelName,
    data: Data = "demo",
    out: Annotated[Path, typer.Option(help="The zarr store to write.", parser=folder, metavar="PATH")] = Path("run.zarr"),
    layers: Layers = "blocks",
    reduce: Annotated[str, typer.Option(help="mean over positions, prefix token, or none (all positions).")] = "mean",
    split: Split = None,
    root: Root = None,
    limit: Limit = None,
    on_error: OnError = "raise",
    pretrained: Pretrained = True,
    checkpoint: Checkpoint = None,
    model_args: ModelArgs = None,
    device: Device = "auto",
    autocast: Autocast = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
) -> None:
    """Store a model's representations of images; an interrupted run resumes where it stopped."""
    import mixer_probe as mp

    loaded = model_loaders([model], pretrained, checkpoint, device, model_args)[0]()
    images = find_images(data, split, root, limit, on_error, seed)
    run = mp.extract(
        loaded,
        images,
        chosen_layers(layers),
        reduce=reduce,  # type: ignore[arg-type]
        out=out,
        batch_size=batch_size,
        autocast=autocast,
    )
    console.print(f"{run!r}", markup=False, highlight=False)
    console.print(str(out), markup=False, highlight=False)
