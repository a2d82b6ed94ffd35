"""`compare`: where two networks agree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mixer_probe.cli.options import (
    AsJson,
    ImageOptions,
    Measures,
    ModelOptions,
    OptionalOut,
    PassOptions,
    Permutations,
    Resamples,
    command,
    parts,
)
from mixer_probe.cli.output import finish
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import shown, whole_number
from mixer_probe.parallel import ranks


@command("compare zoo:mixer zoo:vit --measure cka,procrustes --out similarity")
def compare(
    model_a: Annotated[
        str, typer.Argument(metavar="A", help="A model, or a stored run (a folder or a URL).")
    ],
    model_b: Annotated[str, typer.Argument(metavar="B", help="Another model or stored run.")],
    source: ImageOptions = ImageOptions(),
    measure: Measures = "cka",
    estimator: Annotated[str, typer.Option(help="CKA estimator: unbiased or biased.")] = "unbiased",
    kernel: Annotated[str, typer.Option(help="CKA kernel: linear or rbf.")] = "linear",
    method: Annotated[
        str, typer.Option(help="CKA computation: auto, gram, moments or minibatch.")
    ] = "auto",
    reduce: Annotated[
        str | None,
        typer.Option(
            help="As in extract: mean, prefix or none (default: none with --grid, else mean)"
        ),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="Average positions over the cells of a common grid, such as 7 or 7x7."),
    ] = None,
    without_top_pc: Annotated[
        int, typer.Option(min=0, help="Number of leading principal components to remove.")
    ] = 0,
    passes: PassOptions = PassOptions(),
    models: ModelOptions = ModelOptions(),
    permutations: Permutations = 100,
    resamples: Resamples = 100,
    out: OptionalOut = None,
    as_json: AsJson = False,
) -> None:
    """Similarity of every layer of A with every layer of B by one measure or several, with null and
    interval.

    Writes figures as SVG and PNG, the numbers as CSV, results.json and report.html to --out
    (default: mixer-probe-compare; with --json none)."""
    from contextlib import closing

    import mixer_probe as mp
    from mixer_probe.capture import Inputs
    from mixer_probe.images.pixel_cache import PixelCache
    from mixer_probe.similarity.views import agreement, disagreement

    measures, cells = measure_names(measure), None
    if grid is not None:
        if reduce not in (None, "none"):
            raise MeasureError(
                f"--grid needs --reduce none: with --reduce {reduce} no positions are left to "
                "average"
            )
        sizes = [whole_number(size) for size in grid.lower().replace("×", "x").split("x")]
        if len(sizes) > 2 or not all(sizes):
            raise MeasureError(
                f"--grid is a number of rows and columns such as 7 or 7x7, not {shown(grid)}"
            )
        cells = sizes[0], sizes[-1]
    reduce = reduce or ("none" if cells else None)
    # A stored run is a folder or a URL.
    both = (model_a, model_b)
    names = [name for name in both if "://" not in name and not Path(name).is_dir()]
    loaders = dict(zip(names, models.loaders(names), strict=True))
    # What a network or a stored run lacks is an error before any network runs.
    passes.check_layers(list(loaders.values()))
    sides: dict[str, Any] = {}
    for name in (model_a, model_b):
        if name not in loaders:
            run = mp.open_run(name)
            if reduce not in (None, run.reduce):
                raise MeasureError(
                    f"the run {name} holds positions reduced by '{run.reduce}', not '{reduce}': "
                    "extract again"
                )
            sides[name] = run if passes.layers is None else run.only(passes.layers.split(","))
    folder = out or (None if as_json else Path("mixer-probe-compare"))
    # Or the temporary folder of runs that are too large for memory.
    shared: dict[str, Any] = {} if folder is None else {"runs": folder / "runs"}
    reduction: dict[str, Any] = {"reduce": reduce or "mean"}
    images = source.load().cached(PixelCache()) if loaders else None
    for name, load in loaders.items():
        with closing(Inputs(load(), images, settings=passes.settings(), shared=shared)) as i:
            sides[name] = i.extract(i.images, passes.chosen, part="test", **reduction)
    if not ranks().first:
        return
    a, b = sides[model_a], sides[model_b]
    matrices = mp.compare(  # type: ignore[call-overload]
        a,
        b,
        measures,
        estimator=estimator,
        kernel=kernel,
        method=method,
        permutations=permutations,
        resamples=resamples,
        without_top_pc=without_top_pc,
        grid=cells,
        seed=source.seed,
    )
    sentences = [agreement(m) for m in matrices] + (
        [disagreement(matrices)] if len(matrices) > 1 else []
    )
    finish(matrices, folder, "Similarity of two networks", as_json, sentences=sentences)


def measure_names(text: str) -> tuple[str, ...]:
    """Names of measures. Raises MeasureError for an unknown one, before any network runs."""
    from mixer_probe.similarity import MEASURES, find_measure

    if text == "all":
        return tuple(MEASURES)
    return tuple(find_measure(name.strip()).name for name in dict.fromkeys(parts(text)))
