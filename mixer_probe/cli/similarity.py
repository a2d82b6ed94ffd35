"""`compare`: where two networks agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixer_probe.cli.options import (
    LAYERS,
    AsJson,
    Autocast,
    BatchSize,
    Checkpoint,
    Data,
    Device,
    Limit,
    Measures,
    ModelArgs,
    OnError,
    Permutations,
    Pretrained,
    Resamples,
    Root,
    Seed,
    Split,
    app,
    console,
    folder,
)
from mixer_probe.cli.output import command_line
from mixer_probe.cli.shared import check_layers, chosen_layers, find_images, model_loaders
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import shown, whole_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mixer_probe.capture import Representations
    from mixer_probe.images import Images
    from mixer_probe.models import Model
    from mixer_probe.similarity import SimilarityMatrix


@app.command(epilog="Example: mixer-probe compare zoo:mixer zoo:vit --measure cka,procrustes --out similarity")
def compare(
    model_a: Annotated[str, typer.Argument(metavar="A", help="A model, or a stored run.")],
    model_b: Annotated[str, typer.Argument(metavar="B", help="Another model or stored run.")],
    data: Data = "demo",
    measure: Measures = "cka",
    estimator: Annotated[str, typer.Option(help="CKA estimator: unbiased or biased.")] = "unbiased",
    kernel: Annotated[str, typer.Option(help="CKA kernel: linear or rbf.")] = "linear",
    method: Annotated[str, typer.Option(help="CKA computation: auto, gram, moments or minibatch.")] = "auto",
    layers: Annotated[str | None, typer.Option(help=f"{LAYERS} (default: blocks; all stored layers of a run)")] = None,
    reduce: Annotated[
        str | None, typer.Option(help="As in extract: mean, prefix or none (default: none with --grid, else mean)")
    ] = None,
    grid: Annotated[str | None, typer.Option(help="Average positions over the cells of a common grid, such as 7 or 7x7.")] = None,
    without_top_pc: Annotated[int, typer.Option(min=0, help="Number of leading principal components to remove.")] = 0,
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
    permutations: Permutations = 100,
    resamples: Resamples = 100,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results (default: mixer-probe-compare; with --json none).", parser=folder, metavar="PATH"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Similarity of every layer of A with every layer of B by one measure or several, with null and interval.

    Writes similarity.csv, results.json, similarity.svg, similarity.png and report.html."""
    import mixer_probe as mp

    names, cells = measure_names(measure), _grid(grid, reduce)
    load = partial(find_images, data, split, root, limit, on_error, seed)
    kept = reduce or ("none" if cells else None)
    find = partial(_extracted, load=load, layers=layers, reduce=kept, autocast=autocast, batch_size=batch_size)
    models = [source for source in (model_a, model_b) if not Path(source).is_dir()]
    loaders = dict(zip(models, model_loaders(models, pretrained, checkpoint, device, model_args), strict=True))
    # What a network or a run lacks is told before any network runs.
    check_layers(list(loaders.values()), layers)
    stored = {source: _stored(source, layers, kept) for source in (model_a, model_b) if source not in loaders}
    a, b = (stored[source] if source in stored else find(loaders[source]) for source in (model_a, model_b))
    matrices = mp.compare(  # type: ignore[call-overload]
        a,
        b,
        names,
        estimator=estimator,
        kernel=kernel,
        method=method,
        permutations=permutations,
        resamples=resamples,
        without_top_pc=without_top_pc,
        grid=cells,
        seed=seed,
    )
    _deliver_similarity(matrices, out or (None if as_json else Path("mixer-probe-compare")), as_json)


def measure_names(text: str) -> tuple[str, ...]:
    """Names of measures; an unknown one is told before any network runs."""
    from mixer_probe.similarity import MEASURES, find_measure

    if text == "all":
        return tuple(MEASURES)
    return tuple(find_measure(name.strip()).name for name in dict.fromkeys(text.split(",")))


def _grid(text: str | None, reduce: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if reduce not in (None, "none"):
        raise MeasureError(f"--grid needs --reduce none: with --reduce {reduce} no positions are left to average")
    sizes = [whole_number(size) for size in text.lower().replace("×", "x").split("x")]
    if len(sizes) > 2 or not all(sizes):
        raise MeasureError(f"--grid is a number of rows and columns such as 7 or 7x7, not {shown(text)}")
    return sizes[0] or 0, sizes[-1] or 0


def _deliver_similarity(matrices: Sequence[SimilarityMatrix], out: Path | None, as_json: bool) -> None:
    """Files where a folder is given, and JSON or sentences."""
    import pandas as pd

    from mixer_probe.core.result import FILE_NAME, results_text
    from mixer_probe.core.text import csv_text
    from mixer_probe.report import make_sections
    from mixer_probe.report.deliver import delivering
    from mixer_probe.report.html import report_page
    from mixer_probe.similarity.views import agreement, disagreement

    frame = pd.concat([m.to_frame() for m in matrices], ignore_index=True)
    if out is not None:
        settings = {"command": command_line()}
        with delivering(out) as delivery:
            delivery.write("similarity.csv", csv_text(frame))
            delivery.write(FILE_NAME, results_text(matrices, settings))
            delivery.draw("similarity", _picture(matrices))
            page = report_page(make_sections(matrices), matrices, "Similarity of two networks", settings)
            delivery.write("report.html", page)
    if as_json:
        console.file.write(frame.to_json(orient="records") + "\n")
        return
    sentences = [agreement(m) for m in matrices] + ([disagreement(matrices)] if len(matrices) > 1 else [])
    sentences[-1] += f" Written to {out}."
    for sentence in sentences:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _picture(matrices: Sequence[SimilarityMatrix]) -> Figure:
    """A heatmap with the best matches, or one panel a measure."""
    from mixer_probe.similarity.figures import similarity_heatmaps, similarity_measures

    return similarity_measures(matrices) if len(matrices) > 1 else similarity_heatmaps(matrices, paths=True)


def _extracted(
    load_model: Callable[[], Model],
    *,
    load: Callable[[], Images],
    layers: str | None,
    reduce: str | None,
    autocast: str | None,
    batch_size: int,
) -> Representations:
    """Of a model that is loaded."""
    import mixer_probe as mp

    chosen = chosen_layers(layers or "blocks")
    kept: Any = reduce or "mean"
    return mp.extract(load_model(), load(), chosen, reduce=kept, batch_size=batch_size, autocast=autocast)


def _stored(source: str, layers: str | None, reduce: str | None) -> Representations:
    """A stored run, or some layers of it. Raises MeasureError if its positions were reduced in another way."""
    import mixer_probe as mp

    run = mp.open_run(source)
    if reduce not in (None, run.reduce):
        raise MeasureError(f"the run {source} holds positions reduced by '{run.reduce}', not '{reduce}': extract again")
    return run if layers is None else run.only(layers.split(","))
